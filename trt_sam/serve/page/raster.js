// COCO's compressed RLE to pictures. Runs go down the columns of the picture, the first of them outside of the mask.

const LONGEST = 2048; // pixels of a mask's long side that are drawn; the export has all of them

export function counts(text) {
  const found = [];
  let at = 0;
  while (at < text.length) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
      more = (code & 32) !== 0;
      if (!more && code & 16) value |= -1 << shift;
    }
    found.push(found.length > 2 ? value + found[found.length - 2] : value);
  }
  return found;
}

// Calls fill(column, first row, row after the last) for each stretch of a column that is in the mask.
export function eachStretch(segmentation, fill) {
  const [height] = segmentation.size;
  let at = 0, inside = false;
  for (const length of counts(segmentation.counts)) {
    if (inside) {
      for (let from = at; from < at + length; ) {
        const column = Math.floor(from / height), end = Math.min(at + length, (column + 1) * height);
        fill(column, from - column * height, end - column * height);
        from = end;
      }
    }
    at += length;
    inside = !inside;
  }
}

// A mask as a canvas of its box, in a colour [r, g, b], with its place in the picture.
export function raster(mask, colour) {
  const [height, width] = mask.segmentation.size, [x0, y0, boxWidth, boxHeight] = mask.bbox;
  const step = Math.max(1, Math.max(height, width) / LONGEST);
  const w = Math.max(1, Math.ceil(boxWidth / step)) + 2, h = Math.max(1, Math.ceil(boxHeight / step)) + 2;
  const inside = new Uint8Array(w * h);
  eachStretch(mask.segmentation, (column, from, to) => {
    const x = Math.floor((column - x0) / step) + 1;
    for (let y = Math.floor((from - y0) / step) + 1; y <= Math.floor((to - 1 - y0) / step) + 1; y++) inside[y * w + x] = 1;
  });
  const canvas = new OffscreenCanvas(w, h), pen = canvas.getContext("2d"), pixels = pen.createImageData(w, h);
  for (let at = 0; at < inside.length; at++) {
    if (!inside[at]) continue;
    const edge = !(inside[at - 1] && inside[at + 1] && inside[at - w] && inside[at + w]);
    pixels.data.set([...colour, edge ? 255 : 115], at * 4);
  }
  pen.putImageData(pixels, 0, 0);
  return { canvas, x: x0 - step, y: y0 - step, width: w * step, height: h * step };
}

// All masks in one picture, 255 where any is.
export function union(masks, width, height) {
  const alpha = new Uint8Array(width * height);
  for (const mask of masks) {
    eachStretch(mask.segmentation, (column, from, to) => {
      for (let y = from; y < to; y++) alpha[y * width + column] = 255;
    });
  }
  return alpha;
}

// Colours that differ well from those before.
export function colourOf(number) {
  const hue = (number * 0.618034 + 0.53) % 1, part = (shift) => {
    const t = (hue + shift) % 1 * 6;
    return Math.round(60 + 195 * Math.max(0, Math.min(1, Math.abs(t - 3) - 1)));
  };
  return [part(0), part(2 / 3), part(1 / 3)];
}
