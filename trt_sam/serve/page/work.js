// What is under way: one thing at a time. What it takes the place of is given up, by the service too, which sees the
// connection close.

import { element } from "/page/panel.js";

let newest = null; // AbortController

// Begin something; gives the signal of its being given up.
export function begin(words) {
  newest?.abort();
  newest = new AbortController();
  element("busy-words").textContent = words;
  document.body.dataset.busy = "";
  return newest.signal;
}

// It is done, or has failed; nothing happens where something else has begun since.
export function end(signal) {
  if (newest?.signal === signal) stop();
}

// Give up whatever is under way.
export function stop() {
  newest?.abort();
  newest = null;
  delete document.body.dataset.busy;
}

export const isBusy = () => newest !== null;
