"""The range of a tensor from its histogram: entropy, percentile, MSE and max. numpy only.

Entropy is the search that NVIDIA describes for TensorRT (S. Migacz, "8-bit inference with TensorRT", 2017): candidates keep the
first 128, 129, ... 2048 bins. P is what is kept, with everything beyond added to its last bin; Q is what is kept without that,
each quantization level spread evenly over its bins that are not empty. The candidate with the least KL(P || Q) wins, the widest
of equals. What the description leaves open is decided here as follows.

- First bin: taken to be as full as the second, as in ModelOpt. Zeros (of ReLU, of padding) are exact at any range.
- Empty last bin: P has the outliers there and Q nothing, so KL would be infinite, and the search would depend on which bins of
  a sparse tail happen to be hit; a single outlier could not be clipped at all. Here such a bin is taken to hold one value, the
  least that it could hold. ModelOpt leaves infinity.
- A candidate must keep half of the values. P and Q of a few kept values can agree perfectly and say nothing.
- Range: the upper edge of the last bin kept, so never above the largest value.
- Bins: equal from 0 to the largest value of all feeds, so no candidate is below a sixteenth of it. ModelOpt's are as wide as
  the first batch says, and depend on the order. What a far value does to the rest is told (`report.CalibrationReport.coarse`).

MSE counts the exact zeros, like all of the first bin, at that bin's centre, as ModelOpt does. A step of int8 is wider than a
bin, so all of them become 0 at every candidate, and the same error is added to all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from calibrators.histogram import Histogram
from trt_sam.errors import CalibrationError, InputError

__all__ = ["PERCENTILE", "THRESHOLDS", "divergences", "threshold"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PERCENTILE = 99.99
"""Percent of the values that the percentile calibrator keeps."""
THRESHOLDS = ("entropy", "percentile", "mse", "max")

_FEWEST_BINS = 128
"""With fewer bins than levels, int8 would be exact and nothing could be compared."""
_LEVELS = 128
"""Magnitudes of int8: 0 to 127."""
_TIE = 1e-12
"""Divergences this near are equal: rounding would choose between them."""


def threshold(histogram: Histogram, calibrator: str, *, precision: str = "int8", percentile: float = PERCENTILE) -> float:
    """Choose the largest |x| that is still represented; above it values are clipped.

    Args:
        histogram: of the tensor, from 128 bins.
        calibrator: "entropy", "percentile" (upper edge of the bin that reaches it), "mse" (least squared error of the bins'
            centres, quantized) or "max".
        precision: "int8" (steps of range / 127) or "fp8" (E4M3, range / 448); "percentile" and "max" do not depend on it.
        percentile: above 0, at most 100.

    Raises:
        CalibrationError: every value is 0: any range would do for them, and none is known to do for others.
        InputError: an unknown calibrator or precision, an impossible percentile, or too few bins.
    """
    if calibrator not in THRESHOLDS:
        raise InputError(f"calibrator is {calibrator!r}, must be one of {', '.join(THRESHOLDS)}")
    if precision not in _STARTS:
        raise InputError(f"precision is {precision!r}, must be one of {', '.join(_STARTS)}")
    if not 0 < percentile <= 100:
        raise InputError(f"percentile is {percentile!r}, must be above 0 and at most 100")
    bins = len(histogram.counts)
    if bins < _FEWEST_BINS:
        raise InputError(f"the histogram has {bins} bins, must have at least {_FEWEST_BINS}")
    if histogram.amax <= 0:
        raise CalibrationError("every value is 0, which tells no range; give other feeds, or leave the tensor in float16")
    if calibrator == "max":
        return histogram.amax
    if calibrator == "percentile":
        reached = np.cumsum(histogram.counts) >= histogram.total * (percentile / 100)
        kept = int(np.argmax(reached)) + 1
    else:
        kept = _best_entropy(histogram, precision) if calibrator == "entropy" else _best_mse(histogram, precision)
    # The last edge is amax itself, not amax and a rounding error.
    return histogram.amax if kept == bins else kept * histogram.width


def divergences(histogram: Histogram, *, precision: str = "int8") -> tuple[IntArray, FloatArray]:
    """Of every entropy candidate: how many bins it keeps, int64 [candidates], and KL(P || Q), float64 [candidates] in nats."""
    counts = histogram.counts.copy()
    counts[0] = counts[1]
    total = int(counts.sum())
    below = _prefix_sums(counts)
    filled = _prefix_sums(counts > 0)
    kept = np.arange(_FEWEST_BINS, len(counts) + 1)
    outliers = total - below[kept]
    last = counts[kept - 1]
    lent = ((outliers > 0) & (last == 0)).astype(np.int64)

    # Levels are runs of bins, so sums over them are differences of prefix sums; the last level also holds the bin lent.
    edges = np.concatenate([_STARTS[precision](kept), kept[:, None]], axis=1)
    in_level = np.diff(below[edges], axis=1)
    spread_over = np.diff(filled[edges], axis=1)
    in_level[:, -1] += lent
    spread_over[:, -1] += lent
    p_in_level = in_level.copy()
    p_in_level[:, -1] += outliers
    with np.errstate(invalid="ignore", divide="ignore"):
        log_q = np.where(in_level > 0, np.log(in_level / spread_over), 0.0)

    # KL = sum of P (log P - log Q) over the bins, for P and Q brought to sum 1.
    p_last = (last + lent + outliers).astype(np.float64)
    p_log_p = _prefix_sums(_x_log_x(counts))[kept - 1] + _x_log_x(p_last)
    sum_p, sum_q = total + lent, below[kept] + lent
    with np.errstate(invalid="ignore", divide="ignore"):
        kl = (p_log_p - (p_in_level * log_q).sum(axis=1)) / sum_p + np.log(sum_q / sum_p)
    return kept, np.maximum(kl, 0.0)


def _best_entropy(histogram: Histogram, precision: str) -> int:
    kept, kl = divergences(histogram, precision=precision)
    allowed = 2 * np.cumsum(histogram.counts)[kept - 1] >= histogram.total
    kl = np.where(allowed & np.isfinite(kl), kl, np.inf)
    return int(kept[np.flatnonzero(kl <= kl.min() + _TIE)[-1]])


def _best_mse(histogram: Histogram, precision: str) -> int:
    filled = np.flatnonzero(histogram.counts)
    centres: FloatArray = filled + np.float64(0.5)
    counts = histogram.counts[filled]
    kept = np.arange(_FEWEST_BINS, len(histogram.counts) + 1)
    errors = [float(np.dot((_ROUND[precision](centres, int(each)) - centres) ** 2, counts)) for each in kept]
    # The widest of equals, as for entropy.
    return int(kept[len(kept) - 1 - int(np.argmin(errors[::-1]))])


def _round_int8(values: FloatArray, largest: int) -> FloatArray:
    step = largest / (_LEVELS - 1)
    return np.minimum(np.rint(values / step), _LEVELS - 1) * step


def _round_fp8(values: FloatArray, largest: int) -> FloatArray:
    scale = largest / _FP8_VALUES[-1]
    nearest = np.searchsorted(_FP8_MIDDLES, values / scale)
    return _FP8_VALUES[nearest] * scale


def _int8_starts(kept: IntArray) -> IntArray:
    """First bin of each of 128 equal levels: int64 [candidates, 128]."""
    return -(-np.arange(_LEVELS) * kept[:, None] // _LEVELS)


def _fp8_starts(kept: IntArray) -> IntArray:
    """First bin of each E4M3 level, a bin belonging to the value nearest to its centre: int64 [candidates, 127]."""
    starts = np.ceil(_FP8_MIDDLES / _FP8_VALUES[-1] * kept[:, None] - 0.5).astype(np.int64)
    return np.concatenate([np.zeros((len(kept), 1), np.int64), np.clip(starts, 0, kept[:, None])], axis=1)


def _prefix_sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sum of the first k values for k from 0 to all."""
    return np.concatenate([[0], np.cumsum(values)])


def _x_log_x(values: npt.NDArray[Any]) -> FloatArray:
    return np.asarray(values * np.log(np.maximum(values, 1)), np.float64)


_FP8_VALUES: FloatArray = np.array(
    [m * 2.0**-9 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)][:-1]
)
"""The 127 magnitudes of float8 E4M3FN: 0 and subnormals, then exponents 1 to 15 without the last code, which is NaN."""
_FP8_MIDDLES = (_FP8_VALUES[1:] + _FP8_VALUES[:-1]) / 2

_STARTS: dict[str, Callable[[IntArray], IntArray]] = {"int8": _int8_starts, "fp8": _fp8_starts}
_ROUND: dict[str, Callable[[FloatArray, int], FloatArray]] = {"int8": _round_int8, "fp8": _round_fp8}
