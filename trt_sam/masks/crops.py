"""Where a mask generator clicks and what it crops: grids of points and layers of overlapping crops. numpy only.

The geometry is that of Meta's `SamAutomaticMaskGenerator` (segment_anything/utils/amg.py), so that the same settings give the
same clicks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Crop", "crops_of", "point_grid"]

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Crop:
    """A part of an image, in its pixels; `x1` and `y1` are the first beyond it."""

    layer: int
    """0 is the whole image; layer n cuts each side into 2^n overlapping parts."""
    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0


def point_grid(side: int) -> Points:
    """The centres of `side` x `side` equal cells of the unit square: float64 [side^2, 2], (x, y), row by row."""
    centres = np.linspace(1 / (2 * side), 1 - 1 / (2 * side), side)
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def crops_of(image_size: tuple[int, int], layers: int, overlap: float) -> list[Crop]:
    """The whole of an image of `image_size` (height, width), then the crops of each layer.

    Args:
        image_size: of the image.
        layers: how many layers there are below the whole image.
        overlap: of two neighbours in layer 1, as a part of the image's short side; half of it in each further layer.
    """
    height, width = image_size
    found = [Crop(0, 0, 0, width, height)]
    for layer in range(1, layers + 1):
        parts = 2**layer
        shared = int(overlap * min(height, width) * (2 / parts))
        across, down = _part(width, parts, shared), _part(height, parts, shared)
        # Of an image of few pixels the last parts would begin beyond its end.
        found += [
            Crop(layer, x, y, min(x + across, width), min(y + down, height))
            for x in range(0, min(parts * (across - shared), width), across - shared)
            for y in range(0, min(parts * (down - shared), height), down - shared)
        ]
    return found


def _part(length: int, parts: int, shared: int) -> int:
    """Length of each of `parts` stretches that share `shared` with their neighbours and cover `length`."""
    return math.ceil((shared * (parts - 1) + length) / parts)
