// Damage: promises broken by hand or lost, what each means, and how it is mended.

import { fill, h } from "./dom.js";
import { asOf, ask, keep, place, watch } from "./live.js";
import { button, listen } from "./order.js";
import { count, utc } from "./words.js";

/** Entries that are shown. */
const SHOWN = 200;
const parts = location.pathname.split("/");
const txid = parts.length > 3 ? decoded(parts[3]) : "";

if (txid) {
  document.getElementById("title").textContent = `Damage of ${txid}`;
  document.title = `Damage of ${txid} · Lockstep`;
}
const look = keep(async () => {
  const answer = await ask("damage");
  return () => show(answer);
}, 10_000);
listen(place(), look);
watch(() => {});

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function show(answer) {
  const all = answer.damage.filter((entry) => !txid || entry.txid === txid);
  const none = txid ? `No damage of ${txid} is recorded; it may have been forgotten.` : "No damage is recorded.";
  fill(
    place(),
    h("p", null, all.length ? `${count(all.length)} recorded. Until one is forgotten, every client that asks for its transaction is told of it.` : none),
    asOf(answer),
    all.length > SHOWN ? h("p", null, `The first ${SHOWN} are shown; \`lockstep damage list\` shows all.`) : null,
    all.slice(0, SHOWN).map(entry),
  );
}

function entry(damage, at) {
  const key = `${damage.txid} ${damage.participant} ${damage.kind} ${damage.at_ms}`;
  const line = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));
  const id = `damage-${at}`;
  return h(
    "section",
    { class: "card", "aria-labelledby": id, "data-key": key },
    h("h2", { id }, h("a", { href: `/console/damage/${encodeURIComponent(damage.txid)}` }, damage.txid), ` at ${damage.participant}: ${damage.kind}`),
    h(
      "dl",
      { class: "lines" },
      line("Transaction", h("a", { href: `/console/transactions/${encodeURIComponent(damage.txid)}` }, `explain ${damage.txid}`)),
      line("It means", damage.means),
      line("To mend it", damage.mend),
      line("CSN", damage.csn ?? "-"),
      line("Documents", damage.keys.length ? h("ul", { class: "keys" }, damage.keys.map((key) => h("li", null, h("code", null, key)))) : "-"),
      line("By", damage.operator || "-"),
      line("Reason", damage.reason || "-"),
      line("At", utc(damage.at_ms)),
      line("Known from", "log"),
    ),
    h("p", null, button({ kind: "forget", txid: damage.txid, participant: damage.participant })),
  );
}
