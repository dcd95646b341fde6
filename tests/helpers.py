"""Small decoders and graphs that several tests share."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from trt_sam.cli import main
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.graph.export import export_decoder
from trt_sam.graph.full_resolution import append_full_resolution
from trt_sam.model import SamDecoder
from trt_sam.recipe import GraphOptions

MLP_DIM = 128
"""The contract fixes the decoder's other sizes; a narrow MLP makes its graphs smaller."""
CHECKPOINT_SHA256 = "5a" * 32

PLAIN = GraphOptions(precision="fp32", target="cpu")


def error_line(err: str) -> str:
    """The one error of a command's stderr, its last line; only lines of stages stand before it."""
    *stages, error = err.splitlines(keepends=True)
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in stages), err
    assert error.startswith("trt-sam: error: ")
    assert error.endswith("\n")
    return error


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command line, expect exit code 2 and one error on stderr, and return its line."""
    assert main([str(argument) for argument in arguments]) == 2
    return error_line(capsys.readouterr().err)


def make_decoder() -> SamDecoder:
    """A decoder with random weights, always the same."""
    torch.manual_seed(7)
    return SamDecoder(mlp_dim=MLP_DIM).eval().requires_grad_(False)


def make_embedding(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32)


def load_benchmark(name: str) -> ModuleType:
    """A script of benchmarks/ as a module, with its folder on the path as Python does for a script."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def write_graphs(folder: Path) -> None:
    """Make `folder` with NAME.onnx for each name below.

    "mask" is a decoder with mask input, exported; what more exports would take minutes for is derived from it. "plain" has no
    mask input. From plain: "full" (masks at orig_im_size), "half" (float16 masks), "fixed" (one prompt only),
    "meta" (no metadata of ours) and "best" (one mask, where plain gives four).
    """
    folder.mkdir()
    paths = {name: folder / f"{name}.onnx" for name in ("mask", "plain", "full", "half", "fixed", "meta", "best")}
    options = dataclasses.replace(PLAIN, mask_input=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((3, 2),))  # test_export compares at every size
        export_decoder(make_decoder(), paths["mask"], options, checkpoint_sha256=CHECKPOINT_SHA256)

    model = onnx.load(paths["mask"])
    _drop_mask_input(model)
    save_with_options(model, PLAIN, paths["plain"])

    model = onnx.load(paths["plain"])
    append_full_resolution(model)
    del model.graph.output[:]
    for name, dims in (("masks", ["num_prompts", 4, "height", "width"]), *_OUTPUTS):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    save_with_options(model, dataclasses.replace(PLAIN, full_resolution=True), paths["full"])

    model = onnx.load(paths["plain"])
    _rename_output(model, "low_res_masks", "wide")
    model.graph.node.append(helper.make_node("Cast", ["wide"], ["low_res_masks"], to=TensorProto.FLOAT16))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    save_with_options(model, dataclasses.replace(PLAIN, precision="fp16"), paths["half"])

    model = onnx.load(paths["plain"])
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "num_prompts":
                dim.dim_value = 1
    onnx.save(model, paths["fixed"])

    model = onnx.load(paths["plain"])
    del model.metadata_props[:]
    onnx.save(model, paths["meta"])

    model = onnx.load(paths["plain"])
    for name in ("low_res_masks", "iou_predictions"):
        _rename_output(model, name, f"all_{name}")
        model.graph.node.append(helper.make_node("Gather", [f"all_{name}", "first"], [name], axis=1))
    model.graph.initializer.append(helper.make_tensor("first", TensorProto.INT64, [1], [0]))
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[1].dim_value = 1
    save_with_options(model, dataclasses.replace(PLAIN, best_mask=True), paths["best"])


def save_with_options(model: onnx.ModelProto, options: GraphOptions | dict[str, Any], path: Path) -> None:
    fields = options if isinstance(options, dict) else dataclasses.asdict(options)
    metadata = {
        "trt_sam.version": "0.1.0",
        "trt_sam.options": json.dumps(fields),
        "trt_sam.checkpoint_sha256": CHECKPOINT_SHA256,
    }
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)


_OUTPUTS: tuple[tuple[str, list[Any]], ...] = (
    ("low_res_masks", ["num_prompts", 4, 256, 256]),
    ("iou_predictions", ["num_prompts", 4]),
)


def _rename_output(model: onnx.ModelProto, old: str, new: str) -> None:
    """Rename the tensor inside the graph; the output of that name is then free for another node."""
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _drop_mask_input(model: onnx.ModelProto) -> None:
    """Make `mask_input` and `has_mask_input` zeros that the graph computes, one per prompt."""
    kept = [value for value in model.graph.input if value.name not in ("mask_input", "has_mask_input")]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(
        [
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0]),
            helper.make_tensor("points_axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("mask_axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("no_mask", TensorProto.FLOAT, [1, 1, 256, 256], np.zeros(256 * 256).tolist()),
        ]
    )
    nodes = [
        helper.make_node("Mul", ["point_labels", "zero"], ["zero_labels"]),
        helper.make_node("ReduceSum", ["zero_labels", "points_axis"], ["has_mask_input"], keepdims=0),
        helper.make_node("Unsqueeze", ["has_mask_input", "mask_axes"], ["zero_masks"]),
        helper.make_node("Add", ["zero_masks", "no_mask"], ["mask_input"]),
    ]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
