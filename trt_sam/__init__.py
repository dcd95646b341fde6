"""SAM's mask decoder from a PyTorch checkpoint to FP16/INT8 TensorRT engines in production.

Importing this loads no torch, tensorrt, pycuda or onnxruntime: public names come in when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trt_sam._version import __version__
from trt_sam.errors import TrtSamError

if TYPE_CHECKING:  # what type checkers know of the names below
    from trt_sam.engine.engine_set import build_set as build_set
    from trt_sam.graph.export import export_decoder as export_decoder
    from trt_sam.masks.generator import AutomaticMaskGenerator as AutomaticMaskGenerator
    from trt_sam.model.checkpoint import load_checkpoint as load_checkpoint
    from trt_sam.recipe import EngineRecipe as EngineRecipe
    from trt_sam.recipe_toml import load_recipe as load_recipe
    from trt_sam.runner import DecoderRunner as DecoderRunner
    from trt_sam.runner import RunnerPool as RunnerPool
    from trt_sam.runtime.onnx_runner import OnnxRunner as OnnxRunner
    from trt_sam.runtime.predictor import Predictor as Predictor

_HOMES = {
    "AutomaticMaskGenerator": "trt_sam.masks.generator",
    "DecoderRunner": "trt_sam.runner",
    "EngineRecipe": "trt_sam.recipe",
    "OnnxRunner": "trt_sam.runtime.onnx_runner",
    "Predictor": "trt_sam.runtime.predictor",
    "RunnerPool": "trt_sam.runner",
    "build_set": "trt_sam.engine.engine_set",
    "export_decoder": "trt_sam.graph.export",
    "load_checkpoint": "trt_sam.model.checkpoint",
    "load_recipe": "trt_sam.recipe_toml",
}

__all__ = ["TrtSamError", "__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
