"""`check_inside`: whether clicks and a box lie on a photo."""

from __future__ import annotations

from collections.abc import Sequence

from trt_sam.errors import InputError
from trt_sam.imaging.overlay import Box, Click

__all__ = ["check_inside"]


def check_inside(clicks: Sequence[Click], box: Box | None, *, height: int, width: int) -> None:
    """Raise InputError unless the prompt lies on the image."""
    for x, y, _ in clicks:
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"--point {x:g},{y:g} is outside the image of {width}x{height}: 0 <= X < {width}, 0 <= Y < {height}"
            )
    if box is not None and (min(box) < 0 or box[2] > width or box[3] > height):
        shown = ",".join(f"{value:g}" for value in box)
        raise InputError(f"--box {shown} is outside the image of {width}x{height}: X from 0 to {width}, Y from 0 to {height}")
