"""`Histogram`: how often |x| occurred, in equal bins from 0 to the largest value. numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.errors import CalibrationError

__all__ = ["BINS", "Histogram", "count_bins", "histogram_of"]

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

BINS = 2048
"""As TensorRT's entropy calibration has it."""

_BLOCK = 1 << 16
"""Values counted at a time: their temporaries stay in the cache."""


@dataclass(frozen=True)
class Histogram:
    """Counts of |x|: bin k holds the values from k to k + 1 times `width`, the last one also `amax` itself."""

    counts: Counts = field(repr=False)
    """int64 [bins]."""
    amax: float
    """The largest |x|; 0 where every value was 0."""

    @property
    def width(self) -> float:
        """Of one bin."""
        return self.amax / len(self.counts)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())


def histogram_of(arrays: Array | Iterable[Array], *, bins: int = BINS) -> Histogram:
    """The histogram of one array, or of several in memory (any order gives the same); floats of any width.

    Raises:
        CalibrationError: there is no value, or one is not finite.
    """
    held = [arrays] if isinstance(arrays, np.ndarray) else list(arrays)
    held = [array for array in held if array.size]
    if not held:
        raise CalibrationError("there is no value to make a histogram of; give at least one")
    amax = max(float(np.abs(array).max()) for array in held)
    if not np.isfinite(amax):
        raise CalibrationError("the values hold NaN or infinity; every value must be finite")
    counts = np.zeros(bins, np.int64)
    for array in held:
        counts += count_bins(array, amax, bins)
    return Histogram(counts, amax)


def count_bins(array: Array, amax: float, bins: int = BINS) -> Counts:
    """Count |x| of a float array with |x| <= `amax` everywhere: int64 [bins].

    Raises:
        CalibrationError: a value lies beyond `amax`.
    """
    counts = np.zeros(bins + 1, np.int64)
    flat = np.ascontiguousarray(array).reshape(-1)
    if amax == 0.0:
        # Nothing to divide by; only zeros fit.
        if flat.any():
            raise CalibrationError("a value lies beyond the range 0 of the histogram: the data changed between two passes")
        counts[0] = flat.size
        return counts[:bins]
    dtype = np.float64 if flat.dtype == np.float64 else np.float32
    for start in range(0, flat.size, _BLOCK):
        share = np.abs(flat[start : start + _BLOCK], dtype=dtype)
        # Divided first: bins / amax overflows for tiny ranges.
        share /= dtype(amax)
        share *= bins
        np.minimum(share, bins + 1, out=share)
        part = np.bincount(share.astype(np.intp), minlength=bins + 1)
        if len(part) > bins + 1:
            raise CalibrationError(
                f"a value lies beyond the range {amax:g} of the histogram: the data changed between two passes"
            )
        counts += part
    counts[bins - 1] += counts[bins]
    return counts[:bins]
