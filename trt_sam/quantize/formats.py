"""The number formats of quantized tensors: INT8 and E4M3, their nearest numbers and their rounding noise. numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FORMATS", "NumberFormat"]

Array = npt.NDArray[Any]

_E4M3_NOISE = 7.0e-4
"""Power of E4M3's rounding noise over that of what is rounded, where that is spread evenly over an octave: -31.5 dB."""


@dataclass(frozen=True)
class NumberFormat:
    """What a number of 8 bits can be."""

    onnx_type: str
    largest: float
    nearest: Callable[[Array], Array]
    """The nearest numbers of the format, float64, for float64 of any value."""
    noise: Callable[[Array, float], Array]
    """Variance of each input's rounding noise, float64 [channels], by its second moment [channels] and the tensor's range."""
    power: int
    """Two to this power is the scale of all weights, if sums have room; about 1 / largest, so that `columns` is about |w|."""


def _nearest_int8(values: Array) -> Array:
    return np.asarray(np.clip(np.rint(values), -127.0, 127.0))


def _nearest_e4m3(values: Array) -> Array:
    """Three bits behind the leading one, down to steps of 2^-9."""
    limited = np.clip(values, -448.0, 448.0)
    step = 2.0 ** (np.maximum(np.frexp(limited)[1] - 1, -6) - 3)
    return np.asarray(np.rint(limited / step) * step)


def _noise_int8(second_moments: Array, amax: float) -> Array:
    return np.full(second_moments.shape, (amax / 127.0) * (amax / 127.0) / 12)


def _noise_e4m3(second_moments: Array, _: float) -> Array:
    return np.asarray(_E4M3_NOISE * second_moments)


FORMATS: Mapping[str, NumberFormat] = {
    "int8": NumberFormat("INT8", 127.0, _nearest_int8, _noise_int8, -7),
    "fp8": NumberFormat("FLOAT8E4M3FN", 448.0, _nearest_e4m3, _noise_e4m3, -9),
}
"""By precision."""
