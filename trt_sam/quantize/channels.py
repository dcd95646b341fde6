"""What is known of a tensor's channels, and what is done to them before the tensor is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trt_sam.errors import CalibrationError

__all__ = ["ChannelChange", "ChannelStats", "Vector"]

Vector = npt.NDArray[np.float64]


class ChannelStats(Protocol):
    """What a tensor [..., channels] was seen to hold, by channel: float64 [channels] each."""

    @property
    def mean(self) -> npt.NDArray[Any]: ...
    @property
    def amin(self) -> npt.NDArray[Any]: ...
    @property
    def amax(self) -> npt.NDArray[Any]: ...
    @property
    def mix(self) -> npt.NDArray[Any] | None: ...


@dataclass(frozen=True)
class ChannelChange:
    """What is done to a tensor x [..., channels] before it is quantized: (mixed x - shift) / scale."""

    shift: Vector
    """float64 [channels]."""
    scale: Vector
    """float64 [channels], above 0."""
    mix: Vector | None = None
    """float64 [heads, d, d], for the output of an attention alone (`mixing`); None leaves the channels as they are."""

    def __post_init__(self) -> None:
        shift, scale = self.shift, self.scale
        if not (shift.ndim == 1 and shift.shape == scale.shape and np.isfinite([shift, scale]).all() and (scale > 0).all()):
            raise CalibrationError("a shift and a scale must be finite arrays of one length, and the scale above 0")
