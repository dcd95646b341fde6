"""How sure a figure is: 95 % intervals by resampling images, for prompts of one image are not independent. numpy only.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), the percentile interval, with images drawn as clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["RESAMPLES", "mean_interval", "paired_interval", "percentile_interval"]

Array = npt.NDArray[Any]

RESAMPLES = 1000
_TAIL = 2.5


def mean_interval(values: Array, images: Array, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean.

    Args:
        values: [num_prompts].
        images: [num_prompts], equal where two prompts are of one image.
        seed: of the resampling.
    """
    weights = _weights(images, seed)
    return _middle(weights @ values / weights.sum(axis=1))


def percentile_interval(values: Array, images: Array, percent: float, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a percentile, the least value that `percent` of the prompts do not exceed; others as above."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(_weights(images, seed)[:, order], axis=1)
    reached = below >= below[:, -1:] * (percent / 100)
    return _middle(values[order][reached.argmax(axis=1)])


def paired_interval(first: Array, second: Array, images: Array, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of `first` - `second`, prompt by prompt.

    `first` is no worse than `second` where the upper end is not below 0.
    """
    return mean_interval(first - second, images, seed=seed)


def _weights(images: Array, seed: int) -> Array:
    """How often each prompt is drawn: whole numbers [RESAMPLES, num_prompts]."""
    found, places = np.unique(images, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(found), np.full(len(found), 1 / len(found)), size=RESAMPLES)
    return np.asarray(drawn[:, places])


def _middle(seen: Array) -> tuple[float, float]:
    low, high = np.percentile(seen, (_TAIL, 100 - _TAIL))
    return float(low), float(high)
