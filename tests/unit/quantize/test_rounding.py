"""Second-order rounding against rounding to the nearest, on correlated inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from trt_sam.quantize.formats import FORMATS
from trt_sam.quantize.rounding import InputMoments, round_second_order

CHANNELS, OUTPUTS = 48, 20
INT8, FP8 = FORMATS["int8"].nearest, FORMATS["fp8"].nearest


def noise(step: float) -> np.ndarray:
    return np.full(CHANNELS, step * step / 12)


def inputs() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(4000, 6)) @ rng.normal(size=(6, CHANNELS)) + 0.2 * rng.normal(size=(4000, CHANNELS)) + 1.0


def levels() -> np.ndarray:
    return np.random.default_rng(1).uniform(-6, 6, (CHANNELS, OUTPUTS))


def test_outputs_change_less_than_with_the_nearest() -> None:
    x, wanted = inputs(), levels()
    rounded = round_second_order(wanted, np.cov(x.T), noise(0.01), INT8)
    assert np.array_equal(rounded, np.rint(rounded))
    centred = x - x.mean(axis=0)
    lost = [float(np.square(centred @ (wanted - other)).mean()) for other in (rounded, np.rint(wanted))]
    assert lost[0] < 0.5 * lost[1]


def test_inputs_that_do_not_correlate_are_rounded_to_the_nearest() -> None:
    wanted = levels()
    moments = np.diag(np.arange(1.0, CHANNELS + 1))
    assert np.array_equal(round_second_order(wanted, moments, noise(0.01), INT8), np.rint(wanted))


def test_fp8_outputs_change_less_too_and_its_numbers_are_e4m3() -> None:
    x, wanted = inputs(), levels()
    rounded = round_second_order(wanted, np.cov(x.T), noise(0.01), FP8)
    assert np.array_equal(rounded, rounded.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64))
    centred = x - x.mean(axis=0)
    lost = [float(np.square(centred @ (wanted - other)).mean()) for other in (rounded, FP8(wanted))]
    assert lost[0] < 0.5 * lost[1]


def test_the_nearest_e4m3_is_what_a_cast_gives() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=5000) * 2.0**power for power in range(-12, 10, 2)])
    values = np.clip(np.append(values, [0.0, 448, -448, 2.0**-10, 3 * 2.0**-10]), -448, 448).astype(np.float32)
    cast = values.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert np.array_equal(FP8(values.astype(np.float64)), cast)


def test_levels_stay_in_range_and_a_dead_channel_is_no_trouble() -> None:
    x = inputs()
    x[:, 3] = 0
    rounded = round_second_order(levels() * 30, np.cov(x.T), noise(0.0), INT8)
    assert np.abs(rounded).max() == 127
    assert np.isfinite(rounded).all()


def test_moments_about_zero() -> None:
    x = inputs()
    seen = InputMoments(x.mean(axis=0), np.cov(x.T, bias=True))
    assert seen.about_zero is not None
    np.testing.assert_allclose(seen.about_zero, x.T @ x / len(x))
    assert InputMoments(x.mean(axis=0)).about_zero is None
