// What is taken away: pictures and COCO's JSON, made here, at the picture's full size.

import { union } from "/page/raster.js";

export function coco(name, width, height, masks) {
  return JSON.stringify({
    images: [{ id: 1, file_name: name, width, height }],
    categories: [{ id: 1, name: "object" }],
    annotations: masks.map((mask, index) => ({
      id: index + 1, image_id: 1, category_id: 1, iscrowd: 0, area: mask.area, bbox: mask.bbox, score: mask.score,
      segmentation: mask.segmentation,
    })),
  });
}

// 255 in the masks and 0 elsewhere; or the picture itself, transparent outside of them.
export async function png(bitmap, width, height, masks, cut) {
  const canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d");
  if (cut) pen.drawImage(bitmap, 0, 0, width, height);
  const alpha = union(masks, width, height), pixels = pen.getImageData(0, 0, width, height);
  for (let at = 0; at < alpha.length; at++) {
    if (cut) pixels.data[at * 4 + 3] = alpha[at];
    else pixels.data.set([alpha[at], alpha[at], alpha[at], 255], at * 4);
  }
  pen.putImageData(pixels, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
