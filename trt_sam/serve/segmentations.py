"""Masks as the answers have them: logits at the picture's size, thresholded there, as runs, polygons or a PNG.

The logits are scaled up before the threshold, as SAM does, so that edges are smooth.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.formats.pictures import png_of
from trt_sam.formats.polygons import polygons_of
from trt_sam.formats.records import box_of_pixels
from trt_sam.formats.runs import Runs
from trt_sam.imaging.resize import postprocess_window

__all__ = ["candidates", "described", "masks_of", "runs_at_size"]

FloatArray = npt.NDArray[np.float32]
_CANDIDATES = {"three": slice(1, None), "best": slice(1, None), "single": slice(0, 1)}


def candidates(low_res: FloatArray, iou: FloatArray, output: str) -> tuple[FloatArray, FloatArray]:
    """Of logits [prompts, 4, 256, 256] and scores [prompts, 4] those that `output` of a request asks for."""
    chosen = _CANDIDATES[output]
    low_res, iou = low_res[:, chosen], iou[:, chosen]
    if output == "best":
        rows, best = np.arange(len(iou)), iou.argmax(axis=1)
        low_res, iou = low_res[rows, best][:, None], iou[rows, best][:, None]
    return low_res, iou


def masks_of(logits: FloatArray, size: tuple[int, int], format: str) -> list[dict[str, Any]]:
    """`described` of each of logits float32 [n, 256, 256]."""
    return [described(runs_at_size(each, size), format) for each in logits]


def runs_at_size(logits: npt.NDArray[np.float32], size: tuple[int, int]) -> Runs:
    """The mask of low-resolution logits float32 [256, 256] on a picture of `size` (height, width)."""
    window, (top, left) = postprocess_window(logits, size, 0.0)
    if not window.size:
        return Runs.of(np.zeros((0, 0), np.bool_), size=size)
    return Runs.of(window > 0, top=top, left=left, size=size)


def described(runs: Runs, format: str) -> dict[str, Any]:
    """`area` in pixels, `bbox` [x, y, width, height] and `segmentation`.

    That is COCO's compressed RLE ("rle"), lists [x0, y0, x1, y1, ...] along the edges of pixels ("polygons"), or the base64 of
    a PNG of 0 and 255 ("png").
    """
    segmentation: Any
    if format == "rle":
        segmentation = runs.compressed()
    elif format == "polygons":
        segmentation = [ring.ravel().tolist() for ring in polygons_of(runs.mask())]
    else:
        segmentation = base64.b64encode(png_of(runs.mask().astype(np.uint8) * np.uint8(255))).decode("ascii")
    return {"area": runs.area, "bbox": box_of_pixels(runs), "segmentation": segmentation}
