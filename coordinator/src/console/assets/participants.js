// The stores: their sessions, how far they have followed, what they hold, and who waits for that.

import { fill, h } from "./dom.js";
import { asOf, ask, keep, place, watch } from "./live.js";
import { button, listen } from "./order.js";
import { ago, count, duration, plural } from "./words.js";

let first = true;
/** Transactions that are named where a store holds them back. */
const NAMED = 5;

const look = keep(async () => {
  // A store that does not answer makes its examination long.
  const [answer, { findings }] = await Promise.all([ask("participants"), ask("doctor")]);
  const held = new Map();
  for (const store of answer.participants.filter((store) => store.lag || store.prepared)) {
    const { transactions, truncated } = await ask(`transactions?limit=100&participant=${encodeURIComponent(store.name)}`);
    const waiting = transactions.filter((tx) => tx.waiting_for.includes(store.name) || tx.state === "in doubt");
    held.set(store.name, { waiting, truncated });
  }
  return () => show(answer, findings, held);
}, 5000);
listen(place(), look);
watch(() => {});

function show(answer, findings, held) {
  fill(place(), asOf(answer), answer.participants.map((store) => card(store, findings.filter((finding) => finding.subject === `store ${store.name}` && finding.level !== "ok"), held.get(store.name))));
  // What the address points at was not there when the page was loaded.
  if (first && location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  first = false;
}

function card(store, findings, held) {
  const id = `store-title-${store.id}`;
  const line = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));
  const all = `/console/transactions?participant=${encodeURIComponent(store.name)}`;
  return h(
    "section",
    { class: "card", id: `store-${store.name}`, "aria-labelledby": id, "data-key": store.name },
    h("h2", { id }, store.name, " ", h("span", { class: `state ${store.session === "up" ? "committed" : "in-doubt"}` }, store.session)),
    store.why ? h("p", null, `${store.why}.`) : null,
    findings.length ? h("ul", { class: "findings" }, findings.map((finding) => h("li", { class: finding.level }, h("strong", null, `${finding.level}: `), `${finding.sentence}.`, finding.remedy ? h("span", { class: "remedy" }, ` Remedy: ${finding.remedy}.`) : null))) : null,
    h(
      "dl",
      { class: "lines" },
      line("Type and kind", `${store.type || "not configured"}, ${store.kind}`),
      line("Number in the log", `p${store.id}`),
      line("Session", `${store.session} for ${duration(store.session_ms)}`),
      line("Has applied", store.applied_csn ? `up to CSN ${store.applied_csn}` : "nothing yet"),
      line("Has made durable", store.durable_csn ? `up to CSN ${store.durable_csn}` : "nothing yet"),
      line("Told so", ago(store.reported_ms)),
      line("Lag", store.lag ? `${plural(store.lag, "decision", "decisions")}, the oldest for ${duration(store.lag_ms)}` : "none"),
      line("Stuck there", count(store.stuck)),
      line("Prepared there", plural(store.prepared, "branch", "branches")),
    ),
    held?.waiting.length
      ? [
          h("h3", null, "What waits for it"),
          h("ul", null, held.waiting.slice(0, NAMED).map((tx) => h("li", null, h("a", { href: `/console/transactions/${encodeURIComponent(tx.txid)}` }, tx.txid), ` ${tx.state}, for ${duration(tx.age_ms)}`))),
        ]
      : null,
    h("p", null, h("a", { href: all }, "Its transactions", h("span", { class: "visually-hidden" }, ` (${store.name})`)), store.session === "up" ? null : [" ", button({ kind: "waive", participant: store.name })]),
  );
}
