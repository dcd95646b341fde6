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

Picture = npt.NDArray[np.uint8]
_Colour = tuple[int, int, int]
_Tone = tuple[_Colour, float]
"""A colour, and how much of it."""

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
    # The rest a little darker: a tint alone is lost on a picture of its own colour.
    canvas = _toned(image, mask, inside=(_TINT, 0.45), outside=(_SHADOW, 0.25))
    edge = _edges(mask)
    # White outside, colour inside: legible on any background.
    _line(canvas, edge, 2.2 * unit, _WHITE, 0.9)
    _line(canvas, edge, 1.1 * unit, _TINT, 1.0)
    if box is not None:
        _frame(canvas, box, unit)
    for x, y, label in clicks:
        for colour, radius in ((_SHADOW, 6.6), (_WHITE, 6.0), (_CLICKS[label], 4.4)):
            _disc(canvas, x, y, radius * unit, colour)
    return canvas


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
    inside = numbers > 0
    canvas = image.astype(np.float32)
    canvas += 0.4 * ~inside[..., None] * (np.array(_SHADOW, np.float32) - canvas)
    canvas += 0.5 * inside[..., None] * (colours[numbers] - canvas)
    picture = np.rint(canvas).astype(np.uint8)
    _line(picture, _edges(numbers), 0.9 * unit, _WHITE, 0.9)
    return picture


def _edges(values: npt.NDArray[np.bool_] | npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.bool_]:
    """The pixels that differ from the one above or on the left."""
    edge = np.zeros(values.shape, np.bool_)
    edge[:, 1:] |= values[:, 1:] != values[:, :-1]
    edge[1:] |= values[1:] != values[:-1]
    return edge


def _toned(image: Picture, mask: npt.NDArray[np.bool_], *, inside: _Tone, outside: _Tone) -> Picture:
    """A copy with each part blended with a colour; by tables, since 12 megapixels take seconds in floats."""
    image_module = require("PIL.Image", "to draw")
    picture = image_module.fromarray(np.ascontiguousarray(image))
    parts = []
    for colour, alpha in (inside, outside):
        levels = np.arange(256)
        table = np.concatenate([levels + alpha * (channel - levels) for channel in colour])
        parts.append(picture.point(np.rint(table).astype(int).tolist()))
    return np.array(image_module.composite(*parts, image_module.fromarray(mask.astype(np.uint8) * np.uint8(255))))


def _blend(canvas: Picture, colour: _Colour, alpha: npt.NDArray[np.floating]) -> None:
    """Blend `canvas`, which may be a view, with a colour where `alpha` [height, width] is above 0."""
    _blend_at(canvas, alpha > 0, colour, alpha[alpha > 0])


def _blend_at(canvas: Picture, where: npt.NDArray[np.bool_], colour: _Colour, alpha: npt.NDArray[np.floating]) -> None:
    values = canvas[where].astype(np.float32)
    values += alpha[:, None].astype(np.float32) * (np.array(colour, np.float32) - values)
    canvas[where] = np.rint(values).astype(np.uint8)


def _line(canvas: Picture, edge: npt.NDArray[np.bool_], width: float, colour: _Colour, opacity: float) -> None:
    """A smooth line of about `width` pixels along the pixels of `edge`."""
    image_module, filters = require("PIL.Image", "to draw"), require("PIL.ImageFilter", "to draw")
    rows, columns = np.flatnonzero(edge.any(axis=1)), np.flatnonzero(edge.any(axis=0))
    if not len(rows):
        return
    reach = int(3 * width) + 2
    near = tuple(slice(max(0, places[0] - reach), places[-1] + reach + 1) for places in (rows, columns))
    canvas, edge = canvas[near], edge[near]
    picture = image_module.fromarray(edge.astype(np.uint8) * np.uint8(255)).filter(filters.GaussianBlur(0.6 * width))
    blurred = np.asarray(picture)
    # A blurred thin line has this height at its ridge; scaled so, the line is solid within half its width.
    ridge = 255 / (0.6 * width * np.sqrt(2 * np.pi))
    alpha = opacity * np.clip(np.arange(256) / ridge * 2.0 - 0.5, 0, 1)
    where = blurred >= np.argmax(alpha > 0)
    _blend_at(canvas, where, colour, alpha[blurred[where]])


def _disc(canvas: Picture, x: float, y: float, radius: float, colour: _Colour) -> None:
    """A disc with a smooth edge, centred at (x, y); only its surroundings are touched."""
    height, width = canvas.shape[:2]
    rows = slice(max(0, int(y - radius) - 1), min(height, int(y + radius) + 3))
    columns = slice(max(0, int(x - radius) - 1), min(width, int(x + radius) + 3))
    dy = np.arange(rows.start, rows.stop) - y
    dx = np.arange(columns.start, columns.stop) - x
    _blend(canvas[rows, columns], colour, np.clip(radius + 0.5 - np.hypot(dx[None, :], dy[:, None]), 0, 1))


def _frame(canvas: Picture, box: Box, unit: float) -> None:
    """The outline of a box, dark under light."""
    x0, y0, x1, y1 = box
    for colour, half in ((_SHADOW, 1.6 * unit), (_BOX, 0.9 * unit)):
        for rows, columns in _strips(canvas.shape[:2], box, half + 1):
            dx, dy = np.arange(columns.start, columns.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5
            # Distance from the box's outline: of the two axes inside, of the corner outside.
            outside_x, outside_y = np.maximum(x0 - dx, dx - x1), np.maximum(y0 - dy, dy - y1)
            signed = np.maximum(outside_x[None, :], outside_y[:, None])
            _blend(canvas[rows, columns], colour, np.clip(half + 0.5 - np.abs(signed), 0, 1))


def _strips(shape: tuple[int, ...], box: Box, reach: float) -> list[tuple[slice, slice]]:
    """Regions that hold what lies within `reach` of a box's outline, none of them twice: above, below, left and right of it."""
    height, width = shape

    def between(low: float, high: float, limit: int) -> slice:
        start = min(max(int(np.floor(low)), 0), limit)
        return slice(start, max(start, min(int(np.ceil(high)), limit)))

    x0, y0, x1, y1 = box
    whole = between(x0 - reach, x1 + reach, width)
    if y1 - y0 <= 2 * reach + 2 or x1 - x0 <= 2 * reach + 2:
        return [(between(y0 - reach, y1 + reach, height), whole)]
    above, below = between(y0 - reach, y0 + reach, height), between(y1 - reach, y1 + reach, height)
    left, right = between(x0 - reach, x0 + reach, width), between(x1 - reach, x1 + reach, width)
    middle = slice(above.stop, max(above.stop, below.start))
    return [(above, whole), (below, whole), (middle, left), (middle, right)]
