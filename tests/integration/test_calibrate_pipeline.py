"""Calibration through the library, on the stand-in: ranges and choices, and a Q/DQ graph whose masks are FP32's."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from calibrators import pipeline
from calibrators.auto import Choice, GroupChoice
from calibrators.calibration import MARGIN
from calibrators.collect import collect_histograms
from calibrators.feeds import CalibrationFeeds, FeedOptions, calibration_feeds
from calibrators.histogram import Histogram
from calibrators.report import CalibrationReport
from calibrators.trials import HELD_OUT, Score, Trials
from tests.fixtures.exports import copy_standin_graph, standin
from trt_sam.accuracy.metrics import mask_iou, selection_scores
from trt_sam.errors import CalibrationError, InputError
from trt_sam.feeds.feeds import Image, scene_images
from trt_sam.quantize.share import insert_qdq, product_groups
from trt_sam.recipe import GraphOptions, QuantizationOptions
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.torch_runner import TorchRunner

pytestmark = pytest.mark.usefixtures("one_torch_thread")

INT8 = GraphOptions(precision="int8", target="gpu")


@functools.cache
def images() -> tuple[Image, ...]:
    return tuple(scene_images(standin().image_encoder().embed, 4))


@pytest.fixture(autouse=True)
def _cached_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "export_decoder", copy_standin_graph)


def quantize(
    output: Path, feeds: CalibrationFeeds | None = None, options: GraphOptions = INT8, progress: Any = None, **changes: Any
) -> CalibrationReport:
    if feeds is None:
        feeds = calibration_feeds(images()[:2], FeedOptions(prompts_per_image=2, mask_input=options.mask_input))
    wanted = QuantizationOptions(**{"calibrator": "entropy", **changes})
    return pipeline.quantize_decoder(standin(), feeds, options, wanted, output, progress=progress)


def test_masks_of_the_int8_graph_are_those_of_fp32_on_other_scenes(tmp_path: Path) -> None:
    quantize(tmp_path / "int8.onnx", calibration_feeds(images()[1:], FeedOptions(prompts_per_image=8)))
    feeds = calibration_feeds(images()[:1], FeedOptions(prompts_per_image=12, seed=5))
    ious = []
    with (
        OnnxRunner(tmp_path / "int8.onnx", emulate_quantization=True) as quantized,
        TorchRunner(standin().decoder) as reference,
    ):
        assert quantized.options == INT8
        for feed in feeds:
            results = [runner.run(masked(feed, runner)) for runner in (reference, quantized)]
            best = selection_scores(results[0]["iou_predictions"], feed["point_labels"]).argmax(axis=1)
            one, two = (result["low_res_masks"][np.arange(len(best)), best] > 0 for result in results)
            ious.append(mask_iou(one, two, 0.5))
    # Seen .99; twelve masks say less than the accuracy table's thousands. A wrong scale or bias is far below.
    assert np.concatenate(ious).mean() > 0.97


def masked(feed: dict[str, npt.NDArray[Any]], runner: Any) -> dict[str, npt.NDArray[Any]]:
    if not any(spec.name == "mask_input" for spec in runner.inputs):
        return feed
    rows = len(feed["point_labels"])
    return {**feed, "mask_input": np.zeros((rows, 1, 256, 256), np.float32), "has_mask_input": np.zeros(rows, np.float32)}


def test_the_order_of_images_changes_no_range_and_progress_never_falls(tmp_path: Path) -> None:
    steps: list[tuple[float, str]] = []
    options = FeedOptions(prompts_per_image=2)
    first = quantize(tmp_path / "a.onnx", calibration_feeds(images()[:3], options), progress=lambda *step: steps.append(step))
    second = quantize(tmp_path / "b.onnx", calibration_feeds(images()[2::-1], options))
    assert first.tensors == second.tensors
    a, b = (onnx.load(tmp_path / name).graph for name in ("a.onnx", "b.onnx"))
    assert a.SerializeToString() == b.SerializeToString()
    # The same again is the same file, with its record of what was calibrated on.
    quantize(tmp_path / "c.onnx", calibration_feeds(images()[:3], options))
    assert (tmp_path / "c.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
    assert len(first.feeds["image_sha256"]) == 3
    assert sum(first.feeds["shares"].values()) == pytest.approx(1)
    fractions = [fraction for fraction, _ in steps]
    assert fractions == sorted(fractions)
    assert steps[-1] == (1.0, "done")
    assert {"export", "channels", "counts", "check"} <= {stage for _, stage in steps}


@pytest.mark.slow
def test_shift_and_scale_make_ranges_smaller(tmp_path: Path) -> None:
    plain = quantize(tmp_path / "plain.onnx", shift=False, smooth_alpha=None, calibrator="max")
    shifted = quantize(tmp_path / "shifted.onnx", shift=True, smooth_alpha=None, calibrator="max")
    assert plain.quantized_share == shifted.quantized_share
    # Taking each channel's mean off can make the range of single channels larger, but not by much, and of most smaller.
    ratios = [s.largest / p.largest for s, p in zip(shifted.tensors, plain.tensors, strict=True)]
    assert np.mean(ratios) < 0.95


@pytest.mark.slow
def test_fp8_of_every_tier_with_masks_at_full_resolution(tmp_path: Path) -> None:
    options = GraphOptions(precision="fp8", target="gpu", mask_input=True, full_resolution=True, mask_bits=True)
    report = quantize(tmp_path / "fp8.onnx", options=options, calibrator="max", tiers=("A", "B", "C"), keep_fp16=("upscale1",))
    # The first upscaling product reads what the last of the image side reads: they share a range, and the tier is the first's.
    assert {row.tier for row in report.tensors} == {"A", "C"}
    assert report.left_out == ("upscale1",)
    assert all(row.scale == row.amax / 448 and row.amax == MARGIN * row.largest for row in report.tensors)
    shared = [row.products for row in report.tensors if len(row.products) > 1 and row.tier == "A"]
    assert shared == [("transformer.final_image.product/MatMul", "upscaling.first/MatMul")]
    with OnnxRunner(tmp_path / "fp8.onnx") as runner:
        assert runner.options == options
        assert [spec.name for spec in runner.outputs] == ["masks", "low_res_masks", "iou_predictions", "mask_bits"]


def test_entropy_clips_only_what_its_floor_lets_it(tmp_path: Path) -> None:
    feeds = calibration_feeds(images(), FeedOptions(prompts_per_image=2))
    plain = {"tiers": ("A",), "shift": False, "smooth_alpha": None, "second_order": False}
    bare = quantize(tmp_path / "bare.onnx", feeds, **plain, floor=False)
    report = quantize(tmp_path / "floor.onnx", feeds, **plain)
    assert bare.floor is None
    assert report.floor is not None
    clipping = {row.tensor: row.amax for row in bare.tensors if row.amax < row.largest}
    assert {row.tensor: row.amax for row in report.floor.rows} == clipping != {}
    clipped = {row.tensor for row in report.floor.rows if row.clipped}
    for row in report.tensors:
        kept = row.tensor in clipped or row.tensor not in clipping
        assert row.calibrator == ("entropy" if kept else "max")
        assert row.amax < row.largest if row.tensor in clipped else row.amax >= row.largest
    assert report.to_dict()["floor"]["rows"][0]["largest"] > 0


def test_auto_decides_on_images_that_it_was_not_calibrated_on(tmp_path: Path) -> None:
    feeds = calibration_feeds(images(), FeedOptions(prompts_per_image=2))
    report = quantize(tmp_path / "auto.onnx", feeds, calibrator="auto", tiers=("A",))
    rest, held_out = feeds.split(HELD_OUT)
    assert report.feeds["fingerprint"] == feeds.fingerprint != rest.fingerprint
    assert report.choice is not None
    # The ranges of the choice are without the images held out, those that are delivered are of all.
    assert report.choice.amax != {row.tensor: row.amax for row in report.tensors}
    assert {each.group for each in report.choice.groups} == {*(row.group for row in report.tensors), *report.left_out}
    for row in report.tensors:
        (group,) = (each for each in report.choice.groups if each.group == row.group)
        assert row.calibrator == group.calibrator
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "auto.onnx").metadata_props}["trt_sam.calibration"]
    assert json.loads(about)["held_out_sha256"] == held_out.to_dict()["image_sha256"]
    assert set(json.loads(about)["image_sha256"]) == set(feeds.to_dict()["image_sha256"])
    assert json.loads(about)["calibrators"] == {row.tensor: row.calibrator for row in report.tensors}
    told: list[str] = []
    with pytest.raises(InputError, match="1 different image"):
        quantize(
            tmp_path / "one.onnx", calibration_feeds(images()[:1]), INT8, lambda _, stage: told.append(stage), calibrator="auto"
        )
    assert told == [], "refused before the export, which takes a minute"


@pytest.mark.slow
def test_auto_reports_what_is_delivered_where_a_group_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left_out = "upscale0"  # it reads the tensor of final.image, and they share a shift

    def decided(model: Any, products: Any, ranges: Any, trials: Trials, *, precision: str, **_: Any) -> Choice:
        groups = product_groups(products)
        amax = {p.activation: ranges["max"][p.activation] for name in groups if name != left_out for p in groups[name]}
        score = trials.score(insert_qdq(model, [p for p in products if p.group != left_out], amax, precision))
        made = [GroupChoice(name, groups[name][0].tier, None if name == left_out else "max", 0.0, {}) for name in groups]
        return Choice(amax, tuple(made), score, 1, ())

    monkeypatch.setattr("calibrators.calibration.choose", decided)
    scores: list[Score] = []
    real = Trials.score
    monkeypatch.setattr(Trials, "score", lambda self, model: scores.append(real(self, model)) or scores[-1])
    feeds = calibration_feeds(images(), FeedOptions(prompts_per_image=2))
    report = quantize(tmp_path / "auto.onnx", feeds, calibrator="auto", tiers=("A", "B"))
    assert report.choice is not None
    assert report.left_out == report.choice.left_out == (left_out,)
    # The range of final.image moved with the shift, and all are measured on all images, as if this had been asked for.
    wanted: dict[str, Any] = {"calibrator": "max", "tiers": ("A", "B"), "keep_fp16": (left_out,)}
    asked = quantize(tmp_path / "max.onnx", feeds, **wanted, smooth_alpha=report.choice.alpha)
    assert asked.tensors == report.tensors
    del scores[-1]
    *tried, searched, delivered, _ = scores
    assert report.choice.score == delivered != searched
    assert report.choice.trials == len(tried) + 2
    assert set(report.choice.uniform) >= {"1.0 entropy", "1.0 percentile", "1.0 mse", "1.0 max", "0.7 max"}
    assert str(delivered) in report.choice.notes[-1]


def test_a_tensor_that_is_always_zero_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real: Callable[..., Any] = collect_histograms

    def with_a_dead_tensor(*args: Any, **options: Any) -> dict[str, Histogram]:
        found: dict[str, Histogram] = real(*args, **options)
        name = list(found)[2]
        return {**found, name: Histogram(np.eye(1, 2048, dtype=np.int64)[0], 0.0)}

    monkeypatch.setattr("calibrators.calibration.collect_histograms", with_a_dead_tensor)
    with pytest.raises(CalibrationError, match=r"block1\.image input: every value is 0"):
        quantize(tmp_path / "dead.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (GraphOptions(precision="fp16"), {}, "precision is 'fp16'"),
        (INT8, {"method": "implicit"}, "method is 'implicit'"),
        (GraphOptions(precision="int8", mask_input=True), {}, "bring no masks"),
        (INT8, {"keep_fp16": ("block9.image",)}, "block9.image"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: GraphOptions, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize(tmp_path / "x.onnx", calibration_feeds(images()[:1]), options, **changes)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_output_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        quantize(tmp_path / "file" / "x.onnx")
