"""Planted errors are found: the verdict fails, and the node that is blamed is within one node of the planted one."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibrators.calibration import MARGIN
from calibrators.collect import collect_channels
from calibrators.shipped import quantize_by_ranges, shipped_ranges
from tests.fixtures.planted import PLANTS, distance, planted, scale_ten_times_too_large
from trt_sam.accuracy.examples import first_prompts
from trt_sam.accuracy.sides import open_side
from trt_sam.gate.blame import with_layers
from trt_sam.gate.comparison import Candidate, Questions, compare_with
from trt_sam.gate.fitting import LeftOut, fitting
from trt_sam.gate.golden import load_golden, shipped_golden
from trt_sam.gate.limits import DEFAULTS, limits_for
from trt_sam.gate.verdict import FAIL
from trt_sam.graph.export import export_decoder
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.quantize.preconditioning import precondition
from trt_sam.quantize.products import find_products
from trt_sam.quantize.qdq import insert_qdq
from trt_sam.recipe import GraphOptions, QuantizationOptions

GROUP = "block1.image"
PROMPTS = 2
"""Every tensor of a prompt is 4 MiB, and the graph runs dozens of times; the planted errors need no more of them."""
LIMITS = {name: limits_for(name, {"min_prompts": PROMPTS}) for name in DEFAULTS}
FAST = ("one weight matrix perturbed by 1 %", "NaN in one pixel")


class Subject:
    """A float32 graph, its golden data, and both as a reference."""

    def __init__(self, checkpoint: str, folder: Path) -> None:
        self.checkpoint = load_checkpoint(checkpoint)
        self.path = folder / "reference.onnx"
        options = GraphOptions(precision="fp32", target="gpu")
        with pytest.MonkeyPatch.context() as patch:
            # Parity is tested elsewhere: one small feed has to do here.
            patch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((1, 2),))
            export_decoder(self.checkpoint.decoder, self.path, options, checkpoint_sha256=self.checkpoint.sha256)
        shipped = shipped_golden(self.checkpoint.sha256)
        assert shipped is not None
        self.first_call = load_golden(shipped).examples[0]
        self.example = first_prompts(self.first_call, PROMPTS)
        self.model = onnx.load(self.path)

    def judged(
        self, model: onnx.ModelProto, path: Path, *, limits_of: str = "", expected: str | None = None, layers: bool = True
    ) -> Candidate:
        """By the defaults of the graph's arithmetic, or of `limits_of`, but for the number of prompts."""
        limits = dict.fromkeys(LIMITS, LIMITS[limits_of]) if limits_of else LIMITS
        onnx.save(model, path)
        reference, candidate = open_side(str(self.path)), open_side(str(path))
        with reference.runner, candidate.runner:
            asked = fitting([(self.example, None)], [reference, candidate], LeftOut())
            comparison = compare_with(reference, [candidate], Questions(asked, "two prompts"), limits, expected=expected)
            return (with_layers(comparison, reference, [candidate]) if layers else comparison).candidates[0]

    def blamed_on(self, judged: Candidate, product: str) -> bool:
        """Whether the verdict is a failure that names a node within one of the product's, and its group."""
        assert judged.verdict.status == FAIL
        assert judged.blame is not None
        names = [node.name for node in self.model.graph.node]
        (found,) = (p for p in find_products(self.model, ("A",)) if p.name == product)
        return abs(names.index(judged.blame.node) - names.index(product)) <= 1 and judged.blame.group == found.group


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject("standin", tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, mobile_sam: Path) -> Subject:
    return Subject(str(mobile_sam), tmp_path_factory.mktemp("mobile_sam"))


def find(subject: Subject, name: str, folder: Path) -> None:
    plant = PLANTS[name]
    judged = subject.judged(planted(subject.model, plant), folder / "planted.onnx")
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


cases = pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in PLANTS])


@cases
def test_on_the_stand_in(standin: Subject, name: str, tmp_path: Path) -> None:
    find(standin, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_on_the_real_decoder(real: Subject, name: str, tmp_path: Path) -> None:
    find(real, name, tmp_path)


def coarser_than_asked(subject: Subject, int8: onnx.ModelProto, path: Path) -> None:
    """The verdict is a failure by the arithmetic alone, for the graph keeps the limits of INT8."""
    judged = subject.judged(int8, path, limits_of="quantized", expected="fp16", layers=False)
    assert judged.arithmetic == "quantized"
    assert judged.verdict.status == FAIL
    assert [check.sentence for check in judged.verdict.missed] == ["fp16 was asked for, the candidate is quantized"]


def test_the_graph_itself_passes_and_nobody_is_blamed(standin: Subject, tmp_path: Path) -> None:
    judged = standin.judged(standin.model, tmp_path / "same.onnx")
    assert judged.verdict.passed
    assert judged.blame is None
    assert len(judged.layers) > 100
    assert all(row.sqnr_db == float("inf") for row in judged.layers)


def test_a_scale_ten_times_too_large_on_the_stand_in(standin: Subject, tmp_path: Path) -> None:
    """One group quantized as calibration does it: all of tier A is too coarse for the stand-in with so few prompts."""
    plain = standin.model
    (found,) = (product for product in find_products(plain, ("A",)) if product.group == GROUP)
    feeds = [standin.example.feed]
    stats = collect_channels(plain, [found.activation], feeds)
    model, products = precondition(plain, [found], stats, shift="middle", smooth_alpha=1.0)
    (activation,) = {product.activation for product in products}
    seen = collect_channels(model, [activation], feeds)[activation]
    none, one = np.zeros_like(seen.mean), np.ones_like(seen.mean)
    amax, moments = {activation: MARGIN * seen.largest(none, one)}, {activation: seen.moments(none, one)}
    quantized = insert_qdq(model, products, amax, "int8", moments=moments)
    # It says that it is float32, and it is so outside its product.
    coarser_than_asked(standin, quantized, tmp_path / "coarser.onnx")
    right = standin.judged(quantized, tmp_path / "right.onnx", limits_of="quantized")
    assert right.verdict.passed
    scale_ten_times_too_large(quantized, activation)
    wrong = standin.judged(quantized, tmp_path / "wrong.onnx", limits_of="quantized")
    assert standin.blamed_on(wrong, found.name)


@pytest.fixture(scope="module")
def shipped_int8(real: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, onnx.ModelProto]:
    """The INT8 graph of the ranges that come with the package, and all eight prompts of a call."""
    ranges = shipped_ranges(real.checkpoint)
    assert ranges is not None
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    quantize_by_ranges(real.checkpoint, ranges, GraphOptions(precision="int8", target="gpu"), QuantizationOptions(), path)
    whole = copy.copy(real)
    whole.example = real.first_call
    return whole, onnx.load(path)


@pytest.mark.slow
def test_the_int8_graph_passes_and_its_shifted_tensors_are_no_errors(
    shipped_int8: tuple[Subject, onnx.ModelProto], tmp_path: Path
) -> None:
    subject, model = shipped_int8
    right = subject.judged(model, tmp_path / "right.onnx")
    assert right.limits_of == "quantized"
    assert right.verdict.passed
    assert right.blame is None
    assert any(row.rescaled for row in right.layers)
    assert min(row.sqnr_db for row in right.layers) > 10.0


@pytest.mark.slow
def test_int8_where_fp16_was_asked_on_the_real_decoder(shipped_int8: tuple[Subject, onnx.ModelProto], tmp_path: Path) -> None:
    subject, model = shipped_int8
    coarser_than_asked(subject, model, tmp_path / "int8.onnx")
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    (says,) = (entry for entry in wrong.metadata_props if entry.key == "trt_sam.options")
    says.value = json.dumps({**json.loads(says.value), "precision": "fp16"})
    coarser_than_asked(subject, wrong, tmp_path / "says_fp16.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("group", ["block0.image_out", "block1.image"])
def test_a_scale_ten_times_too_large_on_the_real_decoder(
    shipped_int8: tuple[Subject, onnx.ModelProto], tmp_path: Path, group: str
) -> None:
    subject, model = shipped_int8
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    scale_ten_times_too_large(wrong, f"{group} input")
    (found,) = (product for product in find_products(subject.model, ("A",)) if product.group == group)
    judged = subject.judged(wrong, tmp_path / "wrong.onnx")
    assert subject.blamed_on(judged, found.name)
    assert [check.name for check in judged.verdict.checks if check.name.startswith("min_levels") and check.status == FAIL] == [
        f"min_levels {group}"
    ]
