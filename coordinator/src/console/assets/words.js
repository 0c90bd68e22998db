// Numbers for people, as the command line writes them.

/** `12 ms`, `4.2 s`, `7 min`, `3 h 20 min`, `2 d 4 h`. */
export function duration(ms) {
  const whole = (unit) => Math.floor(ms / unit);
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${whole(1000)}.${Math.floor((ms % 1000) / 100)} s`;
  if (ms < 3_600_000) return `${whole(60_000)} min`;
  if (ms < 86_400_000) return `${whole(3_600_000)} h ${whole(60_000) % 60} min`;
  return `${whole(86_400_000)} d ${whole(3_600_000) % 24} h`;
}

/** `120 ms`, `95.2 s`, `12.5 min`: for an axis, where nothing may be cut off. */
export function span(ms) {
  const short = (n) => String(Math.round(n * 10) / 10);
  if (ms < 1000) return `${short(ms)} ms`;
  return ms < 600_000 ? `${short(ms / 1000)} s` : `${short(ms / 60_000)} min`;
}

/** Less than a second ago is now. */
export function ago(ms) {
  return ms < 1000 ? "now" : `${duration(ms)} ago`;
}

/** `850 µs`, `4.2 ms`, `1.3 s`. */
export function micros(us) {
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1_000_000) return `${(us / 1000).toFixed(us < 10_000 ? 1 : 0)} ms`;
  return `${(us / 1_000_000).toFixed(1)} s`;
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  for (; n >= 1024 && at < units.length - 1; at++) n /= 1024;
  return at === 0 ? `${n} B` : `${n.toFixed(1)} ${units[at]}`;
}

/** `1,234`; with a fraction where it is small. */
export function count(n) {
  return n.toLocaleString("en", { maximumFractionDigits: n < 100 ? 1 : 0 });
}

/** `2026-11-23 02:57:45.123 UTC` */
export function utc(ms) {
  return new Date(ms).toISOString().replace("T", " ").replace("Z", " UTC");
}

/** `02:57:45 UTC` */
export function clock(ms) {
  return `${new Date(ms).toISOString().slice(11, 19)} UTC`;
}

export function joined(names) {
  return names.length ? names.join(", ") : "-";
}

export function plural(n, one, many) {
  return `${count(n)} ${n === 1 ? one : many}`;
}
