"""`trt-sam inspect` on a real graph: arithmetic without TensorRT, kernels and modelled times with TensorRT-RTX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests.fixtures.exports import random_graph
from tests.helpers import refused
from trt_sam.cli import main
from trt_sam.recipe import GraphOptions


@pytest.fixture(scope="session")
def graph() -> Path:
    return random_graph(GraphOptions(precision="fp16"))


def make_graph(path: Path, *, kind: str = "Relu", dims: tuple[Any, ...] = ("num_prompts", "num_points", 64)) -> Path:
    """x W, then a second operator."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 32], [0.5] * 64 * 32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), helper.make_node(kind, ["y"], ["z"], name="last")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(dims))]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [*dims[:-1], 32])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [weight]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save(model, path)
    return path


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_arithmetic_needs_sizes_and_no_tensorrt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = make_graph(tmp_path / "g.onnx")
    assert main(["inspect", str(graph)]) == 0
    text = capsys.readouterr().out
    assert "arithmetic: not counted; give every dynamic size" in text
    assert "kernels: not counted; give --kernels" in text
    report = inspect(capsys, graph, "--prompts", 3, "--points", 5)
    assert report["arithmetic"]["multiply_adds"] == 3 * 5 * 64 * 32
    assert report["arithmetic"]["kinds"]["Relu"]["bytes"] == 2 * 4 * 3 * 5 * 32
    assert not {"kernels", "modelled", "tensorrt"} & set(report)
    assert report == inspect(capsys, graph, "--shape", "num_prompts=3,num_points=5")
    assert report == inspect(capsys, graph, "--prompts", 3, "--shape", "num_points=5")
    assert main(["inspect", str(graph), "--prompts", "3", "--points", "5"]) == 0
    assert "30,720 multiply-adds" in capsys.readouterr().out


def test_a_static_graph_is_counted_without_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(capsys, make_graph(tmp_path / "g.onnx", dims=(2, 3, 64)))["arithmetic"]["multiply_adds"] == 6 * 64 * 32


def test_kernels_are_priced_at_fixed_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = make_graph(tmp_path / "g.onnx")
    dynamic = inspect(capsys, graph, "--kernels")
    assert dynamic["kernels"][0]["kernels"] >= 1
    assert "modelled" not in dynamic
    report = inspect(capsys, graph, "--kernels", "--prompts", 8, "--points", 1024)
    assert sum(cost["flop"] for cost in report["kernel_costs"]) == 2 * report["arithmetic"]["multiply_adds"]
    assert report["unplaced_products"] == {}
    assert [time["gpu"] for time in report["modelled"]] == ["H100 SXM", "RTX 4090"]
    for time in report["modelled"]:
        bounds = [time[f"{bound}_bound"] for bound in ("launch", "bandwidth", "arithmetic")]
        assert sum(bounds) == len(report["kernel_costs"]) == report["kernels"][0]["kernels"]
        assert time["microseconds"] >= 2 * sum(bounds)
    assert main(["inspect", str(graph), "--kernels", "--prompts", "8", "--points", "1024"]) == 0
    assert "modelled on RTX 4090:" in capsys.readouterr().out


def test_an_operator_that_is_not_known_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = make_graph(tmp_path / "g.onnx", kind="Relu", dims=(2, 64))
    model = onnx.load(graph)
    model.graph.node.append(helper.make_node("Einsum", ["z"], ["e"], equation="ij->j"))
    model.graph.output.append(helper.make_tensor_value_info("e", TensorProto.FLOAT, [32]))
    onnx.save(model, graph)
    assert main(["inspect", str(graph)]) == 0
    assert "Einsum, whose arithmetic is not known here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompts", "0"], "size 'num_prompts=0' must be NAME=SIZE"),
        (["--points", "many"], "size 'num_points=many' must be NAME=SIZE"),
        (["--points", "2", "--shape", "num_points=3"], "num_points is given twice"),
    ],
)
def test_wrong_sizes_are_one_line(flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(make_graph(tmp_path / "g.onnx")), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_engine_takes_no_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path), "--prompts", "1", "--kernels"]) == 2
    assert "--prompts and --kernels are for ONNX graphs" in capsys.readouterr().err


def test_inspect_compiles_a_graph_at_fixed_sizes(graph: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    arguments = ["--shape", "num_prompts=1,num_points=2", "--compute-capability", "8.9", "--json", str(report_path)]
    assert main(["inspect", str(graph), *arguments]) == 0
    text = capsys.readouterr().out
    assert "input  point_coords: float32 [num_prompts, num_points, 2]" in text
    assert "7 fused attentions" in text
    report = json.loads(report_path.read_text())
    assert report["shapes"] == {"num_prompts": [1, 1, 1], "num_points": [2, 2, 2]}
    assert json.loads(report["metadata"]["trt_sam.options"])["precision"] == "fp16"
    assert sum(report["nodes"].values()) == len(onnx.load(graph, load_external_data=False).graph.node)
    (kernels,) = report["kernels"]
    assert len(report["layers"]) == kernels["kernels"] + kernels["waits"] + kernels["host_calls"]


def test_inspect_refuses_in_one_line(graph: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for shape in ("points=2", "num_points", "num_points=0", "num_points=two", ""):
        assert "must be NAME=SIZE" in refused(capsys, "inspect", graph, "--shape", shape)
    engine = tmp_path / "decoder.engine"
    assert "engine not found" in refused(capsys, "inspect", engine)
    engine.write_bytes(b"engine")
    assert "is no engine set" in refused(capsys, "inspect", engine)
    assert "built already" in refused(capsys, "inspect", engine, "--shape", "num_points=2")
    assert "is not an ONNX file" in refused(capsys, "inspect", Path(__file__))
