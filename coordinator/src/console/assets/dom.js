// Elements from data. Whatever is put in is text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Attributes: texts, numbers, true, or null for none. Children: elements, texts, lists of them, null for none. */
export function h(name, attributes, ...children) {
  return dress(document.createElement(name), attributes, children);
}

/** The same of SVG. */
export function s(name, attributes, ...children) {
  return dress(document.createElementNS(SVG, name), attributes, children);
}

/** Makes the children of `place` be these. What is the same stays: focus, selection and a reader's place in it are kept. */
export function fill(place, ...children) {
  const next = place.cloneNode(false);
  next.append(...children.flat(Infinity).filter((child) => child !== null));
  match(place, next);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined).map((child) => child.nodeType ? child : String(child)));
  return element;
}

// A child with data-key is the same as the one that has the same key, another one as the one in its place.
function match(old, next) {
  const keyed = new Map([...old.children].filter((child) => child.dataset.key).map((child) => [child.dataset.key, child]));
  const kept = new Set([...next.children].map((child) => child.dataset.key));
  // Those that are gone go first: nobody else has to move, and what moves loses the focus.
  for (const [key, child] of keyed) if (!kept.has(key)) child.remove();
  let at = old.firstChild;
  for (const child of [...next.childNodes]) {
    const key = child.dataset?.key;
    const same = key ? keyed.get(key) : at && alike(at, child) ? at : null;
    if (!same) {
      old.insertBefore(child, at);
    } else if (same === at) {
      at = at.nextSibling;
      become(same, child);
    } else {
      old.insertBefore(same, at);
      become(same, child);
    }
  }
  while (at) {
    const after = at.nextSibling;
    at.remove();
    at = after;
  }
}

function alike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && !a.dataset?.key;
}

function become(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // Whether it is unfolded is its reader's business.
    if (!next.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  match(old, next);
}
