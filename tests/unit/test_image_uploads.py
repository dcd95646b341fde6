"""Images that are slow to come, over the host-memory driver: who waits for them, and what happens when the runner is closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, clicks, expected, make, opened, tokens
from trt_sam._residents import EMBEDDING_BYTES
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.cuda import Device, Stream
from trt_sam.errors import InferenceError
from trt_sam.runner import DecoderRunner

pytestmark = pytest.mark.hostcuda


class Source:
    """Another library's array, whose upload nobody has to wait for."""

    def __init__(self, device: Device) -> None:
        self.__cuda_array_interface__ = {
            "shape": EMBEDDING_SHAPE,
            "typestr": "<f4",
            "data": (device.buffer(EMBEDDING_BYTES).address, False),
            "version": 3,
        }


class Gate:
    """Holds up the waits for one stream."""

    def __init__(self, patch: pytest.MonkeyPatch, stream: Stream) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        wait = Stream.synchronize

        def slow(given: Stream) -> None:
            if given is stream and not self.opened.is_set():
                self.entered.set()
                assert self.opened.wait(20)
            wait(given)

        patch.setattr(Stream, "synchronize", slow)


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def slow_image(runner: DecoderRunner, patch: pytest.MonkeyPatch, errors: list[Exception]) -> tuple[threading.Thread, Gate]:
    assert runner._images is not None
    gate = Gate(patch, runner._images.stream)

    def work() -> None:
        try:
            runner.add_image(Source(runner._device))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert gate.entered.wait(20)
    return thread, gate


def test_calls_on_images_that_are_there_do_not_wait_for_one_to_come(host_cuda: HostCuda, patch: pytest.MonkeyPatch) -> None:
    given, errors = clicks(1, 1, 1), list[Exception]()
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        thread, gate = slow_image(runner, patch, errors)
        found = runner.decode(*given, masks="all", image=runner.image_id)
        wanted = expected(PLAIN, tokens(toy_embedding(1), *given))
        np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])
        runner.use_image(runner.image_id)
        assert thread.is_alive()
        gate.opened.set()
        thread.join(20)
        assert runner.images_held == 2
    assert not errors


def test_close_waits_for_an_image_under_way_which_is_then_refused(host_cuda: HostCuda, patch: pytest.MonkeyPatch) -> None:
    errors = list[Exception]()
    runner, _ = make(host_cuda)
    thread, gate = slow_image(runner, patch, errors)
    closing = threading.Thread(target=runner.close, daemon=True)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    gate.opened.set()
    thread.join(20)
    closing.join(20)
    assert not thread.is_alive()
    assert not closing.is_alive()
    assert [str(error) for error in errors] == ["the runner is closed; open a new one"]
    assert isinstance(errors.pop(), InferenceError)


def test_a_failed_wait_gives_the_memory_back(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda, image_bytes=EMBEDDING_BYTES) as (runner, _):
        runner.set_image(toy_embedding(1))
        host_cuda.fail("cuStreamSynchronize")
        with pytest.raises(InferenceError, match="waiting for the GPU"):
            runner.add_image(toy_embedding(2))
        before = host_cuda.held
        runner.set_image(toy_embedding(3))
        assert host_cuda.held == before
        found = runner.decode(*given, masks="all")
        wanted = expected(PLAIN, tokens(toy_embedding(3), *given))
        np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])
