"""What a DLPack consumer of ours frees, and when: in C code, which leaves an error that is under way alone."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, clicks, expected, opened, tokens
from trt_sam.cuda import borrowed as _borrowed
from trt_sam.cuda import dlpack as _dlpack
from trt_sam.cuda.streams import Stream
from trt_sam.runner.decoder_runner import DecoderRunner

pytestmark = pytest.mark.hostcuda
CPU = 1


def drain(runner: DecoderRunner) -> None:
    """The legacy stream, which consumers without a stream are taken to work in."""
    with runner._core.device.active():
        runner._core.device.synchronize()


def test_a_consumer_that_refuses_says_so_itself(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        masks = runner.decode(*clicks(1, 1, 1), masks="device").masks
        with pytest.raises((BufferError, RuntimeError), match="device"):
            np.from_dlpack(masks)
        drain(runner)


@pytest.mark.parametrize("library", [np.from_dlpack, pytest.importorskip("torch").from_dlpack], ids=["numpy", "torch"])
def test_an_error_in_which_a_view_is_dropped_stays_that_error(
    host_cuda: HostCuda, library: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ValueError("mine")

    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        scores = runner.decode(*given, masks="device").iou_predictions
        # This driver's memory is the host's, which numpy and a torch without CUDA take.
        monkeypatch.setattr(_dlpack, "CUDA", CPU)
        with pytest.raises(ValueError, match="mine"):
            print(library(scores), fail())
        wanted = expected(PLAIN, tokens(toy_embedding(1), *given))["iou_predictions"]
        drain(runner)
        np.testing.assert_array_equal(np.asarray(library(scores)), wanted)
        drain(runner)


def test_what_consumers_took_is_freed(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        masks = runner.decode(*clicks(1, 1, 1), masks="device").masks
        device = runner._core.device

        def take(count: int) -> None:
            for _ in range(count):
                _borrowed.borrow(masks, "masks", masks.shape, device, stream)

        with device.active():
            stream = Stream(device)
            take(10)
            tracemalloc.start()
            try:
                take(10)
                before = tracemalloc.get_traced_memory()[0]
                take(1000)
                assert tracemalloc.get_traced_memory()[0] - before < 10_000
            finally:
                tracemalloc.stop()
            stream.synchronize()
