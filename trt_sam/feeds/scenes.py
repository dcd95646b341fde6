"""Synthetic scenes with exact masks: overlapping, coloured and textured shapes.

They train and judge the stand-in checkpoint, feed `selftest` and the accuracy tables, and need no download. A scene is
defined in the unit square, so one seed gives the same picture at every size. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["HELD_OUT_SEED", "PROMPT_KINDS", "Scene", "make_scene", "sample_click", "sample_prompt", "tight_box"]

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

HELD_OUT_SEED = 50_000_000
"""Scenes from this seed on were never trained on."""

PROMPT_KINDS = ("click", "box", "clicks")

_MIN_AREA = 0.002
"""Visible masks smaller than this share of the image are not offered as objects."""


@dataclass(frozen=True)
class Scene:
    """A picture and the exact visible region of every object in it."""

    image: npt.NDArray[np.uint8]
    """uint8 [size, size, 3], RGB."""
    masks: BoolArray
    """bool [num_objects, size, size]; a part of an object is an object of its own, inside its whole."""


def make_scene(seed: int, size: int = 1024) -> Scene:
    """Draw the scene of `seed` at `size` x `size` pixels (always with at least one object)."""
    rng = np.random.default_rng(seed)
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    y: FloatArray = np.repeat(centres[:, None], size, axis=1)
    x: FloatArray = np.repeat(centres[None, :], size, axis=0)
    image = _fill(rng, x, y)
    owners: list[BoolArray] = []
    count = int(rng.integers(4, 11))
    scale = float(np.exp(rng.uniform(np.log(0.8), np.log(1.8))))
    for _ in range(count):
        radius = scale * float(rng.uniform(0.06, 0.22))
        centre = rng.uniform(0.05, 0.95, 2).astype(np.float32)
        # Only the square that can hold the shape is drawn: the rest would be work for nothing.
        low, high = (np.clip((centre + sign * 1.7 * radius) * size, 0, size).astype(int) for sign in (-1, 1))
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        wx, wy = x[window], y[window]
        whole = _inside(rng, wx, wy, centre, radius)
        image[window] = np.where(whole[..., None], _fill(rng, wx, wy), image[window])
        drawn = [whole]
        if rng.random() < 0.3:
            angle = float(rng.uniform(0, 2 * np.pi))
            offset = (0.35 * radius * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)
            part = _inside(rng, wx, wy, centre + offset, 0.45 * radius) & whole
            image[window] = np.where(part[..., None], _fill(rng, wx, wy), image[window])
            drawn.append(part)
        for earlier in owners:
            earlier[window] &= ~whole
        for inside in drawn:
            owners.append(np.zeros((size, size), np.bool_))
            owners[-1][window] = inside
    image *= (1.0 + 0.25 * float(rng.uniform(-1, 1)) * (x + y - 1.0))[..., None]
    image += float(rng.uniform(0.0, 0.02)) * rng.standard_normal(image.shape, np.float32)
    # A part that a later shape has cut off from its whole still lies inside it: both lost the same pixels.
    kept = [m for m in owners if m.mean() >= _MIN_AREA]
    if not kept:
        return make_scene(seed + 1_000_003, size)
    return Scene((np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8), np.stack(kept))


def sample_click(rng: np.random.Generator, mask: BoolArray) -> tuple[float, float]:
    """A uniformly drawn pixel of `mask` (bool [height, width]) as (x, y) of its centre in pixels."""
    rows, columns = np.nonzero(mask)
    pick = int(rng.integers(len(rows)))
    return float(columns[pick]) + 0.5, float(rows[pick]) + 0.5


def sample_prompt(
    rng: np.random.Generator, mask: BoolArray, kind: str, *, extra_clicks: int = 2
) -> tuple[FloatArray, FloatArray]:
    """Draw a prompt for an object as Meta's predictor would send it.

    Args:
        rng: where the randomness comes from.
        mask: bool [size, size], the object.
        kind: "click" (one inside), "clicks" (`extra_clicks` more, some of them outside with label 0) or "box" (jittered by 5 %
            of its sides).
        extra_clicks: for "clicks".

    Returns:
        point_coords float32 [num_points, 2], (x, y) in pixels with a pixel's corner at whole numbers, and point_labels float32
        [num_points]; clicks end with SAM's "not a point".
    """
    if kind == "box":
        box = np.array(tight_box(mask))
        sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
        limit = 0.02 * len(mask)
        box = box + np.clip(rng.normal(0, 0.05 * sides), -limit, limit)
        return box.reshape(2, 2).astype(np.float32), np.array([2, 3], np.float32)
    points, labels = [sample_click(rng, mask)], [1.0]
    for _ in range(extra_clicks if kind == "clicks" else 0):
        positive = rng.random() < 0.6 or bool(mask.all())
        points.append(sample_click(rng, mask if positive else ~mask))
        labels.append(float(positive))
    # The encoder adds 0.5 to reach the pixel's centre, where sample_click already is.
    coords = np.array([*points, (0.5, 0.5)]) - 0.5
    return coords.astype(np.float32), np.array([*labels, -1], np.float32)


def tight_box(mask: BoolArray) -> tuple[float, float, float, float]:
    """The smallest (x0, y0, x1, y1) in pixels that holds `mask` (bool [height, width])."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _inside(rng: np.random.Generator, x: FloatArray, y: FloatArray, centre: FloatArray, radius: float) -> BoolArray:
    """A random shape's interior on the grid."""
    angle = float(rng.uniform(0, 2 * np.pi))
    aspect = float(rng.uniform(0.45, 1.0))
    dx, dy = x - float(centre[0]), y - float(centre[1])
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / radius
    v = (-np.sin(angle) * dx + np.cos(angle) * dy) / (radius * aspect)
    return _SHAPES[int(rng.integers(len(_SHAPES)))](rng, u, v)


def _ellipse(rng: np.random.Generator, u: FloatArray, v: FloatArray) -> BoolArray:
    return u * u + v * v < 1.0


def _rectangle(rng: np.random.Generator, u: FloatArray, v: FloatArray) -> BoolArray:
    return np.maximum(np.abs(u), np.abs(v)) < 0.85


def _polygon(rng: np.random.Generator, u: FloatArray, v: FloatArray) -> BoolArray:
    sides = int(rng.integers(3, 8))
    sector = 2 * np.pi / sides
    theta = np.mod(np.arctan2(v, u), sector) - sector / 2
    return np.hypot(u, v) * np.cos(theta) < np.cos(sector / 2) * 1.05


def _star(rng: np.random.Generator, u: FloatArray, v: FloatArray) -> BoolArray:
    points = int(rng.integers(4, 8))
    wave = np.abs(np.mod(np.arctan2(v, u) * points / (2 * np.pi), 1.0) - 0.5) * 2.0
    return np.hypot(u, v) < 0.5 + 0.6 * wave


def _blob(rng: np.random.Generator, u: FloatArray, v: FloatArray) -> BoolArray:
    theta = np.arctan2(v, u)
    edge = np.ones_like(theta)
    for k in range(2, 6):
        edge += float(rng.normal(0, 0.22 / k)) * np.cos(k * theta + float(rng.uniform(0, 2 * np.pi)))
    return np.hypot(u, v) < np.minimum(edge, 1.6)


def _ring(rng: np.random.Generator, u: FloatArray, v: FloatArray) -> BoolArray:
    r = np.hypot(u, v)
    return (r < 1.0) & (r > float(rng.uniform(0.35, 0.6)))


_SHAPES: tuple[Callable[[np.random.Generator, FloatArray, FloatArray], BoolArray], ...] = (
    _ellipse,
    _rectangle,
    _polygon,
    _star,
    _blob,
    _ring,
)


def _fill(rng: np.random.Generator, x: FloatArray, y: FloatArray) -> FloatArray:
    """A random texture, float32 [size, size, 3] in 0..1: one colour, or two blended by a pattern."""
    first, second = rng.uniform(0.05, 0.95, (2, 3)).astype(np.float32)
    angle, frequency, phase = float(rng.uniform(0, np.pi)), float(rng.uniform(8, 40)), float(rng.uniform(0, 2 * np.pi))
    contrast = float(rng.uniform(0.3, 1.0))
    u = np.cos(angle) * x + np.sin(angle) * y
    v = -np.sin(angle) * x + np.cos(angle) * y
    kind = int(rng.integers(7))
    if kind <= 1:
        blend = np.zeros_like(x)
    elif kind == 2:
        blend = np.clip(0.5 + u - 0.5 * (np.cos(angle) + np.sin(angle)), 0, 1)
    elif kind == 3:
        blend = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * u + phase)
    elif kind == 4:
        blend = (np.sin(np.pi * frequency * u + phase) * np.sin(np.pi * frequency * v) > 0).astype(np.float32)
    elif kind == 5:
        blend = (np.sin(np.pi * frequency * u) ** 2 + np.sin(np.pi * frequency * v) ** 2 < 0.7).astype(np.float32)
    else:
        blend = 0.5 + 0.25 * (np.sin(frequency * u + phase) + np.sin(0.7 * frequency * v + 3 * np.sin(frequency * u / 3)))
    blend = (contrast * blend).astype(np.float32)[..., None]
    return np.asarray((1 - blend) * first + blend * second, np.float32)
