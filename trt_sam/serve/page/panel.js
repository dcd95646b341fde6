// The panel beside the picture: candidates, objects, times, messages.

import { raster } from "/page/raster.js";

const THUMBNAIL = 160; // pixels of the long side
const SHOWN_MS = 6000;
let hide = 0;

export const element = (id) => document.getElementById(id);

export function drawCandidates(picture, current, colour, choose) {
  const list = element("candidates"), byKeys = list.querySelector(":focus-visible") !== null;
  if (!current.masks.length) {
    const empty = document.createElement("p");
    empty.className = "quiet";
    empty.textContent = "They appear with the first click.";
    list.replaceChildren(empty);
    return;
  }
  list.replaceChildren(...current.masks.map((mask, place) => {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    button.type = "button";
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", String(place === current.chosen));
    button.setAttribute("aria-label", `Candidate ${place + 1}, score ${mask.score.toFixed(2)}`);
    const scale = THUMBNAIL / Math.max(picture.width, picture.height);
    canvas.width = Math.round(picture.width * scale);
    canvas.height = Math.round(picture.height * scale);
    const pen = canvas.getContext("2d"), layer = raster(mask, colour);
    pen.drawImage(picture.bitmap, 0, 0, canvas.width, canvas.height);
    pen.drawImage(layer.canvas, layer.x * scale, layer.y * scale, layer.width * scale, layer.height * scale);
    button.append(canvas, mask.score.toFixed(2));
    button.addEventListener("click", () => choose(place));
    return button;
  }));
  if (byKeys) list.children[current.chosen].focus();
}

export function drawObjects(objects, remove) {
  element("count").textContent = objects.length ? `(${objects.length})` : "";
  element("objects").replaceChildren(...objects.map((object, index) => {
    const item = document.createElement("li"), swatch = document.createElement("i"), button = document.createElement("button");
    swatch.style.background = `rgb(${object.colour})`;
    button.type = "button";
    button.textContent = "✕";
    button.setAttribute("aria-label", `Remove object ${index + 1}`);
    button.addEventListener("click", () => remove(index));
    item.append(swatch, `Object ${index + 1}, ${object.area.toLocaleString()} pixels`, button);
    return item;
  }));
}

// What took how long: all of it as seen here, and the model's part as the service says.
export function showTime(what, milliseconds, times) {
  const model = (times.embed ?? 0) + (times.decode ?? 0);
  element("time").textContent = `${what} ${duration(milliseconds)}, model ${duration(model)}`;
}

const duration = (ms) => ms < 9999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;

export function toast(words) {
  const place = element("toast");
  place.textContent = words;
  place.classList.add("shown");
  clearTimeout(hide);
  hide = setTimeout(() => place.classList.remove("shown"), SHOWN_MS);
}
