"""Pairs of Q and DQ on activations: found, left out, and how many levels they use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.fixtures.made_answers import answer, example, outputs
from trt_sam.accuracy.sides import Side
from trt_sam.gate.comparison import Candidate, Questions, compare_with
from trt_sam.gate.graphs import Run
from trt_sam.gate.limits import DEFAULTS
from trt_sam.gate.pairs import activation_pairs, level_checks, without_pairs
from trt_sam.gate.verdict import FAIL, PASS


def graph(scale: float) -> onnx.ModelProto:
    """`point_coords`, of which the largest is 100, doubled, rounded and halved; a weight has a DQ alone."""
    constants = {
        "two": np.float32(2),
        "scale": np.float32(scale),
        "zero": np.int8(0),
        "weight": np.int8(5),
        "one": np.float32(0.1),
    }
    nodes = [
        helper.make_node("Mul", ["point_coords", "two"], ["made input"], name="made/Mul"),
        helper.make_node("QuantizeLinear", ["made input", "scale", "zero"], ["levels"], name="made/Quantize"),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["back"], name="made/Dequantize"),
        helper.make_node("DequantizeLinear", ["weight", "one", "zero"], ["half"], name="weight/Dequantize"),
        helper.make_node("Mul", ["back", "half"], ["result"], name="product/MatMul"),
    ]
    shape = ["n", "p", 2]
    given = helper.make_tensor_value_info("point_coords", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, shape)
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "made", [given], [result], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_the_pair_of_an_activation_is_found_and_a_weights_is_not() -> None:
    (pair,) = activation_pairs(graph(0.5))
    assert (pair.name, pair.reader, pair.scale, pair.int8) == ("made", "product/MatMul", 0.5, True)


def test_without_its_pair_nothing_is_rounded() -> None:
    model, feed = graph(60.0), example().feed
    exact = feed["point_coords"]
    bare = without_pairs(model, activation_pairs(model))
    assert np.allclose(Run(bare)(feed, ["result"])["result"], exact)
    assert not np.allclose(Run(model)(feed, ["result"])["result"], exact)


@pytest.mark.parametrize(("scale", "level", "status"), [(200 / 110, 110, PASS), (2000 / 110, 11, FAIL), (1.0, 127, PASS)])
def test_a_scale_that_is_far_too_large_fails_by_name(scale: float, level: int, status: str) -> None:
    (check,) = level_checks(graph(scale), [example()], 25)
    assert (check.name, check.value, check.status) == ("min_levels made", level, status)
    assert ("product/MatMul reads; its scale is too large" in check.sentence) == (status == FAIL)


class Engine:
    """Answers as the reference does."""

    inputs = ()

    def run(self, feed: Any) -> Any:
        return outputs()


def judged(*graphs: Path) -> Candidate:
    runner: Any = Engine()
    engine = Side("built/set", "TensorRT on GPU 0", "quantized", runner, "", graphs=graphs)
    about = ("made up", "PyTorch in float64", "")
    return compare_with(None, [engine], Questions([(example(), answer())], "one call"), DEFAULTS, about=about).candidates[0]


def test_the_ranges_of_an_engine_are_those_of_the_graphs_beside_it(tmp_path: Path) -> None:
    """A set has two with the same groups: the coarser range counts."""
    for name, scale in (("decoder", 200 / 110), ("decoder_mask", 2000 / 110)):
        onnx.save(graph(scale), tmp_path / f"{name}.onnx")
    (levels,) = (c for c in judged(*sorted(tmp_path.iterdir())).verdict.checks if c.name.startswith("min_levels"))
    assert (levels.name, levels.value, levels.status) == ("min_levels made", 11, FAIL)
