"""Filling small holes of a mask and taking small islands away. numpy and SciPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require

__all__ = ["without_small_regions"]

Mask = npt.NDArray[np.bool_]


def without_small_regions(mask: Mask, least_area: float) -> tuple[Mask, bool]:
    """Fill holes, then drop islands, of fewer than `least_area` pixels; pixels that touch at a corner belong together.

    Where every island is small the largest stays.

    Returns:
        The mask bool [height, width], and whether it differs from the one given.

    Raises:
        MissingDependencyError: SciPy is not installed.
    """
    holes, _ = _small(~mask, least_area)
    if holes is not None:
        mask = mask | holes
    islands, sizes = _small(mask, least_area)
    if islands is not None:
        keep = ~islands if (mask & ~islands).any() else _labels(mask)[0] == 1 + int(np.argmax(sizes))
        mask = mask & keep
    return mask, holes is not None or islands is not None


def _small(mask: Mask, least_area: float) -> tuple[Mask | None, npt.NDArray[np.int64]]:
    """The regions of fewer pixels, None where there are none; and the number of pixels of each region."""
    labels, sizes = _labels(mask)
    small = np.append(False, sizes < least_area)
    return (small[labels] if small.any() else None), sizes


def _labels(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The number of each pixel's region, 0 outside; and the number of pixels of regions 1, 2, and so on."""
    ndimage = require("scipy.ndimage", "to find the regions of masks")
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), np.int8))
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]
