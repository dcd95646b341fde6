"""How far two decoders are apart: logits, masks, scores and the mask that is chosen. Pure functions, numpy only.

Arrays that are not finite never look good: an error becomes infinity, an IoU is that of the pixels that are above 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import LABEL_ABSENT

__all__ = ["best_masks", "decibels", "flip_rate", "mask_iou", "relative_error", "selection_scores", "sqnr_db"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


def mask_iou(reference: Array, other: Array, threshold: float = 0.0) -> FloatArray:
    """Intersection over union of each mask, [..., height, width] logits cut at `threshold`, to float64 [...]; two empty: 1.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(reference, other)
    first, second = reference > threshold, other > threshold
    union = (first | second).sum((-2, -1))
    common = (first & second).sum((-2, -1))
    return np.asarray(np.where(union == 0, 1.0, common / np.maximum(union, 1)), np.float64)


def relative_error(reference: Array, other: Array, *, floor: float = 0.0) -> float:
    """Largest |difference| over the largest |reference|, or over `floor` where that is larger; infinity where not finite.

    A reference of nothing but zeros gives 0 for an equal array and infinity for any other.

    Raises:
        ValueError: the shapes differ, or the arrays are empty.
    """
    _check_shapes(reference, other)
    if not (np.isfinite(reference).all() and np.isfinite(other).all()):
        return float("inf")
    wide = np.asarray(reference, np.float64)
    largest = float(np.abs(np.asarray(other, np.float64) - wide).max())
    scale = max(float(np.abs(wide).max()), floor)
    if scale == 0.0:
        return 0.0 if largest == 0.0 else float("inf")
    return largest / scale


def sqnr_db(reference: Array, other: Array) -> float:
    """Signal to quantization noise in decibel: power of `reference` over power of the difference; infinity where equal.

    Minus infinity where `other` is not finite, or the reference is all zeros and the other is not.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(reference, other)
    if not (np.isfinite(reference).all() and np.isfinite(other).all()):
        return float("-inf")
    wide = np.asarray(reference, np.float64)
    return decibels(float(np.square(wide).sum()), float(np.square(np.asarray(other, np.float64) - wide).sum()))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers; infinity without noise, minus infinity without signal or with endless noise."""
    if noise == 0.0:
        return float("inf")
    if signal == 0.0 or not np.isfinite(noise):
        return float("-inf")
    return 10.0 * float(np.log10(signal / noise))


def selection_scores(iou_predictions: Array, point_labels: Array) -> FloatArray:
    """What SAM's rule takes the largest of, float64 [num_prompts, 4]: mask 0 from three points on, else masks 1 to 3.

    Args:
        iou_predictions: [num_prompts, 4].
        point_labels: [num_prompts, num_points]; absent points (-2) do not count.
    """
    num_points = (point_labels != LABEL_ABSENT).sum(axis=1, keepdims=True)
    return np.asarray(iou_predictions + (num_points - 2.5) * np.array([1000.0, 0.0, 0.0, 0.0]), np.float64)


def best_masks(iou_predictions: Array, point_labels: Array) -> npt.NDArray[np.int64]:
    """The mask that SAM's rule selects for each prompt, int64 [num_prompts]; arguments as `selection_scores`."""
    return np.asarray(selection_scores(iou_predictions, point_labels).argmax(axis=1), np.int64)


def flip_rate(reference: Array, other: Array) -> float:
    """Share of prompts for which another mask was chosen; both are whole numbers [num_prompts].

    Raises:
        ValueError: the shapes differ, or there is no prompt.
    """
    _check_shapes(reference, other)
    return float(np.mean(reference != other))


def _check_shapes(reference: Array, other: Array) -> None:
    if reference.shape != other.shape or reference.size == 0:
        raise ValueError(f"shapes are {list(reference.shape)} and {list(other.shape)}, must be equal and not empty")
