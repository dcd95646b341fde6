"""Removing boxes that overlap better ones: greedy non-maximum suppression, as torchvision's `nms`. numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["without_overlaps"]


def without_overlaps(boxes: npt.NDArray[np.int64], scores: npt.NDArray[np.floating], threshold: float) -> npt.NDArray[np.intp]:
    """Indices of the boxes that stay, best score first; of equal scores the earlier.

    Args:
        boxes: [n, 4], (x0, y0, x1, y1); the area is (x1 - x0) (y1 - y0).
        scores: [n].
        threshold: a box whose IoU with one that stays is above this goes.
    """
    corners = boxes.astype(np.float32)
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    left = np.argsort(-scores, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        sides = np.minimum(corners[best, 2:], corners[left, 2:]) - np.maximum(corners[best, :2], corners[left, :2])
        shared = np.maximum(sides, 0).prod(axis=1)
        # Two boxes without area have IoU 0 / 0, which is not above anything: both stay.
        with np.errstate(invalid="ignore", divide="ignore"):
            left = left[~(shared / (areas[best] + areas[left] - shared) > threshold)]
    return np.array(kept, np.intp)
