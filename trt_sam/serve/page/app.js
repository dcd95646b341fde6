// The page: a picture, the object that is being clicked together, and the objects that are finished.

import * as api from "/page/api.js";
import { coco, png, save } from "/page/exports.js";
import { listen } from "/page/pointer.js";
import { colourOf, raster } from "/page/raster.js";
import { drawCandidates, drawObjects, element, showTime, toast } from "/page/panel.js";
import { View } from "/page/view.js";
import { begin, end, isBusy, stop } from "/page/work.js";

const NOTHING = { points: [], box: null, masks: [], chosen: 0 };
const HOVER_MS = 60; // that the mouse rests before a preview is asked for

const view = new View(element("view"));
let picture = null; // {blob, bitmap, name, id, width, height}
let now = { current: NOTHING, objects: [] };
let before = []; // states, for undo
let asking = null; // the prompt under way: a click that comes before the answer adds to it
let tool = "add";
let hovering = null, hoverTimer = 0, previewing = null;

const colour = () => colourOf(now.objects.length);

// `read` gives the bytes of a photo. Until it is there, or has failed, nothing is done with the one before.
async function open(name, read) {
  leave();
  const signal = begin("Opening the photo");
  asking = null;
  holdStill(true);
  render();
  try {
    const blob = await read(signal);
    const bitmap = await createImageBitmap(blob).catch(() => {
      throw new Error(`${name} is damaged, or not a picture that the browser can read.`);
    });
    if (signal.aborted) return;
    const started = performance.now(), image = await api.addImage(blob, signal);
    picture = { blob, bitmap, name, id: image.id, width: image.width, height: image.height };
    now = { current: NOTHING, objects: [] };
    before = [];
    document.body.dataset.state = "ready";
    view.resize();
    view.show(bitmap, image.width, image.height);
    showTime("picture", performance.now() - started, image.times_ms);
    render();
  } catch (error) {
    if (!signal.aborted) toast(error.message);
  } finally {
    end(signal);
    if (!isBusy()) {
      holdStill(false);
      view.canvas.focus({ preventScroll: true });
    }
  }
}

const openFile = (file) => file && open(file.name, () => file);

function holdStill(still) {
  for (const part of [view.canvas, document.querySelector("aside")]) part.inert = still;
}

// The answer of `ask(id of the image, signal)`, shown as `words`; null where it failed, which is said, or was given up.
async function answered(words, what, ask) {
  leave();
  const signal = begin(words), started = performance.now();
  let answer = null;
  render();
  try {
    answer = await again((id) => ask(id, signal), signal);
    showTime(what, performance.now() - started, answer.times_ms);
  } catch (error) {
    if (!signal.aborted) toast(error.message);
  }
  if (signal.aborted) return null;
  asking = null;
  end(signal);
  if (!answer) render();
  return answer;
}

// The image may have expired on the server: it is sent again then, once.
async function again(ask, signal) {
  try {
    return await ask(picture.id);
  } catch (error) {
    if (error.code !== "image_unknown") throw error;
    picture.id = (await api.addImage(picture.blob, signal)).id;
    return ask(picture.id);
  }
}

function asked({ points, box }, more) {
  return {
    ...(points.length ? { points: points.map((p) => [p.x, p.y]), labels: points.map((p) => p.label) } : {}),
    ...(box ? { boxes: [box] } : {}),
    ...more,
  };
}

async function prompt(wanted) {
  asking = wanted; // shown at once; the masks come with the answer
  const answer = await answered("Segmenting", "click", (id, signal) => api.masks(id, asked(wanted, {}), signal));
  if (!answer) return;
  const [{ masks, best }] = answer.results;
  change({ ...now, current: { ...wanted, masks, chosen: best } });
}

const click = (place, label) => {
  const { points, box } = asking ?? now.current;
  if (!label && !points.length && !box) return toast("Add something first, then remove from it.");
  return prompt({ points: [...points, { ...place, label }], box });
};

function hover(place) {
  hovering = place;
  clearTimeout(hoverTimer);
  if (!place || now.current.masks.length || isBusy()) return leave();
  hoverTimer = setTimeout(async () => {
    if (previewing) return; // one at a time; the answer asks again where the mouse has gone on
    const at = hovering, started = performance.now(), mine = previewing = new AbortController();
    try {
      const wanted = asked({ points: [{ ...at, label: 1 }] }, { output: "best", keep: false });
      const answer = await api.masks(picture.id, wanted, mine.signal);
      view.preview = raster(answer.results[0].masks[0], colour());
      view.draw();
      showTime("preview", performance.now() - started, answer.times_ms);
    } catch {
      // A preview that fails is none; a click will say why.
    } finally {
      if (previewing === mine) {
        previewing = null;
        if (hovering !== at) hover(hovering);
      }
    }
  }, HOVER_MS);
}

function leave() {
  hovering = null;
  clearTimeout(hoverTimer);
  previewing?.abort();
  previewing = null;
  if (view.preview) {
    view.preview = null;
    view.draw();
  }
}

function change(next) {
  before.push(now);
  now = next;
  render();
}

// What is under way is the newest, and the first that is taken back.
function undo() {
  if (!giveUp() && before.length) now = before.pop();
  render();
}

function clear() {
  giveUp();
  if (now.current !== NOTHING) change({ ...now, current: NOTHING });
}

function giveUp() {
  const was = isBusy();
  stop();
  asking = null;
  holdStill(false);
  render();
  return was;
}

function finish() {
  const { masks, chosen } = now.current;
  if (masks.length && !asking) change({ current: NOTHING, objects: [...now.objects, { ...masks[chosen], colour: colour() }] });
}

function choose(place) {
  const { current } = now;
  if (place < current.masks.length && place !== current.chosen && !asking) change({ ...now, current: { ...current, chosen: place } });
}

async function findAll() {
  asking = null;
  const answer = await answered("Finding all objects", "all objects", (id, signal) => api.everything(id, {}, signal));
  if (answer) change({ current: NOTHING, objects: answer.masks.map((mask, index) => ({ ...mask, colour: colourOf(index) })) });
}

function render() {
  const { current, objects } = now, drawn = current.masks[current.chosen];
  for (const object of objects) object.raster ??= raster(object, object.colour);
  view.layers = [...objects.map((object) => object.raster), ...(drawn ? [raster(drawn, colour())] : [])];
  view.points = (asking ?? current).points;
  view.box = (asking ?? current).box;
  view.draw();
  drawCandidates(picture, current, colour(), choose);
  drawObjects(objects, (index) => change({ ...now, objects: objects.filter((_, place) => place !== index) }));
  const none = !objects.length && !drawn;
  for (const name of ["export-png", "export-cut", "export-coco"]) element(name).disabled = none;
  element("undo").disabled = !before.length && !asking;
  element("clear").disabled = current === NOTHING && !asking;
  element("finish").disabled = !drawn || asking !== null;
  element("everything").disabled = !picture;
}

// The finished objects, and the one that is being made.
const taken = () => {
  const drawn = now.current.masks[now.current.chosen];
  return [...now.objects, ...(drawn ? [drawn] : [])].map(({ segmentation, area, bbox, score }) => ({ segmentation, area, bbox, score }));
};
const stem = () => picture.name.replace(/\.[^.]*$/, "");

async function saveAs(kind) {
  const { bitmap, width, height, name } = picture;
  if (kind === "coco") return save(`${stem()}.json`, new Blob([coco(name, width, height, taken())], { type: "application/json" }));
  return save(`${stem()}.${kind}.png`, await png(bitmap, width, height, taken(), kind === "cut"));
}

function take(name) {
  tool = document.body.dataset.tool = name;
  for (const button of document.querySelectorAll("[data-tool]")) {
    if (button !== document.body) button.setAttribute("aria-checked", String(button.dataset.tool === name));
  }
}

function moveCross(dx, dy) {
  const { width, height } = view.picture, from = view.cross ?? { x: width / 2, y: height / 2 };
  view.cross = { x: Math.min(Math.max(from.x + dx, 0), width), y: Math.min(Math.max(from.y + dy, 0), height) };
  view.draw();
  hover(view.cross);
}

const KEYS = {
  1: () => choose(0), 2: () => choose(1), 3: () => choose(2), Enter: finish, Escape: clear,
  "+": () => view.zoom(1.4), "=": () => view.zoom(1.4), "-": () => view.zoom(1 / 1.4), 0: () => view.fit(),
  " ": () => view.cross && click(view.cross, 1), x: () => view.cross && click(view.cross, 0),
  ArrowLeft: (step) => moveCross(-step, 0), ArrowRight: (step) => moveCross(step, 0),
  ArrowUp: (step) => moveCross(0, -step), ArrowDown: (step) => moveCross(0, step),
};

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && isBusy()) return giveUp();
  if (!picture || view.canvas.inert) return;
  const onCanvas = event.target === view.canvas || event.target === document.body;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    return undo();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || !onCanvas) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act(Math.max(1, (event.shiftKey ? 2 : 16) / view.scale));
});

listen(view, () => tool, {
  click, hover, leave,
  box: (box) => prompt({ points: (asking ?? now.current).points, box }),
  dragBox: (box) => {
    view.box = box ?? (asking ?? now.current).box;
    view.draw();
  },
});

for (const button of document.querySelectorAll("#tools button")) button.addEventListener("click", () => take(button.dataset.tool));
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", () => open(button.dataset.sample, (signal) => api.sample(button.dataset.sample, signal)));
}
for (const [name, act] of Object.entries({
  undo, clear, finish, stop: giveUp, everything: findAll, "zoom-in": () => view.zoom(1.4), "zoom-out": () => view.zoom(1 / 1.4),
  "zoom-fit": () => view.fit(), "export-png": () => saveAs("mask"), "export-cut": () => saveAs("cut"),
  "export-coco": () => saveAs("coco"), open: () => element("file").click(), choose: () => element("file").click(),
})) element(name).addEventListener("click", act);
element("file").addEventListener("change", ({ target }) => {
  openFile(target.files[0]);
  target.value = "";
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  openFile(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => openFile(event.clipboardData.files[0]));
if (matchMedia("(pointer: coarse)").matches) {
  element("drop").textContent = "Segment a photo"; // nothing can be dropped with a finger
  element("hint").textContent = "Tap to add, drag for a box, two fingers to zoom and move.";
}
take("add");
render();
document.body.inert = false; // index.html sets it: a click before the script has come would be lost without a word
api.about().then(
  ({ model, executed }) => { element("model").textContent = `${model} · ${executed}`; },
  (error) => toast(error.message),
);
