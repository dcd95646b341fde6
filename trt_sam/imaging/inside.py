"""Whether clicks and a box lie on a photo: `check_inside` of those that were typed, `check_prompt_inside` of a file's."""

from __future__ import annotations

from collections.abc import Sequence

from trt_sam.errors import InputError
from trt_sam.imaging.overlay import Box, Click

__all__ = ["check_inside", "check_prompt_inside"]

_OUTSIDE = 1.0
"""Pixels by which a file's prompt may reach over the photo's edge, as rounding makes it in COCO's boxes."""


def check_inside(clicks: Sequence[Click], box: Box | None, *, height: int, width: int) -> None:
    """Raise InputError unless the prompt, which came by `--point` and `--box`, lies on the image."""
    for x, y, _ in clicks:
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"--point {x:g},{y:g} is outside the image of {width}x{height}: 0 <= X < {width}, 0 <= Y < {height}"
            )
    if box is not None and (min(box) < 0 or box[2] > width or box[3] > height):
        shown = ",".join(f"{value:g}" for value in box)
        raise InputError(f"--box {shown} is outside the image of {width}x{height}: X from 0 to {width}, Y from 0 to {height}")


def check_prompt_inside(where: str, points: Sequence[tuple[float, float]], box: Box | None, *, height: int, width: int) -> None:
    """Raise InputError unless the prompt, which `where` names (the file and the place in it), lies on the image."""
    corners = [] if box is None else [box[:2], box[2:]]
    for x, y in [*points, *corners]:
        if not (-_OUTSIDE <= x <= width + _OUTSIDE and -_OUTSIDE <= y <= height + _OUTSIDE):
            raise InputError(
                f"{where}: ({x:g}, {y:g}) is outside the image of {width}x{height}; give pixels of the original image, (x, y)"
            )
