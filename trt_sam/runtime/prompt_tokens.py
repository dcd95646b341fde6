"""The prompts of a `Predictor` call, in whatever arrays they come, as the decoder's tokens. numpy only.

A prompt becomes tokens as in Meta's code: its points, then one "not a point" (-1) where there is no box, else the box as two
corners. Two points with labels 2 and 3 are a box as well, as users of Meta's ONNX export write it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import LABEL_ABSENT, LABEL_BOX_END, LABEL_BOX_START, LABEL_NOT_A_POINT, LOW_RES_SIZE
from trt_sam.errors import InputError

__all__ = ["Prompt", "as_array", "as_boxes", "as_image_size", "as_masks", "batch_size", "padded", "prompt_tokens"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Prompt = tuple[FloatArray, FloatArray]
"""Points float32 [n, 2] in the 1024 frame and their labels float32 [n]; n may be 0."""


def as_array(name: str, value: Any) -> Array:
    """Numbers in an array, a list, or a torch tensor of any type, device and history, as numpy on the host.

    Raises:
        InputError: it is no array of numbers, or one of a GPU that only its owner can copy.
    """
    try:
        array = _on_host(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name} is a {type(value).__name__} that numpy cannot take ({reason}); give a numpy array") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} is an array of {array.dtype}, must be numbers")
    return array


def _on_host(value: Any) -> Array:
    if isinstance(value, list | tuple):
        return np.asarray(
            [_on_host(each) if hasattr(each, "detach") or isinstance(each, list | tuple) else each for each in value]
        )
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point() and value.itemsize < 4:
            value = value.float()  # numpy has no bfloat16
    return np.asarray(value)


def as_image_size(value: Any, name: str = "original_size") -> tuple[int, int]:
    """(height, width), both at least 1, of any pair of whole numbers; raises InputError where it is not that."""
    advice = "must be (height, width), both at least 1: image.shape[:2]"
    try:
        sizes = tuple(_whole(each) for each in value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name} is {value!r}, {advice}") from None
    if len(sizes) != 2 or min(sizes) < 1:
        raise InputError(f"{name} is {sizes}, {advice}")
    return sizes[0], sizes[1]


def _whole(number: Any) -> int:
    if isinstance(number, float | np.floating) and float(number).is_integer():
        return int(number)
    return operator.index(number)


def as_boxes(boxes: Any, count: int) -> Array:
    """Boxes as [count, 4], (x0, y0, x1, y1); raises InputError where they are not that."""
    array = as_array("box", boxes)
    if array.shape != (count, 4):
        raise InputError(f"box has shape {list(array.shape)}, must be [{count}, 4], (x0, y0, x1, y1) for each prompt")
    return array


def as_masks(mask_input: Any, count: int) -> FloatArray:
    """Earlier masks as float32 [count, 1, 256, 256]; raises InputError where they are not that."""
    array = as_array("mask_input", mask_input)
    if array.shape != (count, 1, LOW_RES_SIZE, LOW_RES_SIZE):
        expected = f"[1, {LOW_RES_SIZE}, {LOW_RES_SIZE}] for each prompt: low_res_masks of an earlier call"
        raise InputError(f"mask_input has shape {list(array.shape[1:])}, must be {expected}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def batch_size(**inputs: Any) -> int:
    """How many prompts the inputs hold, those that are None apart: one where nothing says it, as in Meta's code.

    Raises:
        InputError: their numbers differ, or there is none.
    """
    sizes = {name: _rows(name, value) for name, value in inputs.items() if value is not None}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"prompts by input: {found}; each must have the same number, at least 1")
    return next(iter(sizes.values()), 1)


def prompt_tokens(
    count: int, points: Any, labels: Any, corners: FloatArray | None, to_frame: Callable[[Array], FloatArray]
) -> list[Prompt]:
    """The tokens of each prompt, Meta's "not a point" included.

    Args:
        count: how many prompts there are.
        points: one [N, 2] for each prompt, of any N; None for a prompt without points, or for all.
        labels: one [N] for each prompt; None where `points` is.
        corners: [count, 2, 2] in the frame.
        to_frame: brings points to the frame.

    Raises:
        InputError: points and labels do not match, or box corners among them are no pair.
    """
    if points is not None and labels is None:
        raise InputError("point_coords came without point_labels; give a label to each point, 1 foreground or 0 background")
    if labels is not None and (found := _rows("point_labels", labels)) != count:
        raise InputError(f"point_labels has {found} prompts, but there are {count}; they must agree")
    prompts = []
    for row in range(count):
        given = None if points is None else points[row]
        coords, kinds = np.empty((0, 2), np.float32), np.empty(0, np.float32)
        if given is not None:
            coords, kinds = _points(given, labels[row], to_frame)
        if corners is not None:
            coords = np.concatenate([coords, corners[row]])
            kinds = np.append(kinds, [LABEL_BOX_START, LABEL_BOX_END])
        elif given is not None and not _holds_box(kinds):
            coords, kinds = np.append(coords, np.zeros((1, 2), np.float32), axis=0), np.append(kinds, LABEL_NOT_A_POINT)
        prompts.append((coords, kinds.astype(np.float32)))
    return prompts


def padded(prompts: Sequence[Prompt], least: int) -> tuple[FloatArray, FloatArray]:
    """Prompts of unequal length as point_coords [B, P, 2] and point_labels [B, P], filled up with absent points."""
    length = max(least, 1, *(len(kinds) for _, kinds in prompts))
    coords = np.zeros((len(prompts), length, 2), np.float32)
    labels = np.full((len(prompts), length), LABEL_ABSENT, np.float32)
    for row, (points, kinds) in enumerate(prompts):
        coords[row, : len(kinds)] = points
        labels[row, : len(kinds)] = kinds
    return coords, labels


def _rows(name: str, value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}, must hold one entry for each prompt") from None


def _points(points: Any, labels: Any, to_frame: Callable[[Array], FloatArray]) -> Prompt:
    points = as_array("point_coords", points)
    kinds = as_array("point_labels", [] if labels is None else labels)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"point_coords has shape {list(points.shape)}, must be [N, 2]")
    if kinds.shape != points.shape[:1]:
        raise InputError(f"point_labels has shape {list(kinds.shape)}, must be [{len(points)}]: a label to each point")
    return to_frame(points), kinds.astype(np.float32)


def _holds_box(kinds: FloatArray) -> bool:
    """Whether the labels of a prompt's points have a box's corners among them, which take the place of "not a point"."""
    starts, ends = int((kinds == LABEL_BOX_START).sum()), int((kinds == LABEL_BOX_END).sum())
    if starts != ends:
        raise InputError(
            f"point_labels holds {starts} times 2 and {ends} times 3; they are the corners of a box and come in pairs"
        )
    return starts > 0
