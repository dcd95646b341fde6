"""`trt-sam compare`: real graphs of the stand-in, planted differences, sides of other shapes, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.engine_sets import tiny_set
from tests.helpers import error_line
from trt_sam.accuracy.compare import compare_sides
from trt_sam.accuracy.metrics import best_masks
from trt_sam.accuracy.sides import Side
from trt_sam.cli import main
from trt_sam.contract import check_feed, input_specs, output_specs
from trt_sam.errors import InputError
from trt_sam.feeds.feeds import common_feeds, make_feeds, random_images
from trt_sam.graph.export import export_decoder
from trt_sam.imaging.embeddings import Embedding, save_embedding
from trt_sam.imaging.resize import postprocess_masks
from trt_sam.machine.driver import gpu_compute_capability
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.recipe import GraphOptions

Outputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "everything.onnx"
    standin = load_checkpoint("standin")
    options = GraphOptions(precision="fp32", target="gpu", mask_input=True, full_resolution=True)
    export_decoder(standin.decoder, path, options, checkpoint_sha256=standin.sha256)
    return path


def test_a_graph_agrees_with_its_checkpoint(graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "standin", str(graph), "--prompts", "7", "--json", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("\nagree\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is True
    assert report["prompts"] == 7
    assert {output["name"] for output in report["outputs"]} == {"masks", "low_res_masks", "iou_predictions"}
    assert all(0 < output["error"] < 1e-4 for output in report["outputs"])
    assert report["masks"]["mean_iou"] > 0.999
    assert report["masks"]["least_mean_iou"] is not None
    assert "scene" in report["data"]
    assert report["notes"] == []


def test_a_planted_difference_fails(graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(graph)
    weight = max((i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT), key=lambda i: np.prod(i.dims))
    array = onnx.numpy_helper.to_array(weight) * np.float32(1.05)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "planted.onnx")
    embeddings = tmp_path / "embeddings"
    image = random_images(1)[0]
    save_embedding(embeddings / "photo.npz", Embedding(image.embedding, (300, 201)))
    arguments = [str(graph), str(tmp_path / "planted.onnx"), "--prompts", "1", "--embeddings", str(embeddings)]
    assert main(["compare", *arguments]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed
    assert printed.endswith("DIFFER: a tolerance failed\n")


class FakeRunner:
    """Gives what `answer` makes of the feed's number of prompts and points; counts nothing, needs no weights."""

    def __init__(self, answer: Callable[[Mapping[str, np.ndarray]], Outputs], **options: bool) -> None:
        sides = {name: options.get(name, False) for name in ("mask_input", "full_resolution")}
        self.inputs = input_specs(**sides)
        best, full = options.get("best_mask", False), options.get("full_resolution", False)
        self.outputs = output_specs(best_mask=best, full_resolution=full)
        self.limits: dict[str, tuple[int, int]] = {}
        self.answer = answer
        self.feeds: list[Mapping[str, np.ndarray]] = []

    def run(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        check_feed(feed, self.inputs, self.limits)
        self.feeds.append(feed)
        return self.answer(feed)


def whole(feed: Mapping[str, np.ndarray]) -> Outputs:
    """Four masks that depend on the feed alone."""
    rng = np.random.default_rng(int(abs(feed["point_coords"]).sum()))
    count = len(feed["point_labels"])
    masks = rng.normal(0, 5, (count, 4, 256, 256)).astype(np.float32)
    return {"low_res_masks": masks, "iou_predictions": rng.uniform(0, 1, (count, 4)).astype(np.float32)}


def best(feed: Mapping[str, np.ndarray], pick: Callable[[Outputs, np.ndarray], np.ndarray] | None = None) -> Outputs:
    outputs = whole(feed)
    labels = feed["point_labels"]
    chosen = pick(outputs, labels) if pick else best_masks(outputs["iou_predictions"], labels)
    return {name: array[np.arange(len(labels)), chosen][:, None] for name, array in outputs.items()}


def compare(first: Any, second: Any, prompts: int = 12, arithmetic: str = "fp32") -> Any:
    sides = [Side(name, "here", arithmetic, runner, "") for name, runner in (("a", first), ("b", second))]
    feeds = common_feeds(random_images(1), prompts, (first, second))
    return compare_sides(*sides, feeds, data="noise", masks_mean_something=True)


@pytest.mark.parametrize("swap", [False, True])
def test_a_best_mask_graph_is_compared_with_the_mask_it_chose(swap: bool) -> None:
    pair = (FakeRunner(whole), FakeRunner(best, best_mask=True))
    report = compare(*(reversed(pair) if swap else pair))
    assert report.passed
    assert report.masks.flip_rate == 0.0
    assert report.masks.masks == 12
    assert {output.name: output.error for output in report.outputs} == {"low_res_masks": 0.0, "iou_predictions": 0.0}


def test_two_graphs_with_bits_are_compared_by_their_logits() -> None:
    def with_bits(feed: Mapping[str, np.ndarray]) -> Outputs:
        outputs = whole(feed)
        return {**outputs, "mask_bits": np.packbits(outputs["low_res_masks"] > 0, axis=-1)}

    report = compare(FakeRunner(with_bits), FakeRunner(with_bits), prompts=2)
    assert report.passed
    assert [output.name for output in report.outputs] == ["low_res_masks", "iou_predictions"]


def test_a_best_mask_graph_that_breaks_the_rule_fails() -> None:
    def worst(outputs: Outputs, _: np.ndarray) -> np.ndarray:
        return 1 + outputs["iou_predictions"][:, 1:].argmin(axis=1)

    report = compare(FakeRunner(whole), FakeRunner(lambda feed: best(feed, worst), best_mask=True))
    # Every mask and score is one of the reference's own, so nothing but the choice can tell.
    assert all(output.passed for output in report.outputs)
    assert report.masks.wrong_choices > 0
    assert report.masks.flip_rate > 0
    assert not report.passed


def test_full_resolution_is_checked_against_the_other_sides_low_resolution() -> None:
    def full(feed: Mapping[str, np.ndarray], shift: float = 0.0) -> Outputs:
        outputs = whole(feed)
        height, width = (int(n) for n in feed["orig_im_size"])
        return {**outputs, "masks": postprocess_masks(outputs["low_res_masks"], (height, width)) + np.float32(shift)}

    assert compare(FakeRunner(whole), FakeRunner(full, full_resolution=True), prompts=1).passed
    report = compare(FakeRunner(whole), FakeRunner(lambda feed: full(feed, 0.1), full_resolution=True), prompts=1)
    assert [output.name for output in report.outputs if not output.passed] == ["masks"]


@pytest.mark.parametrize("name", ["low_res_masks", "iou_predictions"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_fails(name: str, value: float) -> None:
    def broken(feed: Mapping[str, np.ndarray]) -> Outputs:
        outputs = whole(feed)
        outputs[name].flat[-1] = value
        return outputs

    report = compare(FakeRunner(whole), FakeRunner(broken), prompts=1, arithmetic="fp16")
    assert not report.passed
    assert [output.name for output in report.outputs if not output.passed] == [name]
    json.dumps(report.to_dict(), allow_nan=False)


def test_earlier_masks_are_used_only_where_both_sides_take_them() -> None:
    both = (FakeRunner(whole, mask_input=True), FakeRunner(whole, mask_input=True))
    compare(*both)
    assert sum(feed["has_mask_input"].sum() for feed in both[0].feeds) == 6
    one = (FakeRunner(whole, mask_input=True), FakeRunner(whole))
    compare(*one)
    assert len(one[0].feeds) == 4
    assert all((feed["has_mask_input"] == 0).all() for feed in one[0].feeds)


def test_feeds_have_every_kind_and_keep_the_limits() -> None:
    images = random_images(2)
    labels = [feed["point_labels"] for feed in make_feeds(images, 12, input_specs(), {})]
    assert sum(map(len, labels)) == 12
    assert {-2.0, -1.0, 0.0, 1.0, 2.0, 3.0} == {value for each in labels for value in each.ravel().tolist()}
    limits = {"num_prompts": (2, 3), "num_points": (2, 2), "height": (1, 64), "width": (32, 32)}
    specs = input_specs(mask_input=True, full_resolution=True)
    for feed in make_feeds(images, 9, specs, limits):
        check_feed(feed, specs, limits)
        assert feed["orig_im_size"].tolist() == [64, 32]
    fixed = (FakeRunner(whole), FakeRunner(whole))
    fixed[0].limits, fixed[1].limits = {"num_points": (1, 2)}, {"num_points": (4, 8)}
    with pytest.raises(InputError, match=r"num_points 4 to 8.* nothing fits both"):
        common_feeds(images, 1, fixed)


@pytest.mark.skipif(gpu_compute_capability() is not None, reason="this machine has a GPU")
def test_an_engine_without_a_gpu_says_what_to_compare_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_set(tmp_path / "set")
    for place in ("set", "set/decoder.engine", "set/manifest.json"):
        assert main(["compare", str(tmp_path / place), "standin"]) == 2
        error = error_line(capsys.readouterr().err)
        assert "cannot execute here: this machine has no NVIDIA GPU or driver" in error
        assert str(tmp_path / "set" / "decoder.onnx") in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["standin", "missing.onnx"], "not found: missing.onnx"),
        (["no/such/place.pth", "standin"], "checkpoint not found"),
        (["standin", "standin", "--prompts", "0"], "--prompts is 0"),
        (["standin", "standin", "--device", "gpu"], "must be cuda:N"),
        (["standin", "standin", "--embeddings", "missing"], "embeddings folder not found"),
        (["standin", "empty"], "neither a manifest.json"),
        (["standin", "junk.onnx"], "not an ONNX graph"),
        (["standin"], "required: B"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.onnx").write_bytes(b"not onnx at all")
    try:
        code = main(["compare", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert error.count("error: ") == 1
