"""What a recipe says of TensorRT's search for kernels, told to its builder."""

from __future__ import annotations

from typing import Any

from trt_sam.engine.flavour import Flavour
from trt_sam.errors import BuildError
from trt_sam.recipe import TuningOptions

__all__ = ["apply_tuning"]


def apply_tuning(config: Any, tuning: TuningOptions, flavour: Flavour) -> None:
    """Set what `tuning` sets in an IBuilderConfig.

    Raises:
        BuildError: this flavour cannot tile, or times no kernels.
    """
    trt = flavour.trt
    if tuning.optimization_level is not None:
        config.builder_optimization_level = tuning.optimization_level
    if tuning.tiling is not None:
        levels = getattr(trt, "TilingOptimizationLevel", None)
        if levels is None:
            raise BuildError(f"{flavour.title} has no tiling levels; take tiling out of the recipe")
        config.tiling_optimization_level = levels.__members__[tuning.tiling.upper()]
    if tuning.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, tuning.workspace_mib << 20)
    if not tuning.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if tuning.timing_iterations is not None:
        if not flavour.has_timing_cache:
            raise BuildError(f"{flavour.title} times no kernels; take timing_iterations out of the recipe")
        config.avg_timing_iterations = tuning.timing_iterations
