"""RunnerPool and embeddings on the GPU: in order with the caller's stream, as a runner on the caller's thread is."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, clicks, expected, make, tokens
from tests.unit.runner.test_fork import in_fork, told
from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE
from trt_sam.cuda.device import Device
from trt_sam.cuda.dlpack import DeviceArray
from trt_sam.cuda.graphs import order
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Stream
from trt_sam.errors import ContractError
from trt_sam.runner.pool import RunnerPool

pytestmark = pytest.mark.hostcuda
_thread = threading.local()
_LEGACY = 1


class TorchLike:
    """A tensor whose `__dlpack__` orders after the calling thread's current stream, as torch's does."""

    def __init__(self, device: Device, seed: int) -> None:
        self.stream, self.buffer, self.index = Stream(device), device.buffer(EMBEDDING_BYTES), 0
        self.host = page_locked(device, EMBEDDING_BYTES)
        self.host.view(np.float32)[:] = toy_embedding(seed).ravel()
        self.device, _thread.stream = device, self.stream.handle
        with device.active():
            self.stream.upload(self.buffer.address, self.host)
        slot: Any = SimpleNamespace(
            device=device, stream=self.stream, closed=False, lock=threading.Lock(), readers=set(), owner=lambda: None
        )
        self.array = DeviceArray(self.buffer.address, EMBEDDING_SHAPE, "float32", slot)

    def finish(self) -> None:
        with self.device.active():
            self.stream.synchronize()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.index

    def __dlpack__(self, *, stream: int) -> object:
        with self.device.active():
            order(getattr(_thread, "stream", _LEGACY), stream)
        return self.array.__dlpack__(stream=-1)


def test_a_pool_waits_for_the_stream_of_who_submits(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 2)
    with Device() as device, RunnerPool(lambda number: make(host_cuda)[0], 2) as pool:
        sources = [TorchLike(device, seed) for seed in (3, 4, 5)]
        for source, seed in zip(sources, (3, 4, 5), strict=True):
            _thread.stream = source.stream.handle
            found = pool.submit(source, *given, masks="all").result()
            wanted = expected(PLAIN, tokens(toy_embedding(seed), *given))
            np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])
        for source in sources:
            source.finish()
        del found, sources, source


def test_an_embedding_that_cannot_be_taken_is_told_at_once_and_takes_no_room(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with Device() as device, RunnerPool(lambda number: make(host_cuda)[0], 1, max_waiting=0) as pool:
        source = TorchLike(device, 3)
        source.finish()
        source.array.dtype = np.dtype(np.float16)
        for _ in range(3):
            with pytest.raises(ContractError, match=r"is float16 on the GPU, must be float32"):
                pool.submit(source, *given, timeout=0)
        assert pool.submit(toy_embedding(1), *given, timeout=0).result().masks.shape[0] == 1
        del source


def test_a_pool_in_a_forked_process_says_so(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with RunnerPool(lambda number: make(host_cuda)[0], 1) as pool:
        pool.submit(toy_embedding(1), *given).result()
        words = in_fork(lambda: told(lambda: pool.submit(toy_embedding(1), *given).result(timeout=3)))
        assert "forked from" in str(words)
        assert pool.submit(toy_embedding(1), *given).result().masks.shape[0] == 1
