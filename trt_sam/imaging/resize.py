"""Bilinear resizing and SAM's changes of frame, equal to PyTorch's to float rounding. numpy only.

Three frames occur: the original image, the 1024 x 1024 frame that the image encoder sees (image scaled to a long side of 1024,
padded at the bottom and on the right), and the 256 x 256 low-resolution masks, which cover the whole 1024 frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import FRAME_SIZE
from trt_sam.imaging.photos import frame_shape

__all__ = ["bilinear", "boxes_to_frame", "coords_to_frame", "postprocess_masks", "postprocess_window"]

FloatArray = npt.NDArray[np.float32]

_ROUNDING = 1e-3
"""Far more than what rounding adds to a weighted mean of logits."""
_BLOCK = 32
"""Rows that are mapped at a time: their temporaries fit in the cache."""


def bilinear(images: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Resize float32 [..., height, width] to `size` (height, width).

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` on the CPU, which is without antialiasing.
    """
    height, width = images.shape[-2:]
    return _apply(images, _line(height, size[0]), _line(width, size[1]))


def postprocess_masks(low_res_masks: FloatArray, original_size: tuple[int, int]) -> FloatArray:
    """Bring mask logits float32 [..., n, n] (n is 256) to [..., height, width] of the original image.

    As SAM does: bilinear to 1024 x 1024, crop of the padding, bilinear to `original_size` (height, width). All three are one
    linear map per axis, applied at once: the 1024 x 1024 picture never exists.

    Raises:
        InputError: an image so narrow that SAM cannot see it.
    """
    unpadded = frame_shape(*original_size)
    low_height, low_width = low_res_masks.shape[-2:]
    rows = _line_through_frame(low_height, unpadded[0], original_size[0])
    columns = _line_through_frame(low_width, unpadded[1], original_size[1])
    return _apply(low_res_masks, rows, columns)


def postprocess_window(
    low_res_mask: FloatArray, original_size: tuple[int, int], above: float
) -> tuple[FloatArray, tuple[int, int]]:
    """The part of `postprocess_masks` of one mask float32 [n, n] outside of which every logit is at most `above`.

    A small mask of a large image costs what its own size does.

    Returns:
        logits float32 [h, w], equal to those of the whole, and the (row, column) of their first in the image; h and w are 0
        where no logit is above.

    Raises:
        InputError: as `postprocess_masks`.
    """
    unpadded = frame_shape(*original_size)
    low_height, low_width = low_res_mask.shape
    rows = _line_through_frame(low_height, unpadded[0], original_size[0])
    columns = _line_through_frame(low_width, unpadded[1], original_size[1])
    # A mean of logits is not above the largest of them, but for its rounding.
    seen = low_res_mask > above - _ROUNDING * max(1.0, abs(above))
    top, bottom = _touched(rows, np.nonzero(seen.any(axis=1))[0])
    left, right = _touched(columns, np.nonzero(seen.any(axis=0))[0])
    if top >= bottom or left >= right:
        return np.empty((0, 0), np.float32), (0, 0)
    first, last = rows.first[top], rows.first[bottom - 1] + rows.weights.shape[1]
    part = _apply(low_res_mask[first:last], rows.part(top, bottom, int(first)), columns.part(left, right))
    return part, (top, left)


def coords_to_frame(coords: npt.NDArray[Any], original_size: tuple[int, int]) -> FloatArray:
    """Scale points [..., 2], (x, y) in pixels of the original image, to float32 in the 1024 frame.

    The factor is that of the rounded sizes, per axis, as in Meta's code.
    """
    height, width = original_size
    new_height, new_width = frame_shape(height, width)
    factors = np.array([new_width / width, new_height / height])
    with np.errstate(over="ignore"):
        return (np.asarray(coords, dtype=np.float64) * factors).astype(np.float32)


def boxes_to_frame(boxes: npt.NDArray[Any], original_size: tuple[int, int]) -> FloatArray:
    """Scale boxes [..., 4], (x0, y0, x1, y1) in pixels of the original image, to corners float32 [..., 2, 2]."""
    boxes = np.asarray(boxes)
    return coords_to_frame(boxes.reshape(*boxes.shape[:-1], 2, 2), original_size)


@dataclass(frozen=True)
class _Line:
    """A linear map of one axis: result[i] = sum over k of source[first[i] + k] * weights[i, k]."""

    first: npt.NDArray[np.intp]
    weights: FloatArray
    """float32 [length, taps]."""

    def part(self, start: int, stop: int, origin: int = 0) -> _Line:
        """The map of the results from `start` to before `stop`, from the samples that begin with `origin`."""
        return _Line(self.first[start:stop] - origin, self.weights[start:stop])


def _touched(line: _Line, samples: npt.NDArray[np.intp]) -> tuple[int, int]:
    """First of the results, and the one after the last, that read one of `samples` (rising) or lie between such."""
    if not len(samples):
        return 0, 0
    taps = line.weights.shape[1]
    start = np.searchsorted(line.first, samples[0] - taps + 1, side="left")
    return int(start), int(np.searchsorted(line.first, samples[-1], side="right"))


@lru_cache(maxsize=64)
def _line(source: int, target: int) -> _Line:
    """Bilinear resizing of an axis of `source` samples to `target`."""
    return _gathered(*_neighbours(source, target), source)


@lru_cache(maxsize=64)
def _line_through_frame(source: int, unpadded: int, target: int) -> _Line:
    """The axis to FRAME_SIZE samples, cut to the first `unpadded`, to `target`."""
    inner_index, inner_weight = _neighbours(source, FRAME_SIZE)
    outer_index, outer_weight = _neighbours(unpadded, target)
    index = inner_index[outer_index].reshape(target, 4)
    weight = (inner_weight[outer_index] * outer_weight[:, :, None]).reshape(target, 4)
    return _gathered(index, weight, source)


def _neighbours(source: int, target: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """The two samples between which each result lies, and their shares: both [target, 2]."""
    # PyTorch's scale is float32 and shows in the weights; its fused multiply-add rounds once, as float64 and back does.
    scale = np.float64(np.float32(source) / np.float32(target))
    position = np.maximum(scale * (np.arange(target) + 0.5) - 0.5, 0).astype(np.float32)
    low = np.minimum(position.astype(np.intp), source - 1)
    share = np.clip(position - low.astype(np.float32), 0, 1)
    return np.stack([low, np.minimum(low + 1, source - 1)], axis=1), np.stack([1 - share, share], axis=1)


def _gathered(index: npt.NDArray[np.intp], weight: FloatArray, source: int) -> _Line:
    """Collect weights of the same sample, so that a result reads few consecutive samples."""
    taps = int((index.max(axis=1) - index.min(axis=1)).max()) + 1
    first = np.minimum(index.min(axis=1), source - taps)
    weights = np.zeros((len(index), taps), np.float32)
    np.add.at(weights, (np.arange(len(index))[:, None], index - first[:, None]), weight)
    return _Line(first, weights)


def _apply(images: FloatArray, rows: _Line, columns: _Line) -> FloatArray:
    """Map both axes of [..., height, width]; columns first, while the picture is still small."""
    flat = images.reshape(-1, *images.shape[-2:])
    result = np.empty((len(flat), len(rows.first), len(columns.first)), np.float32)
    for picture, target in zip(flat, result, strict=True):
        wide = np.ascontiguousarray(_apply_rows(np.ascontiguousarray(picture.T), columns).T)
        _apply_rows(wide, rows, target)
    return result.reshape(*images.shape[:-2], *result.shape[1:])


def _apply_rows(picture: FloatArray, line: _Line, out: FloatArray | None = None) -> FloatArray:
    """Map the first axis of [height, width]."""
    if out is None:
        out = np.empty((len(line.first), picture.shape[1]), np.float32)
    for start in range(0, len(out), _BLOCK):
        block = slice(start, start + _BLOCK)
        first, weights = line.first[block], line.weights[block]
        np.multiply(picture[first], weights[:, :1], out=out[block])
        for k in range(1, weights.shape[1]):
            out[block] += picture[first + k] * weights[:, k : k + 1]
    return out
