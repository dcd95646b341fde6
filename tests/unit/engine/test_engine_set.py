"""A set with `decode` and `decode_mask`: built whole, opened as one, and each prompt run by the graph that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.engine_sets import MASK
from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.ort_engine import OrtEngine, runs_of
from tests.fixtures.toy_decoder import toy_embedding, toy_feed
from tests.fixtures.toy_runner import clicks, tokens
from tests.fixtures.toy_set import build_toy_set, load_toy_engines
from trt_sam.accuracy.sides import open_side
from trt_sam.bench.sides import open_engine
from trt_sam.errors import ContractError, InferenceError, InputError
from trt_sam.gate.blame import check_layers
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runtime.both_decoders import BothDecoders
from trt_sam.runtime.predictor import Predictor

Array = np.ndarray[Any, Any]


@pytest.fixture
def engine_set(tmp_path: Path) -> Path:
    return build_toy_set(tmp_path / "set")


@pytest.fixture
def engines(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> list[OrtEngine]:
    return load_toy_engines(host_cuda, monkeypatch)


def direct(folder: Path, name: str, feed: dict[str, Array]) -> dict[str, Array]:
    """One of the set's graphs in ONNX Runtime, as float32."""
    session = ort.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}
    outputs = session.run(None, {key: array for key, array in feed.items() if key in wanted})
    return {each.name: array.astype(np.float32) for each, array in zip(session.get_outputs(), outputs, strict=True)}


def click_feed(x: float, y: float, mask: Array | None = None) -> dict[str, Array]:
    """The tokens of one click, SAM's "not a point" included, on the image of `toy_embedding(2)`."""
    feed: dict[str, Array] = {
        "image_embeddings": toy_embedding(2),
        "point_coords": np.array([[[x, y], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
    }
    if mask is not None:
        feed |= {"mask_input": np.asarray(mask, np.float32), "has_mask_input": np.ones(1, np.float32)}
    return feed


@pytest.mark.hostcuda
def test_one_folder_decodes_a_click_and_refines_its_mask(engine_set: Path, engines: list[OrtEngine]) -> None:
    with DecoderRunner.open(engine_set) as runner:
        plain, masked = engines
        runner.set_image(toy_embedding(2))
        first = runner.decode([[100.0, 40.0]], [1], masks="all", copy=True)
        wanted = direct(engine_set, "decoder.onnx", click_feed(100, 40))
        np.testing.assert_array_equal(first.masks, wanted["low_res_masks"])
        np.testing.assert_array_equal(first.iou_predictions, wanted["iou_predictions"])
        assert runs_of(plain) > 0
        assert runs_of(masked) == 0

        before = runs_of(plain)
        best = np.asarray(first.masks[:, 3:], np.float32)
        second = runner.decode([[60.0, 90.0]], [1], mask_input=best, masks="all", copy=True)
        wanted = direct(engine_set, "decoder_mask.onnx", click_feed(60, 90, best))
        np.testing.assert_array_equal(second.masks, wanted["low_res_masks"])
        assert not np.array_equal(second.masks, direct(engine_set, "decoder.onnx", click_feed(60, 90))["low_res_masks"])
        assert runs_of(masked) > 0
        assert runs_of(plain) == before

        # And the next click of another object is the small graph's again.
        third = runner.decode([[100.0, 40.0]], [1], masks="all")
        np.testing.assert_array_equal(third.masks, first.masks)


@pytest.mark.hostcuda
def test_a_predictor_refines_through_the_same_folder(engine_set: Path, engines: list[OrtEngine]) -> None:
    with DecoderRunner.open(engine_set) as runner:
        predictor = Predictor(runner)
        predictor.set_image_embedding(toy_embedding(2), (1024, 1024))
        click = np.array([[100.0, 40.0]]), np.array([1])
        _, iou, low_res = predictor.predict(*click)
        wanted = direct(engine_set, "decoder.onnx", click_feed(100, 40))
        np.testing.assert_array_equal(low_res, wanted["low_res_masks"][0, 1:])
        assert [runs_of(each) > 0 for each in engines] == [True, False]
        best = low_res[np.argmax(iou)][None]
        _, iou, low_res = predictor.predict(*click, mask_input=best)
        wanted = direct(engine_set, "decoder_mask.onnx", click_feed(100, 40, best[None]))
        np.testing.assert_array_equal(low_res, wanted["low_res_masks"][0, 1:])
        np.testing.assert_array_equal(iou, wanted["iou_predictions"][0, 1:])


@pytest.mark.hostcuda
def test_a_role_opens_that_graph_alone(engine_set: Path, engines: list[OrtEngine]) -> None:
    with DecoderRunner.open(engine_set, role="decode") as runner:
        runner.set_image(toy_embedding(2))
        with pytest.raises(ContractError, match="takes no mask_input; build one with --decode-mask"):
            runner.decode([[1.0, 2.0]], [1], mask_input=np.zeros((1, 1, 256, 256), np.float32))
    with DecoderRunner.open(engine_set, role="decode_mask") as runner:
        found = runner.run(feed_without(5, 6))
        np.testing.assert_array_equal(
            found["low_res_masks"], direct(engine_set, "decoder_mask.onnx", feed_without(5, 6))["low_res_masks"]
        )
    assert len(engines) == 2


def feed_without(x: float, y: float) -> dict[str, Array]:
    return {**click_feed(x, y, np.zeros((1, 1, 256, 256))), "has_mask_input": np.zeros(1, np.float32)}


@pytest.mark.hostcuda
def test_a_comparison_runs_each_prompt_in_the_graph_that_it_is_for(engine_set: Path, engines: list[OrtEngine]) -> None:
    feed = toy_feed(3, 4, 2, MASK)
    feed["has_mask_input"] = np.array([0, 1, 0, 1], np.float32)
    with BothDecoders(DecoderRunner.open(engine_set)) as both:
        found = both.run(feed)
        plain, masked = (direct(engine_set, name, feed) for name in ("decoder.onnx", "decoder_mask.onnx"))
        for name, array in found.items():
            np.testing.assert_array_equal(array[[0, 2]], plain[name][[0, 2]])
            np.testing.assert_array_equal(array[[1, 3]], masked[name][[1, 3]])
            assert not np.array_equal(plain[name], masked[name])
        for flags, wanted in (
            (np.zeros(4), plain),
            (np.ones(4), direct(engine_set, "decoder_mask.onnx", {**feed, "has_mask_input": np.ones(4, np.float32)})),
        ):
            found = both.run({**feed, "has_mask_input": flags.astype(np.float32)})
            np.testing.assert_array_equal(found["low_res_masks"], wanted["low_res_masks"])


@pytest.mark.hostcuda
def test_a_side_of_a_comparison_is_the_set_or_one_of_its_engines(
    engine_set: Path, engines: list[OrtEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_sam.accuracy.sides.gpu_compute_capability", lambda device: None)
    with pytest.raises(InferenceError, match=r"instead: \S+decoder\.onnx or \S+decoder_mask\.onnx$"):
        open_side(str(engine_set))
    with pytest.raises(InferenceError, match=r"instead: \S+decoder_mask\.onnx$"):
        open_side(str(engine_set / "decoder_mask.engine"))
    monkeypatch.setattr("trt_sam.accuracy.sides.gpu_compute_capability", lambda device: "8.9")
    for name, opened in (("", 2), ("manifest.json", 2), ("decoder.engine", 1), ("decoder_mask.engine", 1)):
        engines.clear()
        with open_side(str(engine_set / name)).runner as runner:
            assert isinstance(runner, BothDecoders) == (opened == 2)
            assert ("mask_input" in {spec.name for spec in runner.inputs}) == (name != "decoder.engine")
            assert len(engines) == opened


@pytest.mark.hostcuda
def test_a_side_of_engines_knows_the_graphs_beside_them(
    engine_set: Path, engines: list[OrtEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_sam.accuracy.sides.gpu_compute_capability", lambda device: "8.9")
    whole = open_side(str(engine_set))
    whole.runner.close()
    assert whole.graphs == (engine_set / "decoder.onnx", engine_set / "decoder_mask.onnx")
    with pytest.raises(InputError, match=r"is none; name \S+decoder\.onnx or \S+decoder_mask\.onnx, which it was built from"):
        check_layers(open_side("standin"), [whole])


@pytest.mark.hostcuda
def test_a_benchmark_times_the_graph_of_prompts_without_a_mask(engine_set: Path, engines: list[OrtEngine]) -> None:
    side = open_engine(str(engine_set), 0)
    feed = tokens(toy_embedding(1), *clicks(1, 2, 2))
    side.load(feed)
    masks, _ = side.call()
    np.testing.assert_array_equal(masks, direct(engine_set, "decoder.onnx", feed)["low_res_masks"])
    assert len(engines) == 1
    side.close()
