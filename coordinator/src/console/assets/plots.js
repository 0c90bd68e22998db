// Lines over the past ten minutes, each with its numbers beside it: a picture for the eye, a sentence and a table for everybody else.

import { fill, h, s } from "./dom.js";
import { clock, count } from "./words.js";

const SPAN = 600_000;
const HEIGHT = 170;
const LEFT = 56;
const BOTTOM = 22;
const TOP = 8;
/** No line across a gap: nothing is known of it. */
const GAP = 3500;

/** A figure that `draw` fills. */
export function figure(id, title, note) {
  return h("figure", { id }, h("figcaption", null, h("h3", null, title), note ? h("p", null, note) : null), h("div", { class: "plot" }));
}

/**
 * Draws into a figure. `lines`: [{ name, values }], a value for each time, null where there is none. `say` writes a value.
 */
export function draw(figure, title, times, lines, say = count) {
  const now = times.at(-1) ?? 0;
  const most = Math.max(...lines.flatMap((line) => line.values.filter((value) => value !== null)), 0);
  const top = ceiling(most);
  const plot = figure.querySelector(".plot");
  const width = Math.max(plot.clientWidth, 240);
  const x = (time) => LEFT + (width - LEFT - 8) * (1 - (now - time) / SPAN);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const picture = s(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": sentence(title, lines, say) },
    [0, 0.5, 1].map((part) => [
      s("line", { class: "grid", x1: LEFT, x2: width - 8, y1: y(top * part), y2: y(top * part) }),
      s("text", { class: "axis", x: LEFT - 6, y: y(top * part) + 4, "text-anchor": "end" }, say(top * part)),
    ]),
    [10, 5, 0].map((minutes) => {
      const anchor = minutes === 0 ? "end" : minutes === 10 ? "start" : "middle";
      const at = now - minutes * 60_000;
      return s("text", { class: "axis", x: x(at), y: HEIGHT - 5, "text-anchor": anchor }, minutes === 0 ? clock(at) : clock(at).slice(0, 8));
    }),
    lines.map((line, n) => s("path", { class: `line s${n % 6}`, d: path(times, line.values, x, y, now) })),
  );
  const legend = h(
    "ul",
    { class: "legend" },
    lines.map((line, n) => {
      const swatch = s("svg", { width: 22, height: 10, "aria-hidden": true }, s("path", { class: `line s${n % 6}`, d: "M1 5H21" }));
      return h("li", null, swatch, ` ${line.name} `, h("strong", null, said(line.values.at(-1), say)));
    }),
  );
  fill(plot, picture, legend, table(figure, title, times, lines, say));
}

function path(times, values, x, y, now) {
  let d = "";
  let before = null;
  for (let i = 0; i < times.length; i++) {
    if (values[i] === null || values[i] === undefined || now - times[i] > SPAN) continue;
    d += `${before !== null && times[i] - before < GAP ? "L" : "M"}${x(times[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`;
    // A point alone is seen, too.
    if (before === null || times[i] - before >= GAP) d += "h.01";
    before = times[i];
  }
  return d;
}

/** The smallest of 1, 2, 5, 10, 20, … that is not below it. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= value);
}

function sentence(title, lines, say) {
  const each = lines.map((line) => {
    const known = line.values.filter((value) => value !== null && value !== undefined);
    if (!known.length) return `${line.name}: nothing measured`;
    return `${line.name}: ${said(line.values.at(-1), say)} at last, between ${say(Math.min(...known))} and ${say(Math.max(...known))}`;
  });
  return `${title}, past ten minutes. ${each.join("; ")}.`;
}

/** A row for each minute. Made only while it is looked at. */
function table(figure, title, times, lines, say) {
  const open = figure.querySelector("details")?.open;
  const details = h("details", open ? { open: true } : null, h("summary", null, "As a table", h("span", { class: "visually-hidden" }, `: ${title}`)));
  if (!open) {
    // Filled as soon as it is unfolded: the next sample is a second away.
    details.append(h("p", null, "…"));
    return details;
  }
  const rows = [];
  for (let i = times.length - 1; i >= 0 && rows.length < 10; i -= 60) rows.push(i);
  details.append(
    h(
      "table",
      null,
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "At"), lines.map((line) => h("th", { scope: "col" }, line.name)))),
      h("tbody", null, rows.map((i) => h("tr", null, h("th", { scope: "row" }, clock(times[i])), lines.map((line) => h("td", null, said(line.values[i], say)))))),
    ),
  );
  return details;
}

function said(value, say) {
  return value === null || value === undefined ? "-" : say(value);
}
