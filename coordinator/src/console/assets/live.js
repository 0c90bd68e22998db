// What every page has: the daemon's word each second, who it is, and the truth about how old things are.

import { fill, h } from "./dom.js";
import { ago, clock, duration } from "./words.js";

/** The daemon gives its word each second. After so long without one, what is shown is called old. */
const QUIET = 5000;
/** A question is given up after so long without an answer. */
const PATIENCE = 30000;

const content = document.getElementById("content");
const stale = document.getElementById("stale");
const trouble = document.getElementById("trouble");
let source = null;
let retrying = null;
/** When the last word came, by our clock, and what the daemon's said then. */
let heard = { at: performance.now(), of: null, silent: false, cut: false };
let told = "";

/** Where a page puts what it shows. */
export function place() {
  return content;
}

/** Calls `heard(samples, isHistory)`: the past minutes, if wanted, at each connection, then each sample as it comes. */
export function watch(onSamples, history = false) {
  const open = () => {
    clearTimeout(retrying);
    source?.close();
    source = new EventSource(`/console/api/live?history=${history}`);
    const word = (samples, all) => {
      if (samples.length) heard = { at: performance.now(), of: samples.at(-1).at_ms, silent: false, cut: false };
      judge();
      if (samples.length) phase(samples.at(-1));
      onSamples(samples, all);
    };
    source.addEventListener("history", (event) => word(JSON.parse(event.data), true));
    source.addEventListener("sample", (event) => word([JSON.parse(event.data)], false));
    source.addEventListener("silent", () => {
      heard.silent = true;
      judge();
    });
    source.addEventListener("error", () => {
      heard.cut = true;
      judge();
      // It tries again by itself, unless it was refused.
      if (source.readyState === EventSource.CLOSED) retrying = setTimeout(open, 3000);
    });
  };
  // A hidden page holds no connection: a browser has six of them for us.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(retrying);
      source?.close();
    } else {
      open();
    }
  });
  open();
  setInterval(judge, 1000);
}

/** Says that what is shown is old, and from when; and that it is not, any more. */
function judge() {
  const quiet = performance.now() - heard.at;
  const old = heard.silent || heard.cut || quiet > QUIET;
  document.body.classList.toggle("is-stale", old);
  const since = heard.of === null ? "" : ` since ${clock(heard.of)}`;
  const shown = heard.of === null ? "" : " What stands here is old: each part says from when.";
  const what = heard.silent ? `The daemon's engine has given no answer${since}.` : `The daemon has not been heard${since}.`;
  const words = old ? `Not live. ${what}${shown}` : "";
  if (words !== told) {
    told = words;
    fill(stale, old ? h("p", null, words, h("span", { "aria-hidden": true, id: "quiet" })) : null);
    if (old) document.getElementById("phase").textContent = "not heard";
  }
  if (old) document.getElementById("quiet").textContent = ` (${duration(quiet)})`;
}

function phase(sample) {
  const badge = document.getElementById("phase");
  const phase = sample.phase !== "serving" ? sample.phase : sample.log_full ? "log full" : sample.paused ? "paused" : sample.phase;
  badge.textContent = phase;
  badge.className = phase === "serving" ? "good" : "bad";
}

/** GET: the answer, or an error with the daemon's sentence. */
export async function ask(path) {
  return answered(await fetch(`/console/api/${path}`, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(PATIENCE) }));
}

/** POST: the answer, or an error with the daemon's sentence; `conflict` where things have changed or it was refused, `broken` where it may be done all the same. */
export async function post(path, token, body) {
  const headers = { "Content-Type": "application/json", "X-Lockstep-Token": token };
  return answered(await fetch(`/console/api/${path}`, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answered(response) {
  const body = await response.json().catch(() => ({}));
  if (response.ok) return { ...body, received: performance.now() };
  const { status } = response;
  throw Object.assign(new Error(body.error ?? `the daemon answered ${status}`), { conflict: status === 409, broken: status >= 500 });
}

/** Shows now and then what `look` brings, one look after the other; says so where that fails. Returns what looks at once. */
export function keep(look, every) {
  let asked = 0;
  let running = 0;
  const now = async () => {
    const mine = ++asked;
    running += 1;
    try {
      const show = await look();
      // A slow answer does not overwrite a newer one.
      if (mine !== asked) return;
      fill(trouble);
      show();
    } catch (error) {
      if (mine !== asked) return;
      const unreachable = error instanceof TypeError || error.name === "TimeoutError";
      const words = unreachable ? "the daemon cannot be reached" : error.message;
      const old = content.childElementCount ? " What stands here is older." : "";
      fill(trouble, h("p", null, `It could not be asked: ${words}.${old}`));
    } finally {
      running -= 1;
    }
  };
  const next = () => document.hidden || running || now();
  now();
  setInterval(next, every);
  document.addEventListener("visibilitychange", next);
  return now;
}

/** When an answer was given. How long ago that is goes on by itself. */
export function asOf(answer) {
  const age = h("span", { "aria-hidden": true, "data-received": answer.received }, ` (${ago(performance.now() - answer.received)})`);
  return h("p", { class: "as-of" }, `As of ${clock(answer.as_of_ms)}`, age);
}

/** The age of a fact at its answer, written out. */
export function sourced(source, ageMs) {
  return h("span", { class: "source" }, ` [${source}, ${ago(ageMs)}]`);
}

setInterval(() => {
  for (const age of document.querySelectorAll("[data-received]")) {
    const words = ` (${ago(performance.now() - Number(age.dataset.received))})`;
    if (age.textContent !== words) age.textContent = words;
  }
}, 1000);

const here = location.pathname.replace(/\/$/, "");
for (const link of document.querySelectorAll("nav a")) {
  const there = new URL(link.href).pathname.replace(/\/$/, "");
  if (there === here) link.setAttribute("aria-current", "page");
  else if (there !== "/console" && here.startsWith(`${there}/`)) link.setAttribute("aria-current", "true");
}

ask("session").then(
  (session) => {
    const who = `lockstepd ${session.version}, coordinator ${session.coord_id}, epoch ${session.epoch}, as of this page's loading.`;
    document.getElementById("who").textContent = who;
  },
  () => {},
);
