// One transaction: why it is not finished, what happens by itself, what a person can do, and what happened so far.

import { fill, h } from "./dom.js";
import { asOf, ask, keep, place, sourced, watch } from "./live.js";
import { button, listen, reservations } from "./order.js";
import { utc } from "./words.js";

const txid = named();

document.getElementById("title").textContent = `Transaction ${txid}`;
document.title = `${txid} · Lockstep`;
const look = keep(async () => {
  const answer = await ask(`transactions/${encodeURIComponent(txid)}`);
  return () => show(answer);
}, 5000);
listen(place(), look);
watch(() => {});

function named() {
  const last = location.pathname.split("/").at(-1);
  try {
    return decodeURIComponent(last);
  } catch {
    return last;
  }
}

function show(answer) {
  const { explanation, detail } = answer;
  const facts = (title, id, all) => (all.length ? section(title, id, h("ul", { class: "facts" }, all.map((fact) => h("li", null, fact.sentence, sourced(fact.source, fact.age_ms))))) : null);
  fill(
    place(),
    h("p", { class: explanation.attention ? "verdict bad" : "verdict" }, h("span", { class: `state ${explanation.state.replace(" ", "-")}` }, explanation.state), " ", explanation.verdict, explanation.attention ? h("strong", null, " It needs a person.") : null),
    asOf(answer),
    facts("Why, and what is known", "why", explanation.facts),
    facts("What happens by itself", "ahead", explanation.ahead),
    explanation.choices.length ? section("What you can do", "choices", h("ol", { class: "choices" }, explanation.choices.map(choice))) : null,
    detail ? timeline(detail) : null,
    detail ? branches(detail) : null,
    detail?.transaction?.key ? section("Its key", "key", h("p", null, h("code", null, detail.transaction.key), `, attempt ${detail.transaction.attempt}`)) : null,
    section("On the command line", "commands", h("p", null, h("code", null, `lockstep tx explain ${txid}`))),
  );
}

function section(title, id, ...children) {
  return h("section", { "aria-labelledby": id, "data-key": id }, h("h2", { id }, title), children);
}

function choice(choice) {
  return h(
    "li",
    null,
    h("p", null, choice.effect),
    choice.command ? h("p", { class: "command" }, h("code", null, choice.command)) : null,
    reservations(choice),
    choice.order && !choice.refused ? h("p", null, button(choice.order)) : null,
  );
}

function timeline(detail) {
  if (!detail.timeline.length) return null;
  const moment = (moment) =>
    h("li", null, h("time", { datetime: new Date(moment.at_ms).toISOString() }, utc(moment.at_ms)), " ", moment.participant ? h("strong", null, `${moment.participant}: `) : null, moment.sentence, h("span", { class: "source" }, ` [${moment.source}]`));
  return section("What happened", "timeline", h("ol", { class: "timeline" }, detail.timeline.map(moment)));
}

function branches(detail) {
  if (!detail.branches.length) return null;
  const columns = ["Store", "State", "Vote", "Writes", "Note"];
  const row = (branch) => {
    const writes = branch.keys.length ? h("ul", { class: "keys" }, branch.keys.map((key) => h("li", null, h("code", null, key)))) : "-";
    const cells = [branch.state, branch.vote || "-", writes, branch.note || "-"];
    return h(
      "tr",
      { role: "row", "data-key": branch.participant },
      h("th", { scope: "row", role: "rowheader", "data-name": columns[0] }, branch.participant),
      cells.map((cell, at) => h("td", { role: "cell", "data-name": columns[at + 1] }, cell)),
    );
  };
  return section(
    "Its branches",
    "branches",
    h(
      "table",
      { class: "cards", role: "table", "aria-labelledby": "branches" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((name) => h("th", { scope: "col", role: "columnheader" }, name)))),
      h("tbody", { role: "rowgroup" }, detail.branches.map(row)),
    ),
  );
}
