"""Graphs that TensorRT-RTX cannot build, through its real parser."""

from __future__ import annotations

import traceback
from pathlib import Path

import onnx
import pytest

from trt_sam.engine.builder import build_engine
from trt_sam.engine.flavour import Flavour, load_flavour
from trt_sam.errors import BuildError
from trt_sam.recipe import EngineRecipe


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return load_flavour("rtx")


def tiny(path: Path, *nodes: onnx.NodeProto, inputs: dict[str, tuple[int, list[int | str]]]) -> Path:
    """A graph of `nodes` with output y, for what a decoder does not show."""
    values = [onnx.helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(list(nodes), "tiny", values, [output])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_parser_errors_name_the_node_and_the_reason(tmp_path: Path, rtx: Flavour) -> None:
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    path = tmp_path / "graph.onnx"
    node = onnx.helper.make_node("Mul", ["x", "h"], ["y"], name="mixed")
    tiny(path, node, inputs={"x": (single, [2]), "h": (half, [2])})
    with pytest.raises(BuildError, match=r"at node 'mixed' \(Mul\): .*must have same input types[^/]*; export"):
        build_engine(path, EngineRecipe(), flavour=rtx)
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    tiny(path, node, inputs={"x": (single, ["batch"])})
    with pytest.raises(BuildError, match=r"input 'x' .* dynamic dimension 'batch'; profiles know num_prompts, num_points"):
        build_engine(path, EngineRecipe(), flavour=rtx)
    node = onnx.helper.make_node("Expand", ["x", "size"], ["y"])
    tiny(path, node, inputs={"x": (single, [1]), "size": (onnx.TensorProto.INT64, [2])})
    with pytest.raises(BuildError, match=r"input 'size' .* decides shapes; only orig_im_size may"):
        build_engine(path, EngineRecipe(), flavour=rtx)


def test_a_failed_build_holds_no_tensorrt_objects(tmp_path: Path, rtx: Flavour) -> None:
    """Freed later, on a thread that holds the GIL, they deadlocked with the next build (seen once in some hundred)."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    path = tiny(tmp_path / "graph.onnx", node, inputs={"x": (onnx.TensorProto.FLOAT, ["batch"])})
    with pytest.raises(BuildError) as caught:
        build_engine(path, EngineRecipe(), flavour=rtx)
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb) if frame.f_code.co_filename.endswith("builder.py")]
    assert len(frames) >= 4
    held = [value for frame in frames for value in frame.f_locals.values()]
    assert not [value for value in held if "tensorrt" in type(value).__module__ and not isinstance(value, Flavour)]
