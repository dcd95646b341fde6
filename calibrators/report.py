"""What a calibration reports: every range, where it came from, and what the quantized graph was made of. numpy alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from calibrators.histogram import BINS
from calibrators.ranges import TensorRange
from calibrators.thresholds import PERCENTILE
from trt_sam._version import __version__
from trt_sam.recipe import GraphOptions, QuantizationOptions

if TYPE_CHECKING:
    from calibrators.auto import Choice
    from calibrators.floor import Floor
    from calibrators.trials import Score

__all__ = ["CalibrationReport", "versions"]

_FEW_STEPS = {"int8": 16.0, "fp8": 0.0}
"""Scales that the bulk must reach: of int8's 127, 4 bits are left then. E4M3 is as fine for small values as for large."""
_FEW_BINS = {"int8": 16, "fp8": 2}
"""Bins that the bulk must reach, for the calibrators to see it."""


@dataclass(frozen=True)
class CalibrationReport:
    """What was written, and from what."""

    path: str
    options: GraphOptions
    quantization: QuantizationOptions
    checkpoint_sha256: str
    tensors: tuple[TensorRange, ...]
    quantized_share: float
    """Of the graph's multiply-adds: a decoder's for one prompt of two points, an image encoder's for one picture."""
    left_out: tuple[str, ...]
    """Groups of the tiers that stay in float16: `keep_fp16`, and what "auto" left out."""
    feeds: Mapping[str, Any]
    """`CalibrationFeeds.to_dict`, or `PictureFeeds.to_dict`: fingerprint, images, prompts."""
    agreement: Score
    """Masks of the quantized float32 graph against the float32 graph's, in ONNX Runtime, on a few prompts; of an image encoder
    those that the float32 decoder makes of either's embeddings."""
    versions: Mapping[str, str]
    choice: Choice | None = field(default=None, repr=False)
    """What "auto" tried and decided."""
    floor: Floor | None = field(default=None, repr=False)
    """Which tensors entropy would have clipped, and whether it may; None where it was not asked."""
    held_back: int = 0
    """Images of `agreement` that nothing was calibrated on; 0 where it was measured on some of the calibration prompts."""

    @property
    def coarse(self) -> tuple[str, ...]:
        """A line for each tensor of which a few far values leave too few steps, or bins of the histogram, for the others."""
        steps, bins = _FEW_STEPS[self.options.precision], _FEW_BINS[self.options.precision]
        return tuple(
            f"{row.tensor}: its largest value is {row.largest:.4g}, but {PERCENTILE:g} % are within {row.bulk:.4g} and left "
            f"too few steps; look for a damaged embedding, or put {row.group} into keep_fp16"
            for row in self.tensors
            if row.bulk < steps * row.scale or round(row.bulk / row.largest * BINS) < bins
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        shallow = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "choice"}
        data = {
            name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
            for name, value in shallow.items()
        }
        data["tensors"] = [dataclasses.asdict(each) for each in self.tensors]
        return {**data, "choice": None if self.choice is None else self.choice.to_dict()}


def versions() -> dict[str, str]:
    """Of what made the graph."""
    return {"trt_sam": __version__, **{name: metadata.version(name) for name in ("onnx", "onnxruntime", "torch")}}
