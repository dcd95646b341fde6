"""`DecoderRunner.device_times`, over the host-memory driver, whose events say 1 ms whatever happened."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.ort_engine import FakeTrt, OrtEngine, runs_of
from tests.fixtures.toy_decoder import specs, toy_decoder, toy_embedding, toy_feed
from trt_sam._bench_sides import RunnerSide
from trt_sam._engine import Engine
from trt_sam.cuda import Device, outstanding
from trt_sam.errors import ContractError, InferenceError
from trt_sam.recipe import GraphOptions
from trt_sam.runner import DecoderRunner

pytestmark = pytest.mark.hostcuda

PLAIN = GraphOptions(precision="fp32")
PROFILE = {"num_prompts": (1, 4), "num_points": (1, 6)}


def make(cuda: HostCuda) -> tuple[DecoderRunner, OrtEngine]:
    inputs, outputs = specs(PLAIN)
    fake = OrtEngine(cuda, toy_decoder(PLAIN), inputs, outputs, [PROFILE])
    return DecoderRunner(Engine(FakeTrt, fake, inputs, outputs, [PROFILE]), Device()), fake


def test_the_inference_alone_is_repeated_between_events(host_cuda: HostCuda) -> None:
    runner, fake = make(host_cuda)
    with runner:
        runner.set_image(toy_embedding(1))
        feed = toy_feed(1, 2, 2, PLAIN)
        runner.run(feed)
        before, events = runs_of(fake), outstanding().get("events", 0)
        assert runner.device_times(feed, 5) == [1.0] * 5
        assert runs_of(fake) == before + 6
        assert outstanding().get("events", 0) == events
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


def test_a_bench_side_of_a_runner_gives_device_times(host_cuda: HostCuda) -> None:
    runner, _ = make(host_cuda)
    side = RunnerSide(runner, {})
    side.load(toy_feed(1, 2, 2, PLAIN))
    masks, iou = side.call()
    assert masks.shape == (2, 4, 256, 256)
    assert iou.shape == (2, 4)
    assert side.device_ms(3) == [1.0] * 3
    side.close()
