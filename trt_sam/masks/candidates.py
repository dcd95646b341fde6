"""The masks that a mask generator has found so far, and the filters that a chunk of the decoder's results goes through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.formats.runs import Runs
from trt_sam.imaging.resize import postprocess_window
from trt_sam.masks.crops import Crop

__all__ = ["Candidates", "Thresholds", "candidates_of"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

MASK_THRESHOLD = 0.0
"""A pixel belongs to a mask where its logit is above this, as in SAM."""
_EDGE_PIXELS = 20.0
"""A mask whose box comes this close to the edge of a crop, and not to that of the image, is cut by the crop."""


@dataclass(frozen=True)
class Thresholds:
    """What a mask must reach; 0 or less turns a filter off."""

    predicted_iou: float
    """The decoder's own estimate must be above this."""
    stability: float
    """The stability score must be at least this."""
    stability_offset: float
    """The score is the IoU of the masks at this much above and below the threshold of the logits."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """n masks, in the order of their points, each with what its record needs."""

    runs: Sequence[Runs]
    """In the image's size."""
    boxes: npt.NDArray[np.int64]
    """[n, 4], (x0, y0, x1, y1) of the first and last pixels in the image."""
    predicted_iou: FloatArray
    """[n]."""
    stability: FloatArray
    """[n]."""
    points: npt.NDArray[np.float64]
    """[n, 2], (x, y) in pixels of the image: the click."""
    crops: Sequence[Crop]

    def __len__(self) -> int:
        return len(self.runs)

    def chosen(self, indices: Iterable[int]) -> Candidates:
        """Those at `indices`, in their order."""
        rows = np.fromiter(indices, np.intp)
        return Candidates(
            [self.runs[i] for i in rows],
            self.boxes[rows],
            self.predicted_iou[rows],
            self.stability[rows],
            self.points[rows],
            [self.crops[i] for i in rows],
        )

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """All of all parts, in order."""
        return cls(
            [runs for part in parts for runs in part.runs],
            np.concatenate([np.empty((0, 4), np.int64), *(part.boxes for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.predicted_iou for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.stability for part in parts)]),
            np.concatenate([np.empty((0, 2)), *(part.points for part in parts)]),
            [crop for part in parts for crop in part.crops],
        )


def candidates_of(
    low_res_masks: FloatArray,
    predicted_iou: FloatArray,
    points: npt.NDArray[np.float64],
    crop: Crop,
    image_size: tuple[int, int],
    thresholds: Thresholds,
) -> Candidates:
    """The masks of one call that pass the filters; logits at full size exist for one mask at a time, and within its box.

    Args:
        low_res_masks: logits [B, k, 256, 256] of clicks on `crop`.
        predicted_iou: [B, k].
        points: [B, 2], (x, y) in pixels of the crop.
        crop: the part of the image that was clicked on.
        image_size: (height, width) of the image.
        thresholds: of the filters.
    """
    found = []
    for row, column in np.argwhere(_passes(predicted_iou, thresholds.predicted_iou)):
        seen = _measured(low_res_masks[row, column], crop, image_size, thresholds)
        if seen is not None:
            found.append((*seen, predicted_iou[row, column], points[row] + (crop.x0, crop.y0)))
    if not found:
        return Candidates.joined([])
    runs, boxes, stability, scores, clicks = zip(*found, strict=True)
    return Candidates(
        runs,
        np.array(boxes, np.int64),
        np.array(scores, np.float32),
        np.array(stability, np.float32),
        np.array(clicks, np.float64),
        [crop] * len(found),
    )


def _passes(scores: FloatArray, threshold: float) -> npt.NDArray[np.bool_]:
    return scores > threshold if threshold > 0 else np.ones(scores.shape, np.bool_)


def _measured(
    low_res_mask: FloatArray, crop: Crop, image_size: tuple[int, int], thresholds: Thresholds
) -> tuple[Runs, tuple[int, int, int, int], np.float32] | None:
    """Runs, box in the image and stability of a mask, or None where it does not pass."""
    offset = thresholds.stability_offset
    logits, (top, left) = postprocess_window(low_res_mask, crop.size, MASK_THRESHOLD - abs(offset))
    inner = np.count_nonzero(logits > MASK_THRESHOLD + offset)
    outer = np.count_nonzero(logits > MASK_THRESHOLD - offset)
    # Meta's score of a mask without a pixel at either threshold is 0 / 0; both pass no threshold above 0.
    stability = np.float32(inner) / np.float32(outer) if outer else np.float32(0)
    if thresholds.stability > 0 and not stability >= thresholds.stability:
        return None
    runs = Runs.of(logits > MASK_THRESHOLD, top=top + crop.y0, left=left + crop.x0, size=image_size)
    box = runs.box if runs.area else (crop.x0, crop.y0, crop.x0, crop.y0)
    return None if _cut_by(crop, box, image_size) else (runs, box, stability)


def _cut_by(crop: Crop, box: tuple[int, int, int, int], image_size: tuple[int, int]) -> bool:
    """Whether a box touches an edge of the crop that is not one of the image."""
    height, width = image_size
    edges, ends = np.array([crop.x0, crop.y0, crop.x1, crop.y1]), np.array([0, 0, width, height])
    near_crop, near_image = np.abs(box - edges) <= _EDGE_PIXELS, np.abs(box - ends) <= _EDGE_PIXELS
    return bool((near_crop & ~near_image).any())
