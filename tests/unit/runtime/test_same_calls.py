"""`OnnxRunner` and `DecoderRunner` over the same graph: the same calls, coordinates, types and errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_decoder, toy_embedding
from tests.fixtures.toy_runner import GRAPHS, clicks, opened
from trt_sam.errors import ContractError, InferenceError
from trt_sam.recipe import GraphOptions
from trt_sam.runtime.decoders import graph as decoder_graph
from trt_sam.runtime.interface import PromptRunner
from trt_sam.runtime.onnx_runner import OnnxRunner

pytestmark = pytest.mark.hostcuda

BOXES = np.array([[10, 20, 300.5, 400], [0, 0, 5, 5]], np.float32)
MASKS = np.full((2, 1, 256, 256), 0.5, np.float32)
SAME_ERRORS: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "there is no prompt"),
    ({"labels": [1]}, "labels came without points"),
    ({"points": [[1, 2]], "labels": [-1]}, "labels hold -1"),
    ({"points": [[1, 2]], "labels": [1, 0]}, "one to each point"),
    ({"points": [[1, np.nan]], "labels": [1]}, "NaN or infinity"),
    ({"points": [[1, 2]], "labels": [1], "masks": "worst"}, "masks is 'worst', must be one of"),
    ({"points": [[1, 2]], "labels": [1], "bits": "few"}, "bits is 'few', must be"),
    ({"points": [[1, 2]], "labels": [1], "bits": "packed"}, "packs no bits"),
    ({"points": [[1, 2]], "labels": [1], "image_size": (3, 4)}, "takes no image_size"),
    ({"points": [[1, 2]], "labels": [1], "image": 9}, "image 9 is not held"),
    ({"boxes": BOXES, "mask_input": MASKS}, "takes no mask_input"),
)


@pytest.fixture
def unchecked_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy graph has the contract's tensors but no metadata."""
    monkeypatch.setattr(decoder_graph, "checked_options", lambda path, *_, **__: _options_of(path))


def _options_of(path: Path) -> GraphOptions:
    return GRAPHS[path.stem]


@pytest.fixture
def both(request: pytest.FixtureRequest, host_cuda: HostCuda, tmp_path: Path, unchecked_options: None) -> Iterator[Any]:
    name = getattr(request, "param", "plain")
    graph = tmp_path / f"{name}.onnx"
    graph.write_bytes(toy_decoder(GRAPHS[name]))
    with OnnxRunner(graph, threads=1) as cpu, opened(host_cuda, GRAPHS[name], in_flight=2) as (gpu, _):
        yield cpu, gpu, GRAPHS[name]


@pytest.mark.parametrize("both", list(GRAPHS), indirect=True)
def test_the_same_results(both: tuple[PromptRunner, PromptRunner, GraphOptions]) -> None:
    cpu, gpu, options = both
    asked: list[dict[str, Any]] = [{"masks": masks, "bits": bits} for masks in ("best", "all") for bits in (False, True)]
    asked += [{"masks": masks, "bits": "packed"} for masks in ("best", "all") if options.mask_bits]
    size = {"image_size": (20, 30)} if options.full_resolution else {}
    given = [{"points": p, "labels": n} for p, n in [clicks(1, 2, 3), clicks(2, 1, 1)]]
    given += [{"boxes": BOXES}, {"points": clicks(3, 2, 2)[0], "labels": [[1, -2], [0, 1]], "boxes": BOXES}]
    given += [{"boxes": BOXES, "mask_input": MASKS}, {"mask_input": MASKS}] if options.mask_input else []
    for runner in (cpu, gpu):
        runner.set_image(toy_embedding(3))
    for prompts in given:
        for kind in asked:
            expected = gpu.decode(**prompts, **kind, **size, copy=True)
            for found in (
                cpu.decode(**prompts, **kind, **size),
                cpu.decode_many(**prompts, **kind, **size),
                cpu.submit(**prompts, **kind, **size).result(copy=True),
            ):
                for name in ("masks", "iou_predictions", "low_res_masks"):
                    ours, theirs = getattr(found, name), getattr(expected, name)
                    assert (ours is None) == (theirs is None), name
                    if ours is not None:
                        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
                        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_images_by_number(both: tuple[PromptRunner, PromptRunner, GraphOptions]) -> None:
    given = clicks(1, 1, 1)
    scores = []
    for runner in both[:2]:
        assert (runner.add_image(toy_embedding(5)), runner.image_id) == (1, 0)
        with pytest.raises(ContractError, match="there is no image"):
            runner.decode(*given)
        runner.set_image(toy_embedding(6))
        found = [runner.decode(*given, image=1, copy=True), runner.decode(*given, copy=True)]
        runner.use_image(1)
        found.append(runner.decode(*given, copy=True))
        assert runner.image_id == 1
        runner.drop_image(2)
        with pytest.raises(ContractError, match=r"image 2 is not held \(held: 1\)"):
            runner.decode(*given, image=2)
        scores.append(np.concatenate([each.iou_predictions for each in found]))
        assert scores[-1][0] == scores[-1][2] != scores[-1][1]
    np.testing.assert_array_equal(*scores)


def test_prompts_on_several_images(both: tuple[PromptRunner, PromptRunner, GraphOptions]) -> None:
    """Graphs of one image: consecutive prompts on one share a call."""
    points, labels = clicks(5, 7, 2)
    on = [2, 2, 2, 1, 3, 3, 2]
    results = []
    for runner in both[:2]:
        assert [runner.add_image(toy_embedding(seed)) for seed in (4, 5, 6)] == [1, 2, 3]
        found = runner.decode_many(points, labels, image=on)
        for row, image in enumerate(on):
            alone = runner.decode(points[row], labels[row], image=image, copy=True)
            np.testing.assert_array_equal(found.masks[row], alone.masks[0])
        results.append(found.masks)
        with pytest.raises(ContractError, match="image names 2 images for 7 prompts"):
            runner.decode_many(points, labels, image=[1, 2])
    np.testing.assert_array_equal(*results)
    for call in (both[1].decode, both[1].submit):
        with pytest.raises(ContractError, match="a launch has one image; decode_many takes one for each prompt"):
            call(points[:2], labels[:2], image=[1, 2])


@pytest.mark.parametrize(("asked", "message"), SAME_ERRORS, ids=[message for _, message in SAME_ERRORS])
def test_the_same_errors(both: tuple[PromptRunner, PromptRunner, GraphOptions], asked: dict[str, Any], message: str) -> None:
    for runner in both[:2]:
        runner.set_image(toy_embedding(1))
        with pytest.raises(ContractError, match=message):
            runner.decode(**asked)
        with pytest.raises(TypeError, match="mask_inputs"):
            runner.decode([[1, 2]], [1], mask_inputs=None)  # type: ignore[call-arg]


def test_the_oldest_image_goes(tmp_path: Path, unchecked_options: None) -> None:
    (tmp_path / "plain.onnx").write_bytes(toy_decoder(GRAPHS["plain"]))
    with OnnxRunner(tmp_path / "plain.onnx", threads=1, image_bytes=8 << 20) as runner:
        for seed in range(3):
            runner.set_image(toy_embedding(seed))
        with pytest.raises(ContractError, match=r"image 1 is not held \(held: 2, 3\)"):
            runner.use_image(1)
    with pytest.raises(ContractError, match="image_bytes is 5, must hold an image"):
        OnnxRunner.open(tmp_path / "plain.onnx", image_bytes=5)


def test_a_call_under_way_keeps_its_image_and_prompts_and_ends_before_close(tmp_path: Path, unchecked_options: None) -> None:
    (tmp_path / "plain.onnx").write_bytes(toy_decoder(GRAPHS["plain"]))
    points, labels = clicks(1, 4, 2)
    with OnnxRunner(tmp_path / "plain.onnx", threads=1) as runner:
        runner.set_image(toy_embedding(1))
        expected = runner.decode(points, labels)
        calls = [runner.submit(points, labels) for _ in range(5)]
        points[...] = 0
        runner.set_image(toy_embedding(2))
        for call in calls[:4]:
            np.testing.assert_array_equal(call.result().masks, expected.masks)
        with calls[4]:
            pass
    assert calls[4].done()
    with pytest.raises(InferenceError, match="is closed"):
        runner.submit(points, labels)
