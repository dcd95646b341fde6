"""The benchmark's side of an engine and `DecoderRunner.device_times`, over the host-memory driver, whose events say 1 ms."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.ort_engine import FakeTrt, OrtEngine, runs_of
from tests.fixtures.toy_decoder import specs, toy_decoder, toy_embedding, toy_feed
from trt_sam.bench.feed import IMAGE_SIZE, make_feed
from trt_sam.bench.sides import EngineSide, open_engine
from trt_sam.cuda.accounts import outstanding
from trt_sam.cuda.device import Device
from trt_sam.engine import manifest
from trt_sam.errors import ContractError, InferenceError
from trt_sam.machine.driver import pci_bus_id
from trt_sam.recipe import GraphOptions
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runner.engine import Engine

pytestmark = pytest.mark.hostcuda

PLAIN = GraphOptions(precision="fp32")
HALF = GraphOptions(precision="fp16")
PROFILE = {"num_prompts": (1, 4), "num_points": (1, 6)}
EMBEDDING = 4 * 2**20
MASK = 256 * 256


def make(cuda: HostCuda, options: GraphOptions = PLAIN) -> tuple[DecoderRunner, OrtEngine]:
    inputs, outputs = specs(options)
    profile = PROFILE | ({"height": (1, 2160), "width": (1, 3840)} if options.full_resolution else {})
    fake = OrtEngine(cuda, toy_decoder(options), inputs, outputs, [profile])
    return DecoderRunner(Engine(FakeTrt, fake, inputs, outputs, [profile]), Device()), fake


def copied(cuda: HostCuda, direction: str) -> list[int]:
    """Bytes of each copy since the driver was reset."""
    return [int(size) for line in cuda.log for size in re.findall(rf"^run {direction}\w* .*?(\d+)$", line)]


def test_the_inference_alone_is_repeated_between_events(host_cuda: HostCuda) -> None:
    runner, fake = make(host_cuda)
    with runner:
        runner.set_image(toy_embedding(1))
        feed = toy_feed(1, 2, 2, PLAIN)
        runner.run(feed)
        before, events = runs_of(fake), outstanding().get("events", 0)
        assert runner.device_times(feed, 5) == [1.0] * 5
        assert runs_of(fake) == before + 1 + 3 + 5  # the call itself, those that keep the GPU busy, and those that are timed
        assert outstanding().get("events", 0) == events
        # Nothing is waited for between the first mark and the last, and all are launches of one graph.
        start = len(host_cuda.log)
        runner.device_times(feed, 4)
        log = [
            line.split()[0]
            for line in host_cuda.log[start:]
            if line.startswith(("cuGraphLaunch", "cuEventRecord", "cuEventSync"))
        ]
        # Before them the feed's image goes through its staging memory. The call itself, then three that keep the GPU busy.
        log = log[log.index("cuGraphLaunch") :]
        assert log == ["cuGraphLaunch"] * 4 + ["cuEventRecord"] + ["cuGraphLaunch", "cuEventRecord"] * 4 + [
            "cuEventSynchronize"
        ]
        # What it left behind is a runner that works.
        assert np.isfinite(runner.run(feed)["low_res_masks"]).all()


def test_a_feed_beyond_the_profile_is_refused(host_cuda: HostCuda) -> None:
    runner, _ = make(host_cuda)
    with runner, pytest.raises(ContractError, match="num_prompts"):
        runner.device_times(toy_feed(1, 5, 2, PLAIN), 1)


@pytest.mark.parametrize("call", ["cuEventCreate", "cuEventRecord", "cuEventSynchronize"])
def test_a_failing_event_is_told_and_nothing_is_left(host_cuda: HostCuda, call: str) -> None:
    runner, _ = make(host_cuda)
    with runner:
        runner.run(toy_feed(1, 1, 1, PLAIN))
        events = outstanding().get("events", 0)
        host_cuda.fail(call)
        with pytest.raises(InferenceError):
            runner.device_times(toy_feed(1, 1, 1, PLAIN), 2)
        assert outstanding().get("events", 0) == events


@pytest.mark.parametrize("options", [PLAIN, HALF], ids=["fp32", "fp16"])
def test_an_engine_is_called_as_a_service_calls_it(host_cuda: HostCuda, options: GraphOptions) -> None:
    runner, _ = make(host_cuda, options)
    dtype = np.dtype("float16" if options is HALF else "float32")
    feed = make_feed(2)
    expected = runner.run(feed)
    side = EngineSide(runner, {"runtime": "toy"})
    side.load(feed)
    for _ in range(2):
        masks, iou = side.call()
        # The padding token that `decode` adds is the one of the feed.
        np.testing.assert_array_equal(masks.astype(np.float32), expected["low_res_masks"])
        np.testing.assert_array_equal(iou, expected["iou_predictions"])
        assert masks.dtype == dtype  # nothing is converted
        assert not masks.flags.owndata
    address = masks.ctypes.data
    before = [copied(host_cuda, way) for way in ("HtoD", "DtoH")]
    masks, _ = side.call()
    up, down = (copied(host_cuda, way)[len(old) :] for way, old in zip(("HtoD", "DtoH"), before, strict=True))
    assert masks.ctypes.data == address  # no new memory
    assert sum(up) < 4096  # the prompts, not the image
    assert len(down) == 1
    assert 0 <= down[0] - 2 * 4 * MASK * dtype.itemsize < 4096  # all masks and the scores
    assert f"{dtype} views" in side.about["call"]
    side.close()


def test_the_best_mask_of_an_engine_is_all_that_comes_back(host_cuda: HostCuda) -> None:
    runner, _ = make(host_cuda)
    side = EngineSide(runner, {})
    side.load(make_feed(2))
    masks, iou = (each.copy() for each in side.call())
    before = len(copied(host_cuda, "DtoH"))
    best, score = side.call_best()
    down = copied(host_cuda, "DtoH")[before:]
    assert best.shape == (2, 1, 256, 256)
    for row, scores in enumerate(iou):
        chosen = 1 + int(scores[1:].argmax())
        np.testing.assert_array_equal(best[row, 0], masks[row, chosen])
        assert score[row, 0] == scores[chosen]
    assert sum(down) < 2 * MASK * 4 + 4096
    side.close()


@pytest.mark.parametrize("in_graph", [True, False], ids=["by the graph", "on the host"])
def test_the_best_mask_of_an_engine_as_bits(host_cuda: HostCuda, in_graph: bool) -> None:
    runner, _ = make(host_cuda, GraphOptions(precision="fp32", best_mask=in_graph, mask_bits=in_graph))
    side = EngineSide(runner, {})
    side.load(make_feed(2))
    best, scores = (each.copy() for each in side.call_best())
    before = len(copied(host_cuda, "DtoH"))
    bits, iou = side.call_bits()
    down = copied(host_cuda, "DtoH")[before:]
    np.testing.assert_array_equal(np.unpackbits(bits, axis=-1) if in_graph else bits, best > 0)
    np.testing.assert_array_equal(iou, scores)
    assert bits.shape == ((2, 1, 256, 32) if in_graph else best.shape)
    assert sum(down) < (2 * MASK // 8 if in_graph else 2 * MASK * 4) + 4096
    assert ("made by the graph" in side.about["bits"]) == in_graph
    side.close()


def test_an_engine_with_mask_input_and_photo_sized_masks_can_be_timed(host_cuda: HostCuda) -> None:
    runner, _ = make(host_cuda, GraphOptions(precision="fp32", mask_input=True, full_resolution=True))
    side = EngineSide(runner, {})
    side.load(make_feed(1))
    assert side.call()[0].shape == (1, 4, 256, 256)
    assert runner.decode(np.zeros((1, 2)), np.ones(1), masks="all", image_size=IMAGE_SIZE).masks.shape[2:] == IMAGE_SIZE
    assert side.device_ms(3) == [1.0] * 3
    side.close()


@pytest.mark.parametrize(("flavour", "cached"), [("tensorrt_rtx", True), ("tensorrt", False)])
def test_an_engine_is_opened_without_what_was_compiled_before(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavour: str, cached: bool
) -> None:
    asked: dict[str, Any] = {}

    def opened(folder: str, **options: Any) -> DecoderRunner:
        asked.update(options)
        return make(host_cuda)[0]

    graph = SimpleNamespace(options=PLAIN)
    found = SimpleNamespace(flavour=flavour, flavour_version="1", graph=lambda role: graph)
    monkeypatch.setattr(manifest, "open_manifest", lambda folder, verify: found)
    monkeypatch.setattr(DecoderRunner, "open", opened)
    side = open_engine(str(tmp_path), 0)
    side.close()
    assert asked == {"role": "decode", "device": 0, "runtime_cache": False}
    assert ("runtime cache" in side.about) == cached


def test_a_gpu_is_found_on_the_bus(host_cuda: HostCuda) -> None:
    assert pci_bus_id(0) == "0000:00:00.0"
    assert pci_bus_id(1) is None
    host_cuda.fail("cuDeviceGetPCIBusId")
    assert pci_bus_id(0) is None
