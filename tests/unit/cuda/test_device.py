"""trt_sam.cuda.device over the host-memory driver: queued work, errors in words, nothing left behind."""

from __future__ import annotations

import functools
import gc
import threading

import numpy as np
import pytest

from tests.fixtures.hostcuda import ILLEGAL_ADDRESS, OUT_OF_MEMORY, UNKNOWN, HostCuda
from trt_sam.cuda import accounts
from trt_sam.cuda import device as cuda
from trt_sam.cuda.graphs import capture, device_of, order
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Event, Stream
from trt_sam.errors import InferenceError

pytestmark = pytest.mark.hostcuda


def round_trip(device: cuda.Device, keep: list[object] | None = None) -> np.ndarray:
    """Upload, copy on the device, download; every kind of resource takes part. Page-locked memory goes to `keep` too."""
    stream, event = Stream(device), Event(device)
    first, second = device.buffer(1024), device.buffer(1024)
    host = page_locked(device, 2048)
    if keep is not None:
        keep.append(host)  # what is queued when a call fails still needs it
    host[:1024] = np.arange(1024) % 251
    with device.active():
        stream.upload(first.address, host[:1024])
        stream.copy(second.address, first.address, 1024)
        stream.download(host[1024:], second.address)
        event.record(stream)
        event.synchronize()
        stream.synchronize()
    return host[1024:].copy()


def close(device: cuda.Device) -> None:
    """Close after a failure: what is queued must end before its memory goes."""
    try:
        with device.active():
            for item in list(device._owned.values()):
                if isinstance(item, Stream):
                    item.synchronize()
    finally:
        device.close()


def test_bytes_come_back_as_they_went(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        np.testing.assert_array_equal(round_trip(device), np.arange(1024) % 251)
        assert host_cuda.count("pageable_copies") == 0
        assert accounts.outstanding()["device_bytes"] == 2048
    assert not accounts.outstanding()


def test_new_memory_is_poisoned_and_nothing_is_there_before_a_wait(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        stream, buffer, host = Stream(device), device.buffer(64), page_locked(device, 64)
        host[:] = 1
        with device.active():
            stream.upload(buffer.address, host)
            result = page_locked(device, 64)
            result[:] = 7
            stream.download(result, buffer.address)
            assert (result == 0xFF).all()
            stream.synchronize()
        assert (result == 1).all()
        del result, host


def test_an_event_covers_what_was_queued_before_it_and_no_more(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        stream, event, buffer = Stream(device), Event(device), device.buffer(64)
        host = page_locked(device, 128)
        host[:64] = 5
        with device.active():
            stream.upload(buffer.address, host[:64])
            event.record(stream)
            stream.download(host[64:], buffer.address)
            polls = 1
            while not event.done():
                polls += 1
            assert polls > 1
            assert (host[64:] == 0xFF).all()
            stream.synchronize()
        assert (host[64:] == 5).all()
        del host


def test_a_stream_waits_for_an_event_of_another(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        first, second, event, buffer = Stream(device), Stream(device), Event(device), device.buffer(64)
        host = page_locked(device, 128)
        host[:64] = 9
        with device.active():
            first.upload(buffer.address, host[:64])
            event.record(first)
            second.wait(event)
            second.download(host[64:], buffer.address)
            second.synchronize()
        assert (host[64:] == 9).all()
        del host


def test_a_graph_runs_nothing_while_recorded_and_replays_new_contents(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        stream, buffer, host = Stream(device), device.buffer(64), page_locked(device, 128)

        def work(source: np.ndarray, target: np.ndarray) -> None:
            stream.upload(buffer.address, source)
            stream.download(target, buffer.address)

        host[:] = 0
        with device.active():
            graph = capture(device, stream, functools.partial(work, host[:64], host[64:]))
            assert (host == 0).all()
            for value in (3, 4):
                host[:64] = value
                graph.launch()
                assert (host[64:] == 0xFF).all()
                stream.synchronize()
                assert (host[64:] == value).all()
        graph.close()
        del host


def test_a_wait_inside_a_capture_is_an_error_and_the_stream_lives_on(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        stream = Stream(device)
        with device.active():
            with pytest.raises(InferenceError, match="capturing"):
                capture(device, stream, stream.synchronize)
            stream.synchronize()
            capture(device, stream, lambda: None).close()


def test_whose_memory_a_pointer_is(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        buffer, host, pageable = device.buffer(64), page_locked(device, 64), np.zeros(64, np.uint8)
        with device.active():
            assert device_of(buffer.address) == 0
            assert device_of(buffer.address + 63) == 0
            assert device_of(host.ctypes.data) is None
            assert device_of(pageable.ctypes.data) is None
            address = buffer.address
            buffer.close()
            assert device_of(address) is None
            host_cuda.fail("cuPointerGetAttribute", 1, ILLEGAL_ADDRESS)
            with pytest.raises(InferenceError, match="ILLEGAL_ADDRESS"):
                device_of(address)
        del host


def test_a_foreign_stream_waits_for_an_event(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        ours, theirs, buffer = Stream(device), Stream(device), device.buffer(64)
        host = page_locked(device, 128)
        host[:64] = 9
        with device.active():
            ours.upload(buffer.address, host[:64])
            order(ours.handle, theirs.handle)
            theirs.download(host[64:], buffer.address)
            theirs.synchronize()
        assert (host[64:] == 9).all()
        del host


def test_out_of_memory_is_named(host_cuda: HostCuda) -> None:
    host_cuda.set_capacity(1 << 20)
    with cuda.Device() as device:
        with pytest.raises(InferenceError, match=r"out of memory in allocating 2\.0 MiB"):
            device.buffer(2 << 20)
        with pytest.raises(InferenceError, match="out of memory"):
            page_locked(device, 2 << 20)


def test_unknown_gpu_is_named(host_cuda: HostCuda) -> None:
    with pytest.raises(InferenceError, match="no GPU number 7; this machine has 1"):
        cuda.Device(7)


def test_what_the_gpu_is(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        assert device.compute_capability == "8.6"
        assert "host-memory" in device.name


def test_close_frees_all_and_may_be_repeated(host_cuda: HostCuda) -> None:
    device = cuda.Device()
    Stream(device), Event(device)
    buffer = device.buffer(64)
    buffer.close()
    buffer.close()
    device.buffer(128)
    assert host_cuda.count("device_bytes") == 128
    device.close()
    device.close()
    assert not host_cuda.held


def test_page_locked_memory_lives_as_long_as_its_last_view(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        view = page_locked(device, 64)[10:20].view(np.uint8)
        view[:] = 3
    assert host_cuda.count("host_bytes") == 64
    assert (view == 3).all()

    # The last reference may go on a thread where no context is current.
    holder = [view]
    del view
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    assert host_cuda.count("host_bytes") == 0


def test_other_threads_may_use_a_device_and_keep_their_context_stack_clean(host_cuda: HostCuda) -> None:
    results, depths = [], []

    def work() -> None:
        results.append(round_trip(device))
        depths.append(host_cuda.count("context_depth"))

    with cuda.Device() as device:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 4
    assert all((result == np.arange(1024) % 251).all() for result in results)
    assert depths == [0] * 4


def test_a_device_error_in_queued_work_is_told_by_the_wait(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        stream, buffer, host = Stream(device), device.buffer(64), page_locked(device, 64)
        with device.active():
            host_cuda.fail_next_work(ILLEGAL_ADDRESS)
            stream.upload(buffer.address, host)
            with pytest.raises(InferenceError, match=r"waiting for the GPU: .*illegal memory access"):
                stream.synchronize()
            host_cuda.reset()
        del host


# What frees cannot raise: PyCUDA frees in destructors. The memory is gone all the same, which the fixture checks.
_SILENT = {"cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy"}


def test_every_driver_call_may_fail_once(host_cuda: HostCuda) -> None:
    with cuda.Device() as device:
        round_trip(device)
    gc.collect()
    names = {name: host_cuda.count(name) for name in host_cuda.called if name != "cuGetErrorString"}
    assert {"cuMemAlloc", "cuMemHostAlloc", "cuMemcpyHtoDAsync", "cuStreamSynchronize", "cuCtxPushCurrent"} <= set(names)
    for name, calls in names.items():
        for count in range(1, calls + 1):
            host_cuda.reset()
            host_cuda.fail(name, count, UNKNOWN)
            error = None
            device = cuda.Device()
            keep: list[object] = []
            try:
                round_trip(device, keep)
            except InferenceError as caught:
                error = str(caught)
            try:
                close(device)
            except InferenceError as caught:
                error = str(caught)
            keep.clear()
            assert error or name in _SILENT or name.startswith("cuCtx"), f"call {count} of {name} failed unseen"
            assert not host_cuda.held, (name, count)
            assert not host_cuda.violations, (name, count)


def test_running_out_of_memory_for_good_leaves_nothing(host_cuda: HostCuda) -> None:
    host_cuda.fail("cuMemAlloc", 2, OUT_OF_MEMORY, times=-1)
    device = cuda.Device()
    with pytest.raises(InferenceError, match="out of memory"):
        round_trip(device)
    close(device)


def test_counting_what_is_outstanding_survives_a_collection_meanwhile(host_cuda: HostCuda) -> None:
    """Counting may start a collection that frees page-locked memory, which counts too, on the same thread."""
    done = threading.Event()

    def count() -> None:
        with accounts._lock:
            accounts.count("host_bytes", 0)
        done.set()

    threading.Thread(target=count, daemon=True).start()
    assert done.wait(5)
