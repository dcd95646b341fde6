"""Engine sets made in milliseconds: a tiny graph with the contract's tensors, and a stand-in for the TensorRT step.

Run as a script it is the kill test's subject: see `tests/unit/engine/test_set_folder.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trt_sam.contract import encoder_input_specs, encoder_output_specs, input_specs, output_specs
from trt_sam.engine.builder import BuildResult
from trt_sam.engine.engine_set import BuiltSet, GraphSource, build_set
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.layers import KernelSummary
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile

RTX = Flavour("rtx", "1.7.1.116", ModuleType("tensorrt_rtx"))
FILES = ["decoder.engine", "decoder.onnx", "manifest.json"]
"""Of a set with one graph."""
PLAIN = GraphOptions(precision="fp16")
MASK = dataclasses.replace(PLAIN, mask_input=True)
RECIPE = EngineRecipe(decode_mask=True, profiles=(ShapeProfile(num_prompts=(1, 1, 4), num_points=(1, 2, 6)),))
"""Of a set with a graph of PLAIN and one of MASK."""


def names(folder: Path) -> list[str]:
    """The files in `folder`, sorted."""
    return sorted(path.name for path in folder.iterdir())


def write_tiny_graph(path: Path, options: GraphOptions | None = None, name: str = "tiny") -> None:
    """A valid decoder graph by its tensors and metadata, that computes nothing."""
    options = options or GraphOptions()
    dtype = "float32" if options.precision == "fp32" else "float16"
    sides = {"mask_input": options.mask_input, "full_resolution": options.full_resolution}
    outputs = output_specs(
        full_resolution=options.full_resolution, best_mask=options.best_mask, mask_bits=options.mask_bits, dtype=dtype
    )
    values = [
        [helper.make_tensor_value_info(s.name, helper.np_dtype_to_tensor_dtype(np.dtype(s.dtype)), list(s.dims)) for s in specs]
        for specs in (input_specs(**sides), outputs)
    ]
    zeros = {s.name: np.zeros((1,) * len(s.dims), s.dtype) for s in outputs}
    nodes = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(zero)) for n, zero in zeros.items()]
    model = helper.make_model(helper.make_graph(nodes, name, *values), opset_imports=[helper.make_opsetid("", 20)])
    recorded = {"trt_sam.version": "0", "trt_sam.options": json.dumps(dataclasses.asdict(options))}
    helper.set_model_props(model, {**recorded, "trt_sam.checkpoint_sha256": "ab" * 32})
    onnx.save(model, path)


def write_tiny_encoder(path: Path, precision: str = "fp16", checkpoint_sha256: str = "ab" * 32) -> None:
    """A valid image encoder by its tensors and metadata, that computes nothing."""
    dtype = "float32" if precision == "fp32" else "float16"
    (output,) = encoder_output_specs(dtype=dtype)
    values = [
        [helper.make_tensor_value_info(s.name, helper.np_dtype_to_tensor_dtype(np.dtype(s.dtype)), list(s.dims)) for s in specs]
        for specs in (encoder_input_specs(), (output,))
    ]
    zero = numpy_helper.from_array(np.zeros((1,) * len(output.dims), output.dtype))
    node = helper.make_node("Constant", [], [output.name], value=zero)
    model = helper.make_model(helper.make_graph([node], "encoder", *values), opset_imports=[helper.make_opsetid("", 20)])
    recorded = {"trt_sam.version": "0", "trt_sam.role": "encode", "trt_sam.checkpoint_sha256": checkpoint_sha256}
    helper.set_model_props(model, recorded)
    onnx.save(model, path)


def tiny_sources(graphs: int = 1, options: GraphOptions | None = None, name: str = "tiny") -> list[GraphSource]:
    """What writes one tiny graph, or the two of a set with decode_mask."""
    plain = options or GraphOptions()
    each = [plain, dataclasses.replace(plain, mask_input=True)][:graphs]
    return [GraphSource(functools.partial(write_tiny_graph, options=one, name=name)) for one in each]


def tiny_build(engine: bytes = b"engine") -> Any:
    """Stands in for `build_engine`."""

    def build(path: Path, recipe: EngineRecipe, **_: object) -> BuildResult:
        assert path.is_file()
        return BuildResult(engine, (KernelSummary(kernels=3),), (), 0.5, recipe.compute_capabilities, ())

    return build


def tiny_set(
    folder: Path, *, recipe: EngineRecipe | None = None, options: GraphOptions | None = None, flavour: Flavour = RTX
) -> BuiltSet:
    """Build a whole set into `folder`, with two graphs where the recipe says so."""
    recipe = recipe or EngineRecipe()
    return build_set(
        tiny_sources(1 + recipe.decode_mask, options),
        recipe,
        folder,
        flavour=flavour,
        engine_builder=tiny_build(),
    )
