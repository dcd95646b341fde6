"""Pictures of masks for people: the image tinted where they are, their contours, and the prompt. numpy and Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require

__all__ = ["Box", "Click", "draw_overlay", "draw_regions"]

Click = tuple[float, float, int]
"""(x, y) in pixels of the image, and 1 foreground or 0 background."""
Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels of the image."""

FloatArray = npt.NDArray[np.float32]

_TINT = (30, 144, 255)
_WHITE = (255, 255, 255)
_SHADOW = (20, 20, 20)
_BOX = (255, 200, 40)
_CLICKS = {1: (40, 205, 90), 0: (240, 60, 60)}


def draw_overlay(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], clicks: Sequence[Click] = (), box: Box | None = None
) -> npt.NDArray[np.uint8]:
    """Draw a mask and its prompt over an image; lines and dots grow with the image.

    Args:
        image: uint8 [height, width, 3], RGB; not changed.
        mask: bool [height, width].
        clicks: dots, green for foreground and red for background.
        box: drawn as a frame.

    Returns:
        uint8 [height, width, 3].
    """
    unit = max(1.0, min(image.shape[:2]) / 400)
    canvas = image.astype(np.float32)
    # The rest a little darker: a tint alone is lost on a picture of its own colour.
    _blend(canvas, _SHADOW, 0.25 * ~mask)
    _blend(canvas, _TINT, 0.45 * mask)
    # White outside, colour inside: legible on any background.
    _blend(canvas, _WHITE, 0.9 * _band(mask, 2.2 * unit))
    _blend(canvas, _TINT, _band(mask, 1.1 * unit))
    if box is not None:
        _frame(canvas, box, unit)
    for x, y, label in clicks:
        for colour, radius in ((_SHADOW, 6.6), (_WHITE, 6.0), (_CLICKS[label], 4.4)):
            _disc(canvas, x, y, radius * unit, colour)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def draw_regions(
    image: npt.NDArray[np.uint8], numbers: npt.NDArray[np.unsignedinteger], colours: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Tint an image by the regions of its pixels, with white lines between them; what is in no region is darker.

    Args:
        image: uint8 [height, width, 3], RGB; not changed.
        numbers: [height, width], of each pixel's region; 0 is none.
        colours: uint8 [count, 3], RGB, by number.

    Returns:
        uint8 [height, width, 3].
    """
    unit = max(1.0, min(image.shape[:2]) / 400)
    canvas = image.astype(np.float32)
    inside = numbers > 0
    _blend(canvas, _SHADOW, 0.4 * ~inside)
    canvas += (0.5 * inside)[..., None].astype(np.float32) * (colours[numbers].astype(np.float32) - canvas)
    _blend(canvas, _WHITE, 0.9 * _band(numbers, 0.9 * unit))
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _blend(canvas: FloatArray, colour: tuple[int, int, int], alpha: npt.NDArray[np.floating]) -> None:
    canvas += alpha[..., None].astype(np.float32) * (np.array(colour, np.float32) - canvas)


def _band(mask: npt.NDArray[np.bool_] | npt.NDArray[np.unsignedinteger], width: float) -> FloatArray:
    """A smooth line of about `width` pixels where the values of `mask` change, as an alpha [height, width] in 0..1."""
    image_module, filters = require("PIL.Image", "to draw"), require("PIL.ImageFilter", "to draw")
    edge = np.zeros(mask.shape, np.bool_)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    picture = image_module.fromarray(edge.astype(np.uint8) * 255).filter(filters.GaussianBlur(0.6 * width))
    # A blurred thin line has this height at its ridge; scaled so, the line is solid within half its width.
    ridge = 255 / (0.6 * width * np.sqrt(2 * np.pi))
    return np.clip(np.asarray(picture, np.float32) / ridge * 2.0 - 0.5, 0, 1)


def _disc(canvas: FloatArray, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    """A disc with a smooth edge, centred at (x, y); only its surroundings are touched."""
    height, width = canvas.shape[:2]
    rows = slice(max(0, int(y - radius) - 1), min(height, int(y + radius) + 3))
    columns = slice(max(0, int(x - radius) - 1), min(width, int(x + radius) + 3))
    dy = np.arange(rows.start, rows.stop) - y
    dx = np.arange(columns.start, columns.stop) - x
    _blend(canvas[rows, columns], colour, np.clip(radius + 0.5 - np.hypot(dx[None, :], dy[:, None]), 0, 1))


def _frame(canvas: FloatArray, box: Box, unit: float) -> None:
    """The outline of a box, dark under light."""
    height, width = canvas.shape[:2]
    x0, y0, x1, y1 = box
    dx, dy = np.arange(width) + 0.5, np.arange(height) + 0.5
    # Distance from the box's outline: of the two axes inside, of the corner outside.
    outside_x, outside_y = np.maximum(x0 - dx, dx - x1), np.maximum(y0 - dy, dy - y1)
    signed = np.maximum(outside_x[None, :], outside_y[:, None])
    for colour, half in ((_SHADOW, 1.6 * unit), (_BOX, 0.9 * unit)):
        _blend(canvas, colour, np.clip(half + 0.5 - np.abs(signed), 0, 1))
