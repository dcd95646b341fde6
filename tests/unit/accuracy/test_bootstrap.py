"""Intervals by resampling images."""

from __future__ import annotations

import numpy as np

from trt_sam.accuracy.bootstrap import mean_interval, paired_interval, percentile_interval


def test_the_interval_of_a_mean_is_that_of_the_images_and_not_of_the_prompts() -> None:
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(25), 16)
    per_image = rng.normal(0.99, 0.01, 25)
    values = per_image[images]
    low, high = mean_interval(values, images)
    expected = 1.96 * per_image.std() / 5
    np.testing.assert_allclose([values.mean() - low, high - values.mean()], expected, rtol=0.25)
    # Were the prompts independent, it would be four times as narrow.
    assert mean_interval(values, np.arange(len(values)))[1] - values.mean() < expected / 2
    assert mean_interval(values, images) == mean_interval(values, images)


def test_a_percentile_lies_in_its_interval() -> None:
    values = np.random.default_rng(1).uniform(0, 1, 800)
    images = np.repeat(np.arange(40), 20)
    low, high = percentile_interval(values, images, 5)
    assert low < np.percentile(values, 5) < high
    assert low > 0
    assert high < 0.12


def test_a_constant_difference_is_certain() -> None:
    values = np.random.default_rng(2).uniform(0.9, 1, 60)
    images = np.repeat(np.arange(6), 10)
    low, high = paired_interval(values, values - 0.01, images)
    np.testing.assert_allclose([low, high], 0.01)
