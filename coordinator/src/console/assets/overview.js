// The daemon on one screen: what needs a person, and how the past minutes were.

import { fill, h, s } from "./dom.js";
import { asOf, ask, keep, place, watch } from "./live.js";
import { button, listen } from "./order.js";
import { draw, figure } from "./plots.js";
import { bytes, clock, count, duration, micros, plural, span } from "./words.js";

const KEPT = 600;
const AGES = ["below 1 s", "1 s to 10 s", "10 s to 1 min", "1 min to 10 min", "10 min to 1 h", "above 1 h"];
/** In doubt for so long is more than an index's ordinary lag. */
const LONG = 10_000;
let samples = [];
/** What the findings depend on: when it changes they are asked for at once. */
let circumstances = "";

const attention = h("section", { "aria-labelledby": "attention-title" });
const figures = h("section", { "aria-labelledby": "now-title" }, h("h2", { id: "now-title" }, "At this moment"), h("p", { id: "moment", class: "as-of" }), h("dl", { class: "tiles" }));
const plots = {
  throughput: figure("throughput", "Throughput", "Transactions decided, a second"),
  latency: figure("latency", "Latency", "From a commit's request to its answer, of those answered in each second"),
  group: figure("group", "Group size", "Records of the log that one forced write served"),
  lag: figure("lag", "Lag of each store", "Age of the oldest decided transaction that it has not applied"),
  doubt: figure("doubt", "In doubt", "Decided and not applied everywhere; prepared with nobody who could tell the outcome yet"),
};
const ages = h("figure", { id: "ages" }, h("figcaption", null, h("h3", null, "In doubt, by age"), h("p", null, "At this moment; being decided included")), h("div", { class: "plot" }));
const past = h("section", { "aria-labelledby": "past-title" }, h("h2", { id: "past-title" }, "The past ten minutes"), h("div", { class: "plots" }, Object.values(plots), ages));

place().append(attention, figures, past);
const look = keep(async () => {
  const answer = await ask("doctor");
  return () => findings(answer);
}, 15_000);
listen(attention, look);
watch((heard, all) => {
  samples = all ? heard : [...samples, ...heard].slice(-KEPT);
  if (!samples.length) return;
  const last = samples.at(-1);
  const now = JSON.stringify([last.phase, last.paused, last.log_full, last.damage, last.unanswered > 0, last.stores.map((store) => [store.session, store.stuck > 0])]);
  if (circumstances && now !== circumstances) look();
  circumstances = now;
  tiles(last);
  redraw();
}, true);
window.addEventListener("resize", redraw);
for (const details of document.querySelectorAll("figure")) details.addEventListener("toggle", redraw, true);

function findings(answer) {
  const urgent = answer.findings.filter((finding) => finding.level !== "ok");
  const title = h("h2", { id: "attention-title" }, urgent.length ? `Needs attention: ${urgent.length}` : "Nothing needs a person");
  const item = (finding) =>
    h("li", { class: finding.level }, h("strong", null, `${finding.level}, ${finding.subject}: `), `${finding.sentence}.`, finding.remedy ? h("span", { class: "remedy" }, ` Remedy: ${finding.remedy}.`) : null);
  const well = answer.findings.filter((finding) => finding.level === "ok");
  const safe = samples.at(-1)?.phase === "safe mode";
  fill(
    attention,
    title,
    urgent.length ? h("ul", { class: "findings" }, urgent.map(item)) : null,
    safe ? h("p", null, button({ kind: "leave-safe-mode" })) : null,
    h("details", null, h("summary", null, `${plural(well.length, "thing is", "things are")} as ${well.length === 1 ? "it" : "they"} should be`), h("ul", { class: "findings" }, well.map(item))),
    asOf(answer),
  );
}

function tiles(last) {
  fill(document.getElementById("moment"), `As of ${clock(last.at_ms)}, each second anew`);
  const tile = (name, value, note) => h("div", null, h("dt", null, name), h("dd", null, h("strong", null, value), note ? h("small", null, ` ${note}`) : null));
  const doubt = last.in_doubt + last.unanswered;
  fill(
    figures.querySelector("dl"),
    tile("Phase", last.phase, last.why || (last.log_full || last.paused ? "new transactions are refused" : "")),
    tile("Up", duration(last.uptime_ms)),
    tile("Committed a second", count(last.committed), `${count(last.committed_total)} since the start`),
    tile("Aborted a second", count(last.aborted)),
    tile("Answered within (p99)", last.latency ? micros(last.latency[2]) : "-", last.latency ? "" : "no commit in this second"),
    tile("Open", count(last.active), "not decided yet"),
    h("div", { class: last.unanswered || last.oldest_ms >= LONG ? "bad" : null }, h("dt", null, h("a", { href: "/console/transactions" }, "In doubt")), h("dd", null, h("strong", null, count(doubt)), last.in_doubt ? h("small", null, ` the oldest for ${duration(last.oldest_ms)}`) : null)),
    h("div", { class: last.damage ? "bad" : null }, h("dt", null, h("a", { href: "/console/damage" }, "Damage")), h("dd", null, h("strong", null, count(last.damage)))),
    tile("Free for the log", bytes(last.log_free)),
    last.stores.map((store) =>
      h(
        "div",
        { "data-key": `store-${store.name}`, class: store.session === "up" && !store.stuck ? null : "bad" },
        h("dt", null, h("a", { href: `/console/participants#store-${store.name}` }, `Store ${store.name}`)),
        h("dd", null, h("strong", null, store.session), h("small", null, store.lag ? ` ${count(store.lag)} behind, ${duration(store.lag_ms)}${store.stuck ? `, ${count(store.stuck)} stuck` : ""}` : " is owed nothing")),
      ),
    ),
  );
}

function redraw() {
  if (!samples.length) return;
  const times = samples.map((sample) => sample.at_ms);
  const all = (value) => samples.map(value);
  const of = (n) => all((sample) => sample.latency?.[n] ?? null);
  draw(plots.throughput, "Transactions a second", times, [
    { name: "committed", values: all((sample) => sample.committed) },
    { name: "aborted", values: all((sample) => sample.aborted) },
  ]);
  draw(plots.latency, "Latency of commits", times, ["p50", "p95", "p99"].map((name, n) => ({ name, values: of(n) })), micros);
  draw(plots.group, "Records a forced write", times, [{ name: "records a force", values: all((sample) => sample.group) }]);
  const names = samples.at(-1).stores.map((store) => store.name);
  const lag = (name) => all((sample) => sample.stores.find((store) => store.name === name)?.lag_ms ?? null);
  draw(plots.lag, "Lag of each store", times, names.map((name) => ({ name, values: lag(name) })), span);
  draw(plots.doubt, "Transactions in doubt", times, [
    { name: "decided, not applied everywhere", values: all((sample) => sample.in_doubt) },
    { name: "branches without an answer", values: all((sample) => sample.unanswered) },
  ]);
  byAge(samples.at(-1).ages);
}

function byAge(counts) {
  const most = Math.max(...counts, 1);
  const bar = (n) => s("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": true }, s("rect", { width: (100 * n) / most, height: 10 }));
  fill(
    ages.querySelector(".plot"),
    h(
      "table",
      { class: "bars" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Age"), h("th", { scope: "col" }, "Transactions"), h("td", null))),
      h("tbody", null, counts.map((n, at) => h("tr", null, h("th", { scope: "row" }, AGES[at]), h("td", null, count(n)), h("td", null, bar(n))))),
    ),
  );
}
