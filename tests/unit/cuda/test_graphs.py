"""Recording a CUDA graph while other threads do what they like, over the host-memory driver."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from tests.fixtures.hostcuda import HostCuda
from trt_sam.cuda import device as cuda
from trt_sam.cuda.graphs import capture
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Stream
from trt_sam.errors import InferenceError

pytestmark = pytest.mark.hostcuda


def wait_for_the_whole_gpu(device: cuda.Device, errors: list[Exception]) -> None:
    """What `torch.cuda.synchronize()` does, on a thread of its own: CUDA refuses it during a capture."""

    def work() -> None:
        with device.active():
            try:
                device.driver.Context.synchronize()
            except device.driver.Error as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_recording_that_another_library_spoilt_is_made_again(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        stream, errors = Stream(device), list[Exception]()

        def work() -> None:
            if not errors:
                wait_for_the_whole_gpu(device, errors)

        with device.active():
            capture(device, stream, work).close()
        assert len(errors) == 1
        assert host_cuda.count("cuStreamBeginCapture") == 2


def test_one_that_is_spoilt_each_time_is_an_error_and_the_stream_lives_on(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        stream, errors = Stream(device), list[Exception]()
        with device.active():
            with pytest.raises(InferenceError, match="no thread may wait for the whole GPU meanwhile"):
                capture(device, stream, lambda: wait_for_the_whole_gpu(device, errors))
            stream.synchronize()
            capture(device, stream, lambda: None).close()
        assert len(errors) == 3


def test_our_own_wait_for_the_whole_gpu_waits_for_a_recording(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        stream = Stream(device)

        def work() -> None:
            with device.active():
                device.synchronize()

        waiting = threading.Thread(target=work)

        def record() -> None:
            waiting.start()
            time.sleep(0.1)
            assert waiting.is_alive()

        with device.active():
            capture(device, stream, record).close()
        waiting.join()
        assert host_cuda.count("cuStreamBeginCapture") == 1


def test_memory_is_not_collected_during_a_recording(host_cuda: HostCuda) -> None:
    class Cycle:
        pass

    threshold = gc.get_threshold()
    with cuda.Device() as device:
        stream = Stream(device)

        def work() -> None:
            gc.set_threshold(1, 1, 1)
            for _ in range(100):
                _ = [Cycle() for _ in range(10)]

        gc.collect()
        cycle = Cycle()
        cycle.me, cycle.memory = cycle, page_locked(device, 64)  # type: ignore[attr-defined]
        del cycle
        try:
            with device.active():
                capture(device, stream, work).close()
        finally:
            gc.set_threshold(*threshold)
        assert host_cuda.count("cuStreamBeginCapture") == 1
        assert gc.isenabled()
    gc.collect()
