"""Outlines of masks as polygons along the edges of pixels, and masks of polygons.

An outline's corners are corners of pixels, so a polygon that pycocotools fills is the mask again, pixel for pixel. COCO's and
labelme's polygons know no holes: a hole is joined to the outline around it by a cut of no width, along which the outline goes
to the hole and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.errors import InputError
from trt_sam.formats.runs import Runs

__all__ = ["polygons_of", "runs_of_polygons"]

Corners = npt.NDArray[np.int64]
"""[n, 2], (x, y) of corners of pixels; the outline goes on from the last to the first."""


def polygons_of(mask: npt.NDArray[np.bool_]) -> list[Corners]:
    """The outlines of `mask` bool [height, width]: int64 [n, 2] each, (x, y) from (0, 0) to (width, height).

    Pixels that touch at a corner only are apart. Each region is one polygon, holes joined to it.
    """
    outer: list[Corners] = []
    holes: list[Corners] = []
    for ring in _rings(mask):
        x, y = ring[:, 0], ring[:, 1]
        turned = np.roll(ring, -1, axis=0)
        (outer if (x * turned[:, 1] - y * turned[:, 0]).sum() > 0 else holes).append(ring)
    if not holes:
        return outer
    return _with_cuts(outer, holes)


def runs_of_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Runs:
    """The mask of `size` (height, width) that COCO's polygons, each [x0, y0, x1, y1, ...], fill together, by pycocotools.

    Raises:
        InputError: no polygon, one of fewer than three points or of an odd length, or numbers that are none.
        MissingDependencyError: pycocotools is not installed.
    """
    if not len(polygons):
        raise InputError("there is no polygon; a mask needs at least one")
    for polygon in polygons:
        try:
            flat = np.asarray(polygon, np.float64)
        except (TypeError, ValueError):
            raise InputError("a polygon holds something that is not a number; it must be [x0, y0, x1, y1, ...]") from None
        if flat.ndim != 1 or len(flat) % 2 or len(flat) < 6:
            raise InputError(
                f"a polygon has shape {list(flat.shape)}, must be [x0, y0, x1, y1, ...] of at least three points: 6 numbers"
            )
        if not np.isfinite(flat).all():
            raise InputError("a polygon holds NaN or infinity; every number must be finite")
    coco = require("pycocotools.mask", "to fill polygons")
    height, width = size
    # Its C code takes a polygon far outside of the image for one of that size.
    inside = [np.clip(np.asarray(p, np.float64).reshape(-1, 2), 0, (width, height)).ravel().tolist() for p in polygons]
    filled = coco.merge(coco.frPyObjects(inside, height, width))
    return Runs.from_coco({"size": [height, width], "counts": filled["counts"]})


def _rings(mask: npt.NDArray[np.bool_]) -> list[Corners]:
    """Closed outlines with the mask on the right-hand side of the way, in an image whose y goes down."""
    framed = np.pad(mask, 1)
    # A side of a pixel is part of the outline where the two pixels beside it differ. `follow` has the corner after each.
    follow: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (y, x), inside in _sides(framed, axis=0):
        start, end = ((x, y), (x + 1, y)) if inside else ((x + 1, y), (x, y))
        follow.setdefault(start, []).append(end)
    for (y, x), inside in _sides(framed, axis=1):
        start, end = ((x, y + 1), (x, y)) if inside else ((x, y), (x, y + 1))
        follow.setdefault(start, []).append(end)
    rings = []
    while follow:
        start = next(iter(follow))
        ring, heading, here = [], (0, 0), start
        while True:
            ways = follow[here]
            # Where two regions touch at a corner, the turn to the right stays with the one that the way came along.
            right = (here[0] - heading[1], here[1] + heading[0])
            step = ways.pop(ways.index(right) if len(ways) > 1 and right in ways else 0)
            if not ways:
                del follow[here]
            turned = (step[0] - here[0], step[1] - here[1])
            if turned != heading:
                ring.append(here)
            heading, here = turned, step
            if here == start:
                break
        rings.append(_closed(ring, heading))
    return rings


def _closed(ring: list[tuple[int, int]], heading: tuple[int, int]) -> Corners:
    """The corners without the first where the way goes straight on through it."""
    (x0, y0), (x1, y1) = ring[0], ring[1]
    straight = (np.sign(x1 - x0), np.sign(y1 - y0)) == heading
    return np.array(ring[1:] if straight else ring, np.int64)


def _sides(framed: npt.NDArray[np.bool_], axis: int) -> Any:
    """(row, column) of each side between pixels that differ, and whether the pixel after it is inside."""
    before, after = (framed[:-1, 1:-1], framed[1:, 1:-1]) if axis == 0 else (framed[1:-1, :-1], framed[1:-1, 1:])
    places = np.argwhere(before != after)
    return zip(map(tuple, places.tolist()), after[tuple(places.T)].tolist(), strict=True)


def _with_cuts(outer: list[Corners], holes: list[Corners]) -> list[Corners]:
    """Join each hole to the outline that is next to the left of its leftmost corner, holes joined before included."""
    rings = list(outer)
    for hole in sorted(holes, key=lambda ring: ring[:, 0].min()):
        first = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        x, y = hole[first]
        best, place, at = -1, None, None
        for number, ring in enumerate(rings):
            other = np.roll(ring, -1, axis=0)
            upright = (ring[:, 0] == other[:, 0]) & (np.minimum(ring[:, 1], other[:, 1]) <= y)
            upright &= (np.maximum(ring[:, 1], other[:, 1]) >= y) & (ring[:, 0] <= x)
            for index in np.nonzero(upright)[0]:
                if ring[index, 0] > best:
                    best, place, at = int(ring[index, 0]), number, int(index)
        assert place is not None
        assert at is not None
        ring, turned = rings[place], np.roll(hole, -first, axis=0)
        door = np.array([[best, y]])
        rings[place] = np.concatenate([ring[: at + 1], door, turned, turned[:1], door, ring[at + 1 :]])
    return rings
