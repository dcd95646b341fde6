"""Planted errors are found: the verdict fails, and the node that is blamed is within one node of the planted one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.fixtures.planted import PLANTS, distance, planted
from trt_sam.accuracy.sides import open_side
from trt_sam.gate.blame import with_layers
from trt_sam.gate.comparison import Comparison, Questions, compare_with, fitting
from trt_sam.gate.golden import Golden, load_golden, shipped_golden
from trt_sam.gate.graphs import Run
from trt_sam.gate.limits import DEFAULTS, limits_for
from trt_sam.gate.questions import golden_questions
from trt_sam.gate.verdict import FAIL
from trt_sam.graph.export import export_decoder
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.quantize.products import find_products
from trt_sam.quantize.qdq import insert_qdq
from trt_sam.recipe import GraphOptions

PROMPTS = 8
LIMITS = {name: limits_for(name, {"min_prompts": PROMPTS}) for name in DEFAULTS}
FAST_ON_MOBILE_SAM = ("one weight matrix perturbed by 1 %", "NaN in one pixel")


class Subject:
    """A float32 graph, its golden data, and both as a reference."""

    def __init__(self, checkpoint: str, folder: Path) -> None:
        loaded = load_checkpoint(checkpoint)
        self.path = folder / "reference.onnx"
        options = GraphOptions(precision="fp32", target="gpu")
        export_decoder(loaded.decoder, self.path, options, checkpoint_sha256=loaded.sha256)
        shipped = shipped_golden(loaded.sha256)
        assert shipped is not None
        self.golden: Golden = load_golden(shipped)
        self.model = onnx.load(self.path)

    def judged(self, model: onnx.ModelProto, path: Path) -> Comparison:
        onnx.save(model, path)
        reference, candidate = open_side(str(self.path)), open_side(str(path))
        with reference.runner, candidate.runner:
            found = golden_questions(self.golden, PROMPTS, answered=False)
            asked = fitting(found.examples, [reference, candidate])
            comparison = compare_with(reference, [candidate], Questions(asked, found.description), LIMITS)
            return with_layers(comparison, reference, [candidate])


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject("standin", tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, mobile_sam: Path) -> Subject:
    return Subject(str(mobile_sam), tmp_path_factory.mktemp("mobile_sam"))


def find(subject: Subject, name: str, folder: Path) -> None:
    plant = PLANTS[name]
    (judged,) = subject.judged(planted(subject.model, plant), folder / "planted.onnx").candidates
    assert judged.verdict.status == FAIL
    assert judged.blame is not None
    names = [node.name for node in subject.model.graph.node]
    if plant.node is None and not plant.reads:
        # It lies behind the node that gives the output.
        last = next(i for i, node in enumerate(subject.model.graph.node) if "low_res_masks" in node.output)
        assert abs(names.index(judged.blame.node) - last) <= 1
        return
    assert distance(subject.model, plant, judged.blame.node) <= 1
    if plant.node is not None and plant.node.endswith("product/MatMul"):
        assert judged.blame.group == "block0.image"


@pytest.mark.parametrize("name", PLANTS)
def test_on_the_stand_in(standin: Subject, name: str, tmp_path: Path) -> None:
    find(standin, name, tmp_path)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST_ON_MOBILE_SAM else pytest.mark.slow) for n in PLANTS])
def test_on_the_real_decoder(real: Subject, name: str, tmp_path: Path) -> None:
    find(real, name, tmp_path)


def test_the_graph_itself_passes_and_nobody_is_blamed(standin: Subject, tmp_path: Path) -> None:
    (judged,) = standin.judged(standin.model, tmp_path / "same.onnx").candidates
    assert judged.verdict.passed
    assert judged.blame is None
    assert len(judged.layers) > 100
    assert all(row.sqnr_db == float("inf") for row in judged.layers)


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_one_scale_ten_times_too_large(standin: Subject, factor: float, tmp_path: Path) -> None:
    """By the limits of quantized graphs, which the same graph with the right scale keeps."""
    products = find_products(standin.model, ("A",))
    activations = list(dict.fromkeys(product.activation for product in products))
    run = Run(standin.model, activations)
    seen = [run(example.feed, activations) for example in standin.golden.examples[:1]]
    amax = {name: max(float(np.abs(each[name]).max()) for each in seen) for name in activations}
    bad = next(product for product in products if product.group == "block1.image")
    amax[bad.activation] *= factor
    quantized = insert_qdq(standin.model, products, amax, "int8")
    onnx.save(quantized, tmp_path / "quantized.onnx")
    reference, candidate = open_side(str(standin.path)), open_side(str(tmp_path / "quantized.onnx"))
    limits = dict.fromkeys(DEFAULTS, limits_for("quantized", {"min_prompts": PROMPTS}))
    with reference.runner, candidate.runner:
        found = golden_questions(standin.golden, PROMPTS, answered=False)
        asked = fitting(found.examples, [reference, candidate])
        comparison = compare_with(reference, [candidate], Questions(asked, found.description), limits)
        (judged,) = with_layers(comparison, reference, [candidate]).candidates
    missed = [check.sentence for check in judged.verdict.checks if check.status == FAIL]
    if factor == 1.0:
        assert missed == []
        return
    assert missed
    assert judged.blame is not None
    names = [node.name for node in standin.model.graph.node]
    assert abs(names.index(judged.blame.node) - names.index(bad.name)) <= 1
    assert judged.blame.group == "block1.image"
