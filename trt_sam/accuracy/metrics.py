"""How far two decoders are apart: logits, masks, scores and the mask that is chosen. Pure functions, numpy only.

Arrays that are not finite never look good: an error becomes infinity, an IoU is that of the pixels that are above 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import LABEL_ABSENT

__all__ = [
    "best_masks",
    "boundary_iou",
    "decibels",
    "flip_rate",
    "kendall_tau",
    "mask_boundary",
    "mask_iou",
    "powers",
    "relative_error",
    "selection_scores",
    "sqnr_db",
]

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


def boundary_iou(reference: Array, other: Array, threshold: float = 0.0, band: float = 0.02) -> FloatArray:
    """IoU of the inner edges of each mask (`mask_boundary`); arguments and result as `mask_iou`.

    Where `mask_iou` forgives a large mask a wrong edge, this does not.

    Source: Cheng, Girshick, Dollar, Berg, Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
    CVPR 2021; `band` is theirs for COCO and LVIS.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(reference, other)
    first, second = (mask_boundary(logits > threshold, band) for logits in (reference, other))
    return mask_iou(first, second, 0.5)


def mask_boundary(mask: npt.NDArray[np.bool_], band: float = 0.02) -> npt.NDArray[np.bool_]:
    """The pixels of bool masks [..., height, width] that lie within d of their edge; the picture's border is an edge too.

    d is `band` times the diagonal, rounded, at least 1 pixel; distance is the larger of rows and columns (erosion by a square
    of 2 d + 1), as in the paper's code.
    """
    height, width = mask.shape[-2:]
    reach = max(1, round(band * float(np.hypot(height, width))))
    eroded = _eroded(_eroded(mask, reach, -1), reach, -2)
    return mask & ~eroded


def kendall_tau(reference: Array, other: Array) -> FloatArray:
    """Kendall's tau-a of each row: pairs in the same order less pairs in the opposite one, over all pairs; 1 is the same order.

    A tie, and a value that is not finite, counts as neither.

    Args:
        reference: [num_prompts, num_scores], at least two scores.
        other: likewise.

    Returns:
        float64 [num_prompts], -1 to 1.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(reference, other)
    first, second = np.triu_indices(reference.shape[1], 1)
    with np.errstate(invalid="ignore"):
        orders = [np.sign(np.asarray(each, np.float64)[:, first] - each[:, second]) for each in (reference, other)]
    return np.asarray(np.nan_to_num(orders[0] * orders[1]).mean(axis=1), np.float64)


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
    signal, noise = powers(reference.reshape(1, -1), other.reshape(1, -1))
    return decibels(float(signal[0]), float(noise[0]))


def powers(reference: Array, other: Array) -> tuple[FloatArray, FloatArray]:
    """Power of each row of `reference` and of its difference, float64 [rows] both; 0 and infinity where one is not finite.

    Their sums over rows give the SQNR of all rows together (`decibels`).

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(reference, other)
    wide = np.asarray(reference, np.float64).reshape(len(reference), -1)
    narrow = np.asarray(other, np.float64).reshape(len(other), -1)
    finite = np.isfinite(wide).all(axis=1) & np.isfinite(narrow).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = narrow - wide
        signal, noise = np.einsum("ij,ij->i", wide, wide), np.einsum("ij,ij->i", difference, difference)
    return np.where(finite, signal, 0.0), np.where(finite, noise, np.inf)


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


def _eroded(mask: npt.NDArray[np.bool_], reach: int, axis: int) -> npt.NDArray[np.bool_]:
    """Where all of the 2 reach + 1 pixels around, along `axis`, are set; what lies outside is not."""
    pad = [(0, 0)] * mask.ndim
    pad[axis] = (reach, reach)
    run, width = np.moveaxis(np.pad(mask, pad), axis, 0), 1
    # run[i] says whether `width` pixels from i are set: doubling gets there in log2 steps.
    while width < 2 * reach + 1:
        step = min(width, 2 * reach + 1 - width)
        run, width = run[:-step] & run[step:], width + step
    return np.moveaxis(run, 0, axis)


def _check_shapes(reference: Array, other: Array) -> None:
    if reference.shape != other.shape or reference.size == 0:
        raise ValueError(f"shapes are {list(reference.shape)} and {list(other.shape)}, must be equal and not empty")
