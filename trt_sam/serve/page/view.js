// The canvas: picture, masks, prompts; zoomed and moved. Places are in pixels of the picture.

const MOST = 24; // screen pixels for a pixel of the picture

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.picture = null;
    this.scale = 1;
    this.x = this.y = 0; // of the picture's corner, in CSS pixels
    this.layers = []; // of `raster`, from below
    this.preview = null;
    this.points = []; // {x, y, label}
    this.box = null; // [x0, y0, x1, y1]
    this.cross = null; // {x, y}
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  show(bitmap, width, height) {
    this.picture = { bitmap, width, height };
    this.cross = null;
    this.fit();
  }

  resize() {
    const before = this.size, ratio = devicePixelRatio || 1;
    this.size = { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
    this.canvas.width = Math.round(this.size.width * ratio);
    this.canvas.height = Math.round(this.size.height * ratio);
    if (this.picture && (!before || before.width !== this.size.width || before.height !== this.size.height)) this.fit();
    this.draw();
  }

  fit() {
    if (!this.picture || !this.size) return;
    const { width, height } = this.picture;
    this.least = Math.min((this.size.width - 16) / width, (this.size.height - 16) / height);
    this.scale = this.least;
    this.x = (this.size.width - width * this.scale) / 2;
    this.y = (this.size.height - height * this.scale) / 2;
    this.draw();
  }

  zoom(factor, at = { x: this.size.width / 2, y: this.size.height / 2 }) {
    this.stretch(this, factor, at, at);
  }

  // As it was in `was` ({x, y, scale}), drawn out by `factor`, with what lay at `from` then at `to`.
  stretch(was, factor, from, to) {
    const scale = Math.min(Math.max(was.scale * factor, this.least), Math.max(MOST, this.least));
    if (scale <= this.least) return this.fit();
    [this.x, this.y] = [to.x - (from.x - was.x) * scale / was.scale, to.y - (from.y - was.y) * scale / was.scale];
    this.scale = scale;
    this.keepInSight();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.keepInSight();
  }

  keepInSight() {
    const { width, height } = this.picture;
    const edge = (at, length, room) => length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, at));
    this.x = edge(this.x, width * this.scale, this.size.width);
    this.y = edge(this.y, height * this.scale, this.size.height);
    this.draw();
  }

  // From CSS pixels of the canvas to the picture; null outside of it.
  place(at, clamp = false) {
    if (!this.picture) return null;
    const { width, height } = this.picture;
    const x = (at.x - this.x) / this.scale, y = (at.y - this.y) / this.scale;
    if (clamp) return { x: Math.min(Math.max(x, 0), width), y: Math.min(Math.max(y, 0), height) };
    return x >= 0 && y >= 0 && x <= width && y <= height ? { x, y } : null;
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
    });
  }

  paint() {
    const { pen, canvas } = this, ratio = devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.picture) return;
    pen.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.x, ratio * this.y);
    pen.imageSmoothingEnabled = this.scale < 4;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.picture.bitmap, 0, 0, this.picture.width, this.picture.height);
    pen.imageSmoothingEnabled = true;
    for (const layer of this.layers) pen.drawImage(layer.canvas, layer.x, layer.y, layer.width, layer.height);
    if (this.preview) {
      pen.globalAlpha = 0.7;
      pen.drawImage(this.preview.canvas, this.preview.x, this.preview.y, this.preview.width, this.preview.height);
      pen.globalAlpha = 1;
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.box) this.paintBox(this.box);
    for (const point of this.points) this.paintPoint(point);
    if (this.cross) this.paintCross(this.cross);
  }

  paintBox([x0, y0, x1, y1]) {
    const { pen } = this, at = [this.x + x0 * this.scale, this.y + y0 * this.scale, (x1 - x0) * this.scale, (y1 - y0) * this.scale];
    pen.lineWidth = 4;
    pen.strokeStyle = "#000a";
    pen.strokeRect(...at);
    pen.lineWidth = 2;
    pen.strokeStyle = "#ffd84a";
    pen.strokeRect(...at);
  }

  paintPoint({ x, y, label }) {
    const { pen } = this, at = [this.x + x * this.scale, this.y + y * this.scale];
    pen.beginPath();
    pen.arc(...at, 7, 0, 7);
    pen.fillStyle = label ? "#1f9d4d" : "#d43a2a";
    pen.fill();
    pen.lineWidth = 2;
    pen.strokeStyle = "#fff";
    pen.stroke();
    pen.beginPath();
    pen.moveTo(at[0] - 3.5, at[1]);
    pen.lineTo(at[0] + 3.5, at[1]);
    if (label) {
      pen.moveTo(at[0], at[1] - 3.5);
      pen.lineTo(at[0], at[1] + 3.5);
    }
    pen.stroke();
  }

  paintCross({ x, y }) {
    const { pen } = this, cx = this.x + x * this.scale, cy = this.y + y * this.scale;
    for (const [width, colour] of [[4, "#000a"], [1.5, "#fff"]]) {
      pen.lineWidth = width;
      pen.strokeStyle = colour;
      pen.beginPath();
      pen.moveTo(cx - 14, cy);
      pen.lineTo(cx + 14, cy);
      pen.moveTo(cx, cy - 14);
      pen.lineTo(cx, cy + 14);
      pen.stroke();
    }
  }
}
