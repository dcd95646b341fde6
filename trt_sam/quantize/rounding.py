"""Second-order rounding of a weight: what one input's rounding does wrong, the inputs after it make good.

GPTQ (Frantar, Ashkboos, Hoefler, Alistarh 2022, arXiv 2210.17323): the inputs of a product are rounded one after another, and
the error of each is spread over those still to come, by the inverse of the inputs' second moments, so that the product's
*outputs* on the calibration data change least. The scale of a column is fixed before and stays.

The inputs carry the rounding noise of their own quantization (INT8: of variance step^2 / 12 each), which their moments get: an
honest damping, in place of GPTQ's 1 %. What the inputs' mean makes of the rounded weight's error is a constant, and the bias
takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["InputMoments", "round_second_order"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

_DAMPING = 1e-6
"""Added to the moments' diagonal, as a share of its mean, where not even noise makes them invertible."""


@dataclass(frozen=True)
class InputMoments:
    """What a tensor [..., channels] that is to be quantized was seen to hold."""

    mean: FloatArray = field(repr=False)
    """float64 [channels]."""
    covariance: FloatArray | None = field(repr=False, default=None)
    """float64 [channels, channels]; None where only the mean is known: weights are then rounded to the nearest."""

    @property
    def about_zero(self) -> FloatArray | None:
        """Second moments, float64 [channels, channels]."""
        return None if self.covariance is None else np.asarray(self.covariance + np.outer(self.mean, self.mean))


def round_second_order(
    levels: FloatArray, moments: FloatArray, noise: FloatArray, nearest: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """Numbers of the format [channels, outputs] for `levels`, the weight in units of its columns' scales.

    Args:
        levels: float64, of any value.
        moments: of the inputs, float64 [channels, channels]: their covariance, where the bias makes good for their mean.
        noise: variance of the rounding noise of each input, float64 [channels].
        nearest: gives the nearest numbers of the format.
    """
    damped = moments + np.diag(noise + _DAMPING * float(np.mean(np.diag(moments))))
    order = np.argsort(-np.diag(damped), kind="stable")
    # Row i of the inverse's Cholesky factor says how an error of input i is spread over the later ones.
    spread = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left, rounded = np.array(levels[order], np.float64), np.empty(levels.shape)
    for place, channel in enumerate(order):
        rounded[channel] = nearest(left[place])
        error = (left[place] - rounded[channel]) / spread[place, place]
        left[place + 1 :] -= np.outer(spread[place, place + 1 :], error)
    return rounded
