"""What JSON requests ask: parsed, checked against the picture, refused in one line. numpy alone."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from trt_sam.imaging.resize import boxes_to_frame, coords_to_frame
from trt_sam.runtime.prompt_tokens import Prompt, prompt_tokens
from trt_sam.serve.faults import Refusal, bad_prompt
from trt_sam.serve.settings import ServeSettings

__all__ = [
    "FORMATS",
    "OUTPUTS",
    "EverythingRequest",
    "MasksRequest",
    "check_boxes",
    "check_inside",
    "everything_request",
    "json_object",
    "masks_request",
]

OUTPUTS = ("three", "best", "single")
"""The three candidates of a prompt, the best of them, or the one mask that SAM gives for prompts that leave no doubt."""
FORMATS = ("rle", "polygons", "png")
_CLICKED = (0, 1)

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MasksRequest:
    """Prompts on one picture."""

    prompts: list[Prompt]
    """Points in the 1024 frame with labels: one, or one for each box."""
    mask: str | None
    """Id of an earlier mask, which goes in with the prompt."""
    output: str
    format: str
    keep: bool
    """Whether later requests may name the masks."""


@dataclass(frozen=True)
class EverythingRequest:
    """What of a picture's masks is wanted."""

    points_per_side: int = 16
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    box_nms_thresh: float = 0.7
    format: str = "rle"


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is, without NaN and infinity, which JSON does not have."""
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refusal(400, "bad_json", "the body is not JSON, UTF-8 without NaN or Infinity") from None
    if not isinstance(found, dict):
        raise Refusal(400, "bad_json", f"the body is JSON, but {_kind(found)}; it must be an object")
    return found


def masks_request(asked: Mapping[str, Any], size: tuple[int, int], settings: ServeSettings) -> MasksRequest:
    """The prompts of a request on a picture of `size` (height, width).

    Raises:
        Refusal: a key is unknown, or a value cannot be used.
    """
    _known(asked, ("points", "labels", "boxes", "mask", "output", "format", "keep"))
    points = _rows(asked, "points", 2, settings.points)
    boxes = _rows(asked, "boxes", 4, settings.boxes)
    labels = _labels(asked.get("labels"), len(points))
    if not len(points) and not len(boxes):
        raise bad_prompt("there is no prompt; give points with labels, or boxes, in pixels of the picture")
    if len(points) and len(boxes) > 1:
        raise bad_prompt(f"points go with one box, and there are {len(boxes)}; send a request for each box, or no points")
    check_inside("points", points, size)
    check_boxes(boxes, size)
    mask = asked.get("mask")
    if mask is not None and not isinstance(mask, str):
        raise bad_prompt(f"mask is {_kind(mask)}, must be the id of an earlier mask of this image")
    if mask is not None and len(boxes) > 1:
        raise bad_prompt("an earlier mask goes with one prompt; send a request for each box")
    count = max(1, len(boxes))
    prompts = prompt_tokens(
        count,
        [points] * count if len(points) else None,
        [labels] * count if len(points) else None,
        boxes_to_frame(boxes, size) if len(boxes) else None,
        lambda given: coords_to_frame(given, size),
    )
    return MasksRequest(
        prompts,
        mask,
        _choice(asked, "output", OUTPUTS),
        _choice(asked, "format", FORMATS),
        _switch(asked, "keep", True),
    )


def everything_request(asked: Mapping[str, Any]) -> EverythingRequest:
    """The settings of a request for everything; Refusal where a key is unknown or a value cannot be used."""
    thresholds = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh")
    _known(asked, ("points_per_side", "format", *thresholds))
    found: dict[str, Any] = {"format": _choice(asked, "format", FORMATS)}
    side = asked.get("points_per_side", EverythingRequest.points_per_side)
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= 64:
        raise bad_prompt(f"points_per_side is {_seen(side)}, must be a whole number from 1 to 64")
    found["points_per_side"] = side
    for name in thresholds:
        value = asked.get(name, getattr(EverythingRequest, name))
        if not _is_number(value) or not 0 <= value <= 1:
            raise bad_prompt(f"{name} is {_seen(value)}, must be a number from 0 to 1")
        found[name] = float(value)
    return EverythingRequest(**found)


def check_inside(name: str, points: npt.NDArray[Any], size: tuple[int, int]) -> None:
    """Refuse `points` [n, 2] in pixels that are not on a picture of `size` (height, width)."""
    height, width = size
    for x, y in points.tolist():
        if not (0 <= x <= width and 0 <= y <= height):
            raise bad_prompt(f"{name}: ({x:g}, {y:g}) is outside of the picture, which is {width} wide and {height} high")


def check_boxes(boxes: npt.NDArray[Any], size: tuple[int, int]) -> None:
    """Refuse `boxes` [n, 4] that are not on a picture of `size`, or empty."""
    check_inside("boxes", boxes.reshape(-1, 2), size)
    if not (boxes[:, :2] < boxes[:, 2:]).all():
        raise bad_prompt("a box is [x0, y0, x1, y1] with x0 < x1 and y0 < y1")


def _rows(asked: Mapping[str, Any], name: str, width: int, most: int) -> Numbers:
    """A list of lists of `width` numbers as float64 [n, width]; n is 0 where it is left out."""
    value = asked.get(name)
    if value is None:
        value = []
    if not isinstance(value, list):
        raise bad_prompt(f"{name} is {_kind(value)}, must be a list of lists of {width} numbers")
    if len(value) > most:
        raise bad_prompt(f"there are {len(value)} {name}, at most {most} go into a request")
    for row in value:
        if not isinstance(row, list) or len(row) != width or not all(_is_number(each) for each in row):
            raise bad_prompt(f"{name} holds {_seen(row)}, must hold lists of {width} numbers")
    return np.array(value, np.float64).reshape(-1, width)


def _labels(value: Any, count: int) -> Numbers:
    if value is None:
        if count:
            raise bad_prompt("points came without labels; give a label to each point, 1 to add and 0 to remove")
        value = []
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)} labels" if isinstance(value, list) else _kind(value)
        raise bad_prompt(f"labels must be a list of {count}, one for each point; there is {found}")
    for each in value:
        if isinstance(each, bool) or each not in _CLICKED:
            raise bad_prompt(f"a label is {_seen(each)}, must be 1 to add or 0 to remove")
    return np.array(value, np.float64)


def _choice(asked: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = asked.get(name, choices[0])
    if value not in choices:
        raise bad_prompt(f"{name} is {_seen(value)}, must be one of {', '.join(choices)}")
    return str(value)


def _switch(asked: Mapping[str, Any], name: str, default: bool) -> bool:
    value = asked.get(name, default)
    if not isinstance(value, bool):
        raise bad_prompt(f"{name} is {_seen(value)}, must be true or false")
    return value


def _known(asked: Mapping[str, Any], names: Collection[str]) -> None:
    for name in asked:
        if name not in names:
            raise bad_prompt(f"{_seen(name)} is no part of this request; it has {', '.join(names)}")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _seen(value: Any) -> str:
    """A value for a message, short."""
    try:
        text = json.dumps(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a very long number"
    return text if len(text) <= 60 else text[:57] + "..."
