"""The prompts of `decode` as callers give them, checked for shape: the same for every runner. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import (
    LABEL_ABSENT,
    LABEL_BACKGROUND,
    LABEL_BOX_END,
    LABEL_BOX_START,
    LABEL_FOREGROUND,
    LABEL_NOT_A_POINT,
    LOW_RES_SIZE,
)
from trt_sam.cuda.borrowed import is_on_device, on_host
from trt_sam.errors import ContractError

__all__ = ["CLICKS", "TOKENS", "Given", "check_labels", "given_prompts", "height_and_width", "host_array", "rows_of_prompts"]

Array = npt.NDArray[Any]

CLICKS = frozenset((float(LABEL_ABSENT), float(LABEL_BACKGROUND), float(LABEL_FOREGROUND)))
"""Labels that `decode` takes: it adds the other tokens itself."""
TOKENS = CLICKS | {float(LABEL_NOT_A_POINT), float(LABEL_BOX_START), float(LABEL_BOX_END)}
_MASK_SHAPE = (1, LOW_RES_SIZE, LOW_RES_SIZE)


@dataclass(slots=True)
class Given:
    """Prompts whose shapes agree, numbers of any type; None for what was not given."""

    count: int
    num_points: int
    """Of each prompt, without what is added."""
    tail: str
    """What is added: "corners" of a box, the "not a point" after clicks ("point"), or ""."""
    points: Array | None
    """[count, num_points, 2]."""
    labels: Array | None
    """[count, num_points]."""
    boxes: Array | None
    """[count, 2, 2]: both corners of each."""
    mask_input: Array | None
    """[count, 1, 256, 256]."""


def given_prompts(points: Any, labels: Any, boxes: Any, mask_input: Any) -> Given:
    """Check the shapes of `decode`'s arguments.

    Raises:
        ContractError: a shape or type that does not fit, numbers of prompts that differ, or no prompt at all.
    """
    count = num_points = 0
    if points is not None:
        points, labels = _batched(points, labels)
        count, num_points = points.shape[:2]
    elif labels is not None:
        raise ContractError("labels came without points; give both or none")
    if boxes is not None:
        boxes = host_array(boxes, "boxes")
        if boxes.shape[-1:] != (4,) or boxes.ndim > 2 or boxes.dtype.kind not in "fiu":
            found = f"{boxes.dtype} {list(boxes.shape)}"
            raise ContractError(f"boxes are {found}, must be numbers [num_prompts, 4], (x0, y0, x1, y1)")
        boxes = boxes.reshape(-1, 2, 2)
        count = _agreed(count, len(boxes), "boxes")
    if mask_input is not None:
        mask_input = host_array(mask_input, "mask_input")
        if mask_input.shape[1:] != _MASK_SHAPE or mask_input.dtype.kind != "f":
            found = f"{mask_input.dtype} {list(mask_input.shape)}"
            raise ContractError(f"mask_input is {found}, must be float32 [num_prompts, 1, 256, 256]")
        count = _agreed(count, len(mask_input), "mask_input")
    if count == 0:
        raise ContractError("there is no prompt; give points with labels, boxes, or a mask_input")
    tail = "corners" if boxes is not None else "point" if points is not None else ""
    return Given(count, num_points, tail, points, labels, boxes, mask_input)


def rows_of_prompts(points: Any, labels: Any, boxes: Any, mask_input: Any) -> tuple[int, int, list[Array | None]]:
    """How many prompts there are, how many tokens each has, and the four arguments as arrays whose rows are the prompts.

    Raises:
        ContractError: numbers of prompts that differ, or no prompt at all; shapes are checked with each call.
    """
    named = {"points": points, "labels": labels, "boxes": boxes, "mask_input": mask_input}
    given = [None if each is None else host_array(each, name) for name, each in named.items()]
    if given[0] is not None and given[0].ndim == 2:
        given[:2] = [given[0][None], None if given[1] is None else given[1][None]]
    if given[2] is not None and given[2].ndim == 1:
        given[2] = given[2][None]
    counts = {len(each) if each.ndim else 0 for each in given if each is not None}
    if counts <= {0}:
        raise ContractError("there is no prompt; give points with labels, boxes, or a mask_input")
    if len(counts) != 1:
        raise ContractError(f"points, labels, boxes and mask_input have {sorted(counts)} prompts; they must agree")
    points, boxes = given[0], given[2]
    num_points = points.shape[1] if points is not None and points.ndim > 1 else 0
    return counts.pop(), num_points + (2 if boxes is not None else int(points is not None)), given


def check_labels(rows: Iterable[Sequence[float]], *, with_tail: bool) -> None:
    """Raise ContractError for a label that is not allowed, where box corners or the "not a point" are added, or not."""
    allowed = CLICKS if with_tail else TOKENS
    for row in rows:
        if not allowed.issuperset(row):
            wrong = next(label for label in row if label not in allowed)
            added = "; box corners and the -1 after clicks are added here, `run` takes raw tokens" if with_tail else ""
            known = ", ".join(f"{label:g}" for label in sorted(allowed))
            raise ContractError(f"labels hold {wrong:g}; allowed are {known}{added}")


def height_and_width(size: Any) -> tuple[int, int]:
    """(height, width) of whatever pair was given; raises ContractError where it is none."""
    try:
        height, width = size
        return int(height), int(width)
    except (TypeError, ValueError):
        raise ContractError(f"image_size is {size!r}, must be (height, width)") from None


def host_array(given: Any, name: str) -> Array:
    """What a caller gave, as numpy; raises ContractError where that cannot be had."""
    if type(given) is np.ndarray:
        return given
    if is_on_device(given):
        raise ContractError(f"{name}: on the GPU, but the host reads prompts; give a numpy array, torch: .cpu()")
    array: Array = on_host(given, name)
    return array


def _batched(points: Any, labels: Any) -> tuple[Array, Array]:
    points = host_array(points, "points")
    labels = host_array([] if labels is None else labels, "labels")
    if points.ndim == 2:
        points, labels = points[None], labels[None]
    if points.ndim != 3 or points.shape[2] != 2 or points.dtype.kind not in "fiu":
        raise ContractError(f"points are {points.dtype} {list(points.shape)}, must be numbers [num_prompts, num_points, 2]")
    if labels.shape != points.shape[:2] or labels.dtype.kind not in "fiu":
        raise ContractError(
            f"labels are {labels.dtype} {list(labels.shape)}, must be {list(points.shape[:2])}: one to each point"
        )
    return points, labels


def _agreed(count: int, found: int, name: str) -> int:
    if count and count != found:
        raise ContractError(f"{name} has {found} prompts, but there are {count}; they must agree")
    return found
