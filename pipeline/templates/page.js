"use strict";
// What every page shares. Text from the crawl reaches the document by textContent and setAttribute alone.

const SPOKEN = { keep: "kept", drop: "dropped", relabel: "of another identity", review: "to review" };
const VERDICTS = Object.keys(SPOKEN);
const SIGNS = { keep: "✓", drop: "✕", relabel: "⇄", review: "?" };
const LIST_ROWS = 5000, BLOCK = 16;

/** A new element: its attributes, then its children, which are elements or texts. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const count = (number) => number.toLocaleString("en");
const degrees = (angle) => (angle === undefined || angle === null ? "unknown angle" : `${angle.toFixed(1)}°`);
const sign = (verdict) => el("span", { class: "sign", "aria-hidden": "true" }, SIGNS[verdict] ?? "·");

function dataAddress(address) {
  if (!/^data\/(list|people)-\d{5,9}\.js$/.test(address)) throw new TypeError(`No script of data: ${address}`);
  return address;
}
const addresses = window.trustedTypes ? trustedTypes.createPolicy("purify", { createScriptURL: dataAddress }) : { createScriptURL: dataAddress };

const waiting = new Map();

/** Scripts of data call this with their name and what they hold. */
function purify(name, value) {
  waiting.get(name)?.(value);
}

/** What the script of data `name` holds. A page opened from disk may read a script, and nothing else. */
function load(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waiting.set(name, (value) => { waiting.delete(name); script.remove(); resolve(value); });
    script.onerror = () => { waiting.delete(name); script.remove(); reject(new Error(`data/${name}.js cannot be read`)); };
    script.src = addresses.createScriptURL(`data/${name}.js`);
    document.head.append(script);
  });
}

const numbered = (kind, part) => `${kind}-${String(part).padStart(5, "0")}`;
