// Transactions in flight: a page of them, narrowed by what stands in the address.

import { fill, h } from "./dom.js";
import { asOf, ask, keep, place, watch } from "./live.js";
import { count, duration, joined } from "./words.js";

const STATES = ["active", "preparing", "deciding", "committing", "in doubt", "committed", "aborted"];
const AGES = [
  [0, "any"],
  [1000, "1 s or more"],
  [10_000, "10 s or more"],
  [60_000, "1 min or more"],
  [600_000, "10 min or more"],
  [3_600_000, "1 h or more"],
];
const wanted = new URLSearchParams(location.search);
const filters = h("form", { method: "get", action: "/console/transactions", class: "filters", "aria-label": "Narrow the list" });
const list = h("div");

place().append(filters, list);
narrow([]);
ask("participants").then(
  (answer) => narrow(answer.participants.map((store) => store.name)),
  () => {},
);
keep(async () => {
  const asked = new URLSearchParams();
  for (const name of ["state", "participant", "older_than_ms", "key", "after"]) if (wanted.get(name)) asked.set(name, wanted.get(name));
  const answer = await ask(`transactions?${asked}`);
  return () => show(answer);
}, 5000);
watch(() => {});

function narrow(stores) {
  const choice = (name, label, options) =>
    h("label", null, label, h("select", { name }, options.map(([value, text]) => h("option", { value, selected: (wanted.get(name) ?? "") === String(value) }, text))));
  const chosen = wanted.get("participant");
  const names = chosen && !stores.includes(chosen) ? [...stores, chosen] : stores;
  const key = h("input", { name: "key", type: "search", maxlength: 1024, value: wanted.get("key") ?? "", autocomplete: "off", spellcheck: "false" });
  fill(
    filters,
    choice("state", "State", [["", "not ended"], ...STATES.map((state) => [state, state])]),
    choice("participant", "Store", [["", "any"], ...names.map((name) => [name, name])]),
    choice("older_than_ms", "Age", AGES),
    h("label", null, "Idempotency key, or a document's", key),
    h("p", { class: "buttons" }, h("button", { type: "submit" }, "Show"), h("a", { href: "/console/transactions" }, "Show all")),
  );
}

function show(answer) {
  const { transactions } = answer;
  const next = new URLSearchParams(wanted);
  next.set("after", answer.next);
  const first = new URLSearchParams(wanted);
  first.delete("after");
  const later = Boolean(wanted.get("after"));
  const many = answer.truncated ? `${count(transactions.length)}, and there are more` : count(transactions.length);
  // Of those, documents are not kept.
  const none = wanted.get("key") && ["committed", "aborted"].includes(wanted.get("state")) ? "None of this idempotency key. Which documents one wrote is not kept once it has ended." : "None.";
  const columns = ["Transaction", "State", "CSN", "Age", "Stores", "Waiting for", "Key"];
  fill(
    list,
    h("p", null, transactions.length ? `${many}${later ? ", after those of the pages before" : ""}. Those of earlier starts first, then by their beginning.` : none),
    asOf(answer),
    transactions.length
      ? h(
          "table",
          { class: "cards", role: "table" },
          h("caption", { class: "visually-hidden" }, "Transactions"),
          h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((name) => h("th", { scope: "col", role: "columnheader" }, name)))),
          h("tbody", { role: "rowgroup" }, transactions.map((tx) => row(tx, columns))),
        )
      : null,
    h(
      "nav",
      { class: "pager", "aria-label": "Pages of the list" },
      later ? h("a", { href: `/console/transactions?${first}` }, "First page") : null,
      answer.truncated ? h("a", { href: `/console/transactions?${next}`, rel: "next" }, "Next page") : null,
    ),
  );
}

function row(tx, columns) {
  const link = h("a", { href: `/console/transactions/${encodeURIComponent(tx.txid)}` }, tx.txid);
  const key = tx.key ? `${tx.key}, attempt ${tx.attempt}` : "-";
  const cells = [h("span", { class: `state ${tx.state.replace(" ", "-")}` }, tx.state), tx.csn ?? "-", duration(tx.age_ms), joined(tx.participants), joined(tx.waiting_for), key];
  return h(
    "tr",
    { role: "row", "data-key": tx.txid },
    h("th", { scope: "row", role: "rowheader", "data-name": columns[0] }, link),
    cells.map((cell, at) => h("td", { role: "cell", "data-name": columns[at + 1] }, cell)),
  );
}
