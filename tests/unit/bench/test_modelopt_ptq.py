"""benchmarks/modelopt_ptq.py: what counts as quantized, which pairs count against us, and the feeds that ModelOpt is given."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from helpers import load_benchmark
from onnx import TensorProto, helper, numpy_helper

from trt_sam.errors import InputError


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("modelopt_ptq")


def graph(quantized: tuple[str, ...] = ()) -> onnx.ModelProto:
    """x [P, N, 8] by 8 to 24 (wide), by 24 to 8 (narrow), joined with x, by itself; `quantized` tensors pass a pair."""
    nodes, weights = [], {"first": np.ones((8, 24), np.float32), "second": np.ones((24, 8), np.float32)}

    def read(name: str) -> str:
        if name not in quantized:
            return name
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"], name=f"{name}/Q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_dq"], name=f"{name}/DQ"))
        return f"{name}_dq"

    wide = read("x")
    nodes.append(helper.make_node("MatMul", [wide, read("first")], ["hidden"], name="wide"))
    nodes.append(helper.make_node("MatMul", [read("hidden"), read("second")], ["sums"], name="narrow"))
    nodes.append(helper.make_node("Concat", [wide, "sums"], ["joined"], name="join", axis=-1))
    nodes.append(helper.make_node("Transpose", ["joined"], ["turned"], name="turn", perm=[0, 2, 1]))
    nodes.append(helper.make_node("MatMul", ["joined", "turned"], ["y"], name="own"))
    constants = {**weights, "scale": np.float32(0.1), "zero": np.int8(0)}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["num_prompts", "num_points", 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )


def test_a_product_counts_where_both_operands_are_quantized(script: ModuleType) -> None:
    # Of two points: wide 2 x 8 x 24, narrow 2 x 24 x 8, own 2 x 16 x 2.
    total = 384 + 384 + 64
    share, products, others = script.quantized_products(graph(), graph(("x", "first", "hidden")))
    assert share == pytest.approx(384 / total)
    assert products == ("wide",)
    assert others == {"MatMul": 1, "Concat": 1}
    share, products, others = script.quantized_products(graph(), graph(("x", "first", "hidden", "second")))
    assert (share, products, others) == (pytest.approx(768 / total), ("wide", "narrow"), {"Concat": 1})
    assert script.quantized_products(graph(), graph()) == (0.0, (), {})


def test_a_better_graph_at_an_equal_or_larger_share_is_reported(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.9, 0.99, 40)
    ious = {"ours": base, "plain": base - 0.05, "small": base + 0.005, "same": base + 0.005, "large": base - 0.01}
    sides = [
        script.Side(
            name=name,
            maker=script.OURS if name in ("ours", "plain") else script.THEIRS,
            method="max",
            path=Path("graph.onnx"),
            share={"small": 0.5, "large": 0.9}.get(name, 0.7),
            products=(),
            other_readers={},
            recipe=name != "plain",
        )
        for name in ious
    ]
    data = script.report(sides, SimpleNamespace(variants={name: columns(iou) for name, iou in ious.items()}), {"about": "it"})
    assert [(pair["theirs"], pair["ours"]) for pair in data["pairs"]] == [("same", "ours"), ("large", "ours")]
    (better,) = data["modelopt_better"]
    assert better["theirs"] == "same"
    assert better["mean_difference"] == pytest.approx(0.005)
    assert better["standard_error"] == pytest.approx(0.0, abs=1e-12)
    page = script.markdown(data)
    assert "same against ours: mean +0.0050" in page
    assert "In none of them" not in page


def columns(iou: np.ndarray) -> dict[str, np.ndarray]:
    names = (
        "boundary",
        "full",
        "full_boundary",
        "all_masks",
        "selected",
        "flip",
        "flip_cost",
        "kendall_tau",
        "signal",
        "noise",
        "truth_selected",
    )
    zeros = {name: np.zeros(len(iou)) for name in (*names, "truth_oracle")}
    return {"iou": iou, **zeros, "signal": np.ones(len(iou)), "image": np.arange(len(iou)) // 4}


def test_the_reader_gives_the_stored_feeds_in_order(script: ModuleType, tmp_path: Path) -> None:
    for number in range(12):
        np.savez(tmp_path / f"{number:05d}.npz", point_labels=np.full((1 + number % 3, 2), number, np.float32))
    reader = script._Reader(tmp_path)
    assert reader.get_first()["point_labels"][0, 0] == 0
    for _ in range(2):
        feeds = list(iter(reader.get_next, None))
        assert [int(feed["point_labels"][0, 0]) for feed in feeds] == list(range(12))
        assert feeds[2]["point_labels"].shape == (3, 2)
        reader.rewind()


def test_an_environment_without_modelopt_is_named_in_one_line(script: ModuleType, tmp_path: Path) -> None:
    python = tmp_path / "python"
    with pytest.raises(InputError, match="cannot be run"):
        script.modelopt_versions(python)
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'modelopt'\" >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(InputError, match=r"No module named 'modelopt'.*environment that the top of") as raised:
        script.modelopt_versions(python)
    assert "\n" not in str(raised.value)
