"""Images on the GPU, over the host-memory driver: which are held, who waits for one that is slow to come, close meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, check_decoded, clicks, expected, make, opened, tokens
from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE
from trt_sam.cuda.device import Device
from trt_sam.cuda.streams import Stream
from trt_sam.errors import ContractError, InferenceError
from trt_sam.runner.decoder_runner import DecoderRunner

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
    assert runner._core.open_images() is not None
    gate = Gate(patch, runner._core.open_images().stream)

    def work() -> None:
        try:
            runner.add_image(Source(runner._core.device))
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


def test_close_waits_for_an_image_under_way(host_cuda: HostCuda, patch: pytest.MonkeyPatch) -> None:
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
    assert not errors
    with pytest.raises(InferenceError, match="the runner is closed; open a new one"):
        runner.add_image(toy_embedding(1))


def test_a_failed_wait_gives_the_memory_back(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda, image_bytes=EMBEDDING_BYTES) as (runner, _):
        runner.set_image(toy_embedding(1))
        source = Source(runner._core.device)
        host_cuda.fail("cuStreamSynchronize")
        with pytest.raises(InferenceError, match="waiting for the GPU"):
            runner.add_image(source)
        assert runner.images_held == 0
        before = host_cuda.held
        runner.use_image(runner.submit_image(toy_embedding(3)).result())
        assert host_cuda.held == before
        found = runner.decode(*given, masks="all")
        wanted = expected(PLAIN, tokens(toy_embedding(3), *given))
        np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])


def test_two_images_of_the_host_are_under_way_at_once_and_a_third_waits_for_the_first(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.warm_up([(1, 2)])
        start = len(host_cuda.log)

        def uploads() -> int:
            return sum(line.startswith("run HtoD") for line in host_cuda.log[start:])

        numbers = [runner.submit_image(toy_embedding(seed)).number for seed in (1, 2)]
        assert uploads() == 0, "nobody has waited for either"
        numbers.append(runner.submit_image(toy_embedding(3)).number)
        assert uploads() == 1, "the first memory is filled again once it has been read"
        for seed, number in enumerate(numbers, start=1):
            check_decoded(runner.decode(*given, image=number), tokens(toy_embedding(seed), *given))


def test_images_stay_on_the_gpu_and_the_least_recently_used_goes(host_cuda: HostCuda) -> None:
    given = clicks(1, 2, 2)
    with opened(host_cuda, image_bytes=3 * 4 * 2**20) as (runner, _):
        numbers = [runner.add_image(toy_embedding(seed)) for seed in (10, 11, 12)]
        assert runner.images_held == 3
        with pytest.raises(ContractError, match="there is no image"):
            runner.decode(*given)
        for number, seed in zip([*numbers, *reversed(numbers)], (10, 11, 12, 12, 11, 10), strict=True):
            check_decoded(runner.decode(*given, image=number), tokens(toy_embedding(seed), *given))
        fourth = runner.add_image(toy_embedding(13))  # number 3 was used longest ago
        assert runner.images_held == 3
        with pytest.raises(ContractError, match=r"image 3 is not held \(held: 2, 1, 4\)"):
            runner.decode(*given, image=numbers[2])
        runner.use_image(numbers[0])
        check_decoded(runner.decode(*given), tokens(toy_embedding(10), *given))
        check_decoded(runner.decode(*given, image=fourth), tokens(toy_embedding(13), *given))
        runner.drop_image(fourth)
        before = host_cuda.count("cuMemAlloc")
        runner.set_image(toy_embedding(14))
        assert host_cuda.count("cuMemAlloc") == before
        check_decoded(runner.decode(*given), tokens(toy_embedding(14), *given))


def test_the_embedding_is_copied_only_when_the_image_changes(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        runner.decode(*given)
        for image, copies in ((None, 0), (1, 0)):
            before = host_cuda.count("cuMemcpyDtoDAsync")
            runner.decode(*given, image=image)
            assert host_cuda.count("cuMemcpyDtoDAsync") - before == copies
        runner.set_image(toy_embedding(2))
        runner.decode(*given)
        assert host_cuda.count("cuMemcpyDtoDAsync") == 2


def test_a_new_image_waits_for_the_calls_that_read_its_memory(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda, image_bytes=4 * 2**20) as (runner, _):
        runner.set_image(toy_embedding(5))
        runner.decode(*given)
        runner.set_image(toy_embedding(6))
        pending = runner.submit(*given)
        runner.set_image(toy_embedding(7))  # into the memory of 6, which is not copied into the slot yet
        check_decoded(pending.result(), tokens(toy_embedding(6), *given))
        check_decoded(runner.decode(*given), tokens(toy_embedding(7), *given))
