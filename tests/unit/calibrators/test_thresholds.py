"""Histograms and the four calibrators: against a literal reference, against ModelOpt's scales, and by their properties."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from calibrators.histogram import Histogram, count_bins, histogram_of
from calibrators.thresholds import THRESHOLDS, divergences, threshold
from trt_sam.errors import CalibrationError, InputError

DATA = Path(__file__).resolve().parents[2] / "data"
sys.path.insert(0, str(DATA))
from modelopt_scales import ARRAYS, make_array  # noqa: E402

NAMES = list(ARRAYS)


def kept_bins(histogram: Histogram, calibrator: str, precision: str = "int8") -> int:
    return round(threshold(histogram, calibrator, precision=precision) / histogram.width)


# --- The histogram ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_counts_are_numpys(dtype: npt.DTypeLike) -> None:
    x = np.random.default_rng(0).normal(0, 2, (7, 300, 41)).astype(dtype)
    found = histogram_of(x)
    wide = np.abs(x.astype(np.float64))
    assert found.amax == wide.max()
    assert found.counts.dtype == np.int64
    assert found.total == x.size
    # numpy divides in float64, which may put a value that lies on an edge into the neighbouring bin.
    counts = np.histogram(wide, bins=2048, range=(0, wide.max()))[0]
    assert np.abs(np.cumsum(found.counts) - np.cumsum(counts)).max() <= (0 if dtype == np.float64 else 3)


def test_several_arrays_in_any_order_count_as_one() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(0, scale, 1000 * scale).astype(np.float32) for scale in (1, 7, 3)]
    whole = histogram_of(np.concatenate(parts))
    for order in ([0, 1, 2], [2, 0, 1]):
        found = histogram_of(parts[i] for i in order)
        assert found.amax == whole.amax
        np.testing.assert_array_equal(found.counts, whole.counts)


@pytest.mark.parametrize("amax", [1e-45, 1e-38, 1.0, 3.4e38])
def test_every_range_of_float32_can_be_counted(amax: float) -> None:
    x = np.array([0, amax, -amax, amax / 4], np.float32)
    found = histogram_of(x)
    assert found.total == 4
    assert found.counts[-1] == (3 if amax == 1e-45 and x[3] == x[1] else 2)
    assert found.counts[0] >= 1


def test_histograms_of_nothing_and_of_nan() -> None:
    for nothing in (np.zeros(0), [], [np.zeros((0, 3))]):
        with pytest.raises(CalibrationError, match="no value"):
            histogram_of(nothing)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(CalibrationError, match="NaN or infinity"):
            histogram_of(np.array([1.0, value]))
    with pytest.raises(CalibrationError, match="beyond the range 0"):
        count_bins(np.ones(3), 0.0)
    with pytest.raises(CalibrationError, match="beyond the range 1"):
        count_bins(np.array([0.5, 1e30], np.float32), 1.0)


# --- A literal reference: loops, as the algorithms are told ---


def fp8_values() -> list[float]:
    values = []
    for code in range(127):
        exponent, mantissa = code >> 3, code & 7
        values.append(mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))
    return values


def level_of(k: int, kept: int, precision: str) -> int:
    """Which quantization level bin k of `kept` falls into."""
    if precision == "int8":
        return k * 128 // kept
    centre = (k + 0.5) / kept * 448
    distances = [abs(value - centre) for value in fp8_values()]
    nearest = min(distances)
    return max(i for i, distance in enumerate(distances) if distance == nearest)


def reference_divergence(counts: list[int], kept: int, precision: str = "int8") -> float:
    bins = [counts[1], *counts[1:]]
    outliers = sum(bins[kept:])
    source = bins[:kept]
    if outliers > 0 and source[-1] == 0:
        source[-1] = 1
    p = list(source)
    p[-1] += outliers
    levels: dict[int, list[int]] = {}
    for k in range(kept):
        levels.setdefault(level_of(k, kept, precision), []).append(k)
    q = [0.0] * kept
    for members in levels.values():
        filled = [k for k in members if source[k] > 0]
        for k in filled:
            q[k] = sum(source[m] for m in members) / len(filled)
    sum_p, sum_q = sum(p), sum(q)
    if sum_q == 0:
        return math.inf
    return sum(a / sum_p * math.log((a / sum_p) / (b / sum_q)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["gauss", "relu", "student 3", "two modes", "one outlier", "gauss of few values"])
def test_divergences_are_those_of_the_reference(name: str, precision: str) -> None:
    histogram = histogram_of(make_array(name))
    kept, found = divergences(histogram, precision=precision)
    assert kept[0] == 128
    assert kept[-1] == 2048
    counts = histogram.counts.tolist()
    # The reference takes seconds for all: every 60th, and both ends.
    for index in [*range(0, len(kept), 60 if precision == "int8" else 400), len(kept) - 1]:
        expected = reference_divergence(counts, int(kept[index]), precision)
        if math.isfinite(expected):
            assert found[index] == pytest.approx(expected, rel=1e-9, abs=1e-11)
        else:
            assert not np.isfinite(found[index])


@pytest.mark.parametrize("name", ["gauss", "laplace", "one outlier", "mostly zero"])
def test_entropy_takes_the_candidate_of_the_reference(name: str) -> None:
    histogram = histogram_of(make_array(name), bins=256)
    counts = histogram.counts.tolist()
    total = sum(counts)
    best, best_kept = math.inf, 0
    for kept in range(128, 257):
        divergence = reference_divergence(counts, kept)
        if 2 * sum(counts[:kept]) >= total and divergence <= best + 1e-12:
            best, best_kept = min(best, divergence), kept
    assert kept_bins(histogram, "entropy") == best_kept


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_mse_takes_the_candidate_of_the_reference(precision: str) -> None:
    histogram = histogram_of(make_array("student 6"), bins=256)
    errors = []
    for kept in range(128, 257):
        largest = kept * histogram.width
        error = 0.0
        for k, count in enumerate(histogram.counts.tolist()):
            x = (k + 0.5) * histogram.width
            if precision == "int8":
                step = largest / 127
                y = min(round(x / step), 127) * step
            else:
                y = min((abs(v / 448 * largest - x), v / 448 * largest) for v in fp8_values())[1]
            error += count * (x - y) ** 2
        errors.append(error)
    assert errors[kept_bins(histogram, "mse", precision) - 128] == pytest.approx(min(errors), rel=1e-9)


@pytest.mark.parametrize("name", ["gauss", "relu", "student 3", "mostly zero", "two modes"])
def test_exact_zeros_do_not_move_the_range_of_mse(name: str) -> None:
    histogram = histogram_of(make_array(name))
    for precision, times in (("int8", 1000), ("fp8", 10)):
        counts = histogram.counts.copy()
        counts[0] += times * histogram.total
        more = Histogram(counts, histogram.amax)
        assert kept_bins(more, "mse", precision) == kept_bins(histogram, "mse", precision)


def test_percentile_keeps_that_share_and_not_a_bin_more() -> None:
    histogram = histogram_of(make_array("student 3"))
    for percentile in (50.0, 99.0, 99.9, 99.99, 100.0):
        kept = round(threshold(histogram, "percentile", percentile=percentile) / histogram.width)
        assert histogram.counts[:kept].sum() >= percentile / 100 * histogram.total
        assert histogram.counts[: kept - 1].sum() < percentile / 100 * histogram.total


# --- ModelOpt's torch histogram calibrator, on twenty arrays (scripts/modelopt_scales.py) ---


@pytest.fixture(scope="module")
def modelopt() -> dict[str, Any]:
    with np.load(DATA / "modelopt_scales.npz", allow_pickle=False) as data:
        assert data["names"].tolist() == NAMES
        assert len(NAMES) == 20
        assert data["methods"].tolist() == ["entropy", "mse", "percentile", "max"]
        return {name: tuple(data[key][i] for key in ("sha256", "counts", "ranges")) for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("name", NAMES)
def test_agreement_with_modelopt(name: str, modelopt: dict[str, Any]) -> None:
    sha256, their_counts, ranges = modelopt[name]
    array = make_array(name)
    assert hashlib.sha256(array.tobytes()).hexdigest() == sha256, (
        "numpy's streams changed: run scripts/modelopt_scales.py again"
    )
    histogram = histogram_of(array)
    np.testing.assert_array_equal(histogram.counts, their_counts)
    entropy, mse, percentile, largest = (float(value) / histogram.width for value in ranges)
    assert threshold(histogram, "max") == pytest.approx(ranges[3], rel=1e-7)
    assert largest == pytest.approx(2048, abs=0.01)
    # They give the lower edge of the percentile's bin, here it is the upper one, which keeps at least that many.
    assert kept_bins(histogram, "percentile") == pytest.approx(percentile + 1, abs=0.01)
    # They clip at centres of bins and sum in float32. Around its least the error is flat: of relu 0.3 % of the range apart.
    assert kept_bins(histogram, "mse") == pytest.approx(mse, abs=6)

    # Theirs leaves infinity where a candidate ends on an empty bin. Among the others both must choose the same bin.
    kept, kl = divergences(histogram)
    filled = (histogram.counts[kept - 1] > 0) | (kept == 2048)
    empty = np.cumsum(histogram.counts)[kept - 1] == 0
    if empty.any():
        # Nothing kept: theirs divides 0 by 0, and numpy's argmin takes the NaN. Ours asks for half of the values.
        assert entropy == pytest.approx(kept[empty][-1], abs=0.05)
        assert name in ("gauss off centre", "two modes")
        assert kept_bins(histogram, "entropy") > 2000
        return
    comparable = np.where(filled, kl, np.inf)
    same = kept[np.flatnonzero(comparable <= comparable.min() + 1e-12)[-1]]
    assert same == pytest.approx(entropy, abs=0.05)
    # Lending an empty last bin one value only adds candidates.
    assert kl[kept_bins(histogram, "entropy") - 128] <= comparable.min() + 1e-12


# --- Properties ---


@pytest.mark.parametrize("name", NAMES)
def test_ranges_lie_below_max_and_keep_half(name: str) -> None:
    histogram = histogram_of(make_array(name))
    for precision in ("int8", "fp8"):
        for calibrator in THRESHOLDS:
            found = threshold(histogram, calibrator, precision=precision)
            assert 0 < found <= histogram.amax == threshold(histogram, "max")
            if calibrator != "mse":
                assert 2 * histogram.counts[: round(found / histogram.width)].sum() >= histogram.total


@pytest.mark.parametrize("name", ["gauss", "student 3", "relu", "two unequal modes", "softmax of 7"])
def test_ranges_follow_a_rescaling_of_the_data(name: str) -> None:
    array = make_array(name)
    for calibrator in THRESHOLDS:
        found = threshold(histogram_of(array), calibrator)
        # A power of two changes no digit; another factor may move a value that lies on an edge into the next bin.
        assert threshold(histogram_of(array * np.float32(2**-9)), calibrator) == found * 2**-9
        assert threshold(histogram_of(array * np.float32(137.3)), calibrator) == pytest.approx(found * 137.3, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_signs_and_order_of_values_do_not_matter(name: str) -> None:
    array = make_array(name)
    changed = np.random.default_rng(0).permutation(array) * np.random.default_rng(1).choice(np.float32([-1, 1]), array.size)
    for calibrator in THRESHOLDS:
        assert threshold(histogram_of(changed), calibrator) == threshold(histogram_of(array), calibrator)


@pytest.mark.parametrize("outlier", [8.0, 60.0, 1000.0])
def test_a_planted_outlier_is_clipped_by_entropy_not_by_max(outlier: float) -> None:
    bulk = np.random.default_rng(5).normal(0, 1, 200_000).astype(np.float32)
    histogram = histogram_of([bulk, np.array([-outlier], np.float32)])
    assert threshold(histogram, "max") == outlier
    # A candidate keeps at least 128 of 2048 bins, a sixteenth.
    assert threshold(histogram, "entropy") < max(5.0, outlier / 10)
    assert threshold(histogram, "entropy") > 0.6 * np.abs(bulk).max()


def test_a_tensor_of_one_magnitude_keeps_it() -> None:
    histogram = histogram_of(np.array([3.0, -3.0, 3.0], np.float32))
    for calibrator in ("entropy", "percentile", "max"):
        assert threshold(histogram, calibrator) == 3.0
    assert threshold(histogram, "mse") == pytest.approx(3.0, rel=0.002)


def test_zeros_alone_are_an_error_and_bad_options_too() -> None:
    for calibrator in THRESHOLDS:
        with pytest.raises(CalibrationError, match="every value is 0"):
            threshold(histogram_of(np.zeros(10)), calibrator)
    histogram = histogram_of(make_array("gauss"))
    for wrong in (
        {"calibrator": "auto"},
        {"precision": "fp16"},
        {"percentile": 0},
        {"percentile": 101},
        {"percentile": math.nan},
    ):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            threshold(histogram, **{"calibrator": "percentile", **wrong})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has 64 bins"):
        threshold(histogram_of(make_array("gauss"), bins=64), "max")
