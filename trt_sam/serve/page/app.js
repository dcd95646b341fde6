// The page: a picture, the object that is being clicked together, and the objects that are finished.

import * as api from "/page/api.js";
import { coco, png, save } from "/page/exports.js";
import { listen } from "/page/pointer.js";
import { colourOf, raster } from "/page/raster.js";
import { drawCandidates, drawObjects, element, showTime, toast } from "/page/panel.js";
import { View } from "/page/view.js";

const NOTHING = { points: [], box: null, masks: [], chosen: 0 };
const HOVER_MS = 60; // that the mouse rests before a preview is asked for

const view = new View(element("view"));
let picture = null; // {blob, bitmap, name, id, width, height}
let now = { current: NOTHING, objects: [] };
let before = []; // states, for undo
let tool = "add";
let turn = 0; // number of the newest prompt: answers to older ones are late
let hovering = null, hoverTimer = 0;

const colour = () => colourOf(now.objects.length);

async function open(blob, name) {
  const opened = ++turn;
  busy("Looking at the picture");
  try {
    const bitmap = await createImageBitmap(blob).catch(() => {
      throw new Error(`${name} is not a picture that the browser can read.`);
    });
    const started = performance.now(), image = await api.addImage(blob);
    if (opened !== turn) return;
    picture = { blob, bitmap, name, id: image.id, width: image.width, height: image.height };
    now = { current: NOTHING, objects: [] };
    before = [];
    document.body.dataset.state = "ready";
    view.preview = null;
    view.resize();
    view.show(bitmap, image.width, image.height);
    showTime("picture", performance.now() - started, image.times_ms);
    render();
    view.canvas.focus({ preventScroll: true });
  } catch (error) {
    toast(error.message);
  } finally {
    idle();
  }
}

// The image may have expired on the server: it is sent again then, once.
async function again(ask) {
  try {
    return await ask(picture.id);
  } catch (error) {
    if (error.code !== "image_unknown") throw error;
    picture.id = (await api.addImage(picture.blob)).id;
    return ask(picture.id);
  }
}

function asked({ points, box, mask }, more) {
  return {
    ...(points.length ? { points: points.map((p) => [p.x, p.y]), labels: points.map((p) => p.label) } : {}),
    ...(box ? { boxes: [box] } : {}),
    ...(mask ? { mask } : {}),
    ...more,
  };
}

async function prompt(points, box) {
  leave();
  const number = ++turn, wanted = { points, box };
  // Shown at once; the masks come with the answer.
  view.points = points;
  view.box = box;
  view.draw();
  busy("Segmenting");
  const started = performance.now();
  try {
    const answer = await again((id) => api.masks(id, asked(wanted, {})));
    if (number !== turn) return;
    const [{ masks, best }] = answer.results;
    change({ ...now, current: { points, box, masks, chosen: best } });
    showTime("click", performance.now() - started, answer.times_ms);
  } catch (error) {
    if (number === turn) render();
    toast(error.message);
  } finally {
    if (number === turn) idle();
  }
}

const click = (place, label) => {
  const { points, box } = now.current;
  if (!label && !points.length && !box) return toast("Add something first, then remove from it.");
  return prompt([...points, { ...place, label }], box);
};

function hover(place) {
  hovering = place;
  clearTimeout(hoverTimer);
  if (!place || now.current.masks.length || document.body.dataset.busy !== undefined) return leave();
  hoverTimer = setTimeout(async () => {
    if (hover.under) return; // one at a time; the answer asks again where the mouse has gone on
    hover.under = true;
    const number = turn, at = hovering, started = performance.now();
    try {
      const answer = await api.masks(picture.id, asked({ points: [{ ...at, label: 1 }] }, { output: "best", keep: false }));
      if (number !== turn || !hovering) return;
      view.preview = raster(answer.results[0].masks[0], colour());
      view.draw();
      showTime("preview", performance.now() - started, answer.times_ms);
    } catch {
      // A preview that fails is none; a click will say why.
    } finally {
      hover.under = false;
      if (hovering && hovering !== at && number === turn) hover(hovering);
    }
  }, HOVER_MS);
}

function leave() {
  hovering = null;
  clearTimeout(hoverTimer);
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

function undo() {
  if (!before.length) return;
  turn++;
  idle();
  now = before.pop();
  render();
}

function clear() {
  if (now.current === NOTHING) return;
  turn++;
  idle();
  change({ ...now, current: NOTHING });
}

function finish() {
  const { masks, chosen } = now.current;
  if (masks.length) change({ current: NOTHING, objects: [...now.objects, { ...masks[chosen], colour: colour() }] });
}

function choose(place) {
  if (place < now.current.masks.length && place !== now.current.chosen) change({ ...now, current: { ...now.current, chosen: place } });
}

async function findAll() {
  leave();
  const number = ++turn, started = performance.now();
  busy("Finding all objects");
  try {
    const answer = await again((id) => api.everything(id, {}));
    if (number !== turn) return;
    const objects = answer.masks.map((mask, index) => ({ ...mask, colour: colourOf(index) }));
    change({ current: NOTHING, objects });
    showTime("all objects", performance.now() - started, answer.times_ms);
  } catch (error) {
    toast(error.message);
  } finally {
    if (number === turn) idle();
  }
}

function render() {
  const { current, objects } = now, drawn = current.masks[current.chosen];
  for (const object of objects) object.raster ??= raster(object, object.colour);
  view.layers = [...objects.map((object) => object.raster), ...(drawn ? [raster(drawn, colour())] : [])];
  view.points = current.points;
  view.box = current.box;
  view.draw();
  drawCandidates(picture, current, colour(), choose);
  drawObjects(objects, (index) => change({ ...now, objects: objects.filter((_, place) => place !== index) }));
  const none = !objects.length && !drawn;
  for (const name of ["export-png", "export-cut", "export-coco"]) element(name).disabled = none;
  element("undo").disabled = !before.length;
  element("clear").disabled = current === NOTHING;
  element("finish").disabled = !drawn;
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

function busy(words) {
  element("busy-words").textContent = words;
  document.body.dataset.busy = "";
}

function idle() {
  delete document.body.dataset.busy;
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
  if (!picture) return;
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
  box: (box) => prompt(now.current.points, box),
  dragBox: (box) => {
    view.box = box ?? now.current.box;
    view.draw();
  },
});

for (const button of document.querySelectorAll("#tools button")) button.addEventListener("click", () => take(button.dataset.tool));
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    const name = button.dataset.sample;
    open(await (await fetch(`/page/${name}`)).blob(), name);
  });
}
for (const [name, act] of Object.entries({
  undo, clear, finish, everything: findAll, "zoom-in": () => view.zoom(1.4), "zoom-out": () => view.zoom(1 / 1.4),
  "zoom-fit": () => view.fit(), "export-png": () => saveAs("mask"), "export-cut": () => saveAs("cut"),
  "export-coco": () => saveAs("coco"), open: () => element("file").click(), choose: () => element("file").click(),
})) element(name).addEventListener("click", act);
element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) open(target.files[0], target.files[0].name);
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
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) open(file, file.name);
});
if (matchMedia("(pointer: coarse)").matches) element("hint").textContent = "Tap to add, drag for a box, two fingers to zoom and move.";
take("add");
render();
api.about().then(
  ({ model, executed }) => { element("model").textContent = `${model} · ${executed}`; },
  (error) => toast(error.message),
);
