// Mouse, pen and fingers on the canvas, as what they mean: a click, a box, a move, a zoom, a place that is hovered over.

const STILL = 5; // CSS pixels that a click may wander

export function listen(view, tool, meant) {
  const { canvas } = view, down = new Map();
  let started = null, pinch = null;
  const at = (event) => {
    const frame = canvas.getBoundingClientRect();
    return { x: event.clientX - frame.left, y: event.clientY - frame.top };
  };

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    if (!view.picture) return;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, at(event));
    meant.leave();
    if (down.size >= 2) {
      pinch = spread();
      started = null;
      meant.dragBox(null);
      return;
    }
    started = {
      from: at(event), last: at(event), moved: false,
      removes: event.button === 2 || event.altKey || tool() === "remove",
      moves: event.button === 1 || tool() === "move",
    };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!view.picture) return;
    const here = at(event);
    if (down.has(event.pointerId)) down.set(event.pointerId, here);
    if (down.size >= 2) {
      // From where the fingers came down: what is cut off at the picture's edges on the way does not add up.
      const now = spread();
      view.stretch(pinch.was, now.length / pinch.length, pinch, now);
    } else if (started) {
      started.moved ||= Math.hypot(here.x - started.from.x, here.y - started.from.y) > STILL;
      if (started.moved && started.moves) view.move(here.x - started.last.x, here.y - started.last.y);
      else if (started.moved) meant.dragBox(box(started.from, here));
      started.last = here;
    } else if (event.pointerType === "mouse" && tool() !== "move") {
      meant.hover(view.place(here));
    }
  });
  const up = (event) => {
    const was = started;
    down.delete(event.pointerId);
    if (down.size >= 2) pinch = spread();
    if (down.size) return;
    started = pinch = null;
    if (!was || event.type === "pointercancel") return meant.dragBox(null);
    if (was.moved && !was.moves) {
      const found = box(was.from, at(event));
      meant.dragBox(null);
      if (found) meant.box(found);
    } else if (!was.moved && !was.moves) {
      const place = view.place(at(event));
      if (place) meant.click(place, was.removes ? 0 : 1);
    }
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => meant.leave());
  canvas.addEventListener("wheel", (event) => {
    if (!view.picture) return;
    event.preventDefault();
    view.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), at(event));
  }, { passive: false });

  function box(from, to) {
    const a = view.place(from, true), b = view.place(to, true);
    const found = [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];
    return found[2] - found[0] >= 1 && found[3] - found[1] >= 1 ? found : null;
  }

  // Of the first two fingers, and how the picture lies under them.
  function spread() {
    const [a, b] = [...down.values()], { x, y, scale } = view;
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, length: Math.max(20, Math.hypot(a.x - b.x, a.y - b.y)), was: { x, y, scale } };
  }
}
