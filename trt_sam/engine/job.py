"""What one build works on, and the calibrator that an implicit INT8 build is given."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trt_sam.engine.flavour import Flavour
from trt_sam.progress import Progress
from trt_sam.recipe import EngineRecipe

__all__ = ["BuildJob", "Calibrator", "MakeCalibrator"]


class Calibrator(Protocol):
    """An object of one of TensorRT's IInt8*Calibrator classes that also has these."""

    failure: BaseException | None
    """What went wrong in a callback; TensorRT would print and ignore it."""
    written: bytes | None
    """The cache that TensorRT wrote, or None where it read one."""
    warnings: list[str]

    def close(self) -> None:
        """Free the buffers on the GPU. May be called again."""


class MakeCalibrator(Protocol):
    """Makes the calibrator of one build; called on the building thread, once the network is parsed."""

    def __call__(
        self,
        flavour: Flavour,
        shapes: Mapping[str, tuple[int, ...]],
        tensors: Sequence[str],
        stop: threading.Event,
        *,
        device: int = 0,
    ) -> Calibrator:
        """Make it.

        Args:
            flavour: the TensorRT that builds.
            shapes: what every batch must have, by input name; all inputs are float32.
            tensors: names of all tensors of the network.
            stop: set when the build is to end; the calibrator sets it on a failure.
            device: number of the GPU that builds, which calibrates as well.
        """


@dataclass(frozen=True)
class BuildJob:
    """One build, checked: see `build_engine`."""

    path: Path
    recipe: EngineRecipe
    flavour: Flavour
    capabilities: tuple[str, ...]
    """Of the recipe, each once."""
    progress: Progress | None
    timing_cache: Path | None
    make_calibrator: MakeCalibrator | None
    stop: threading.Event
    """Set where the build is to end at its next step."""
    device: int = 0
    """Number of the GPU that builds, where one does."""
