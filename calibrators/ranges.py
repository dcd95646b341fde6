"""One row of a calibration: the range of a tensor and where it came from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TensorRange"]


@dataclass(frozen=True)
class TensorRange:
    """The range of one quantized activation."""

    tensor: str
    group: str
    """Of the first product that reads it, as `keep_fp16` names it."""
    tier: str
    products: tuple[str, ...]
    """The nodes that read it."""
    calibrator: str
    amax: float
    """The |value| that becomes the largest quantized one."""
    scale: float
    """amax / 127 for int8, amax / 448 for fp8, before it is rounded to float16."""
    largest: float
    """The largest |value| seen."""
    clipped: float
    """Share of the values beyond `amax`."""
    bulk: float
    """What `thresholds.PERCENTILE` percent of the |values| do not exceed, as near as the histogram's bins tell."""
