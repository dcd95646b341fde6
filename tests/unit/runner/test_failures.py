"""Failures in decode, submit and images: each driver call once, device errors under way, memory; nothing is ever left."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tests.fixtures.hostcuda import UNKNOWN, HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, clicks, expected, make, opened, tokens
from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE
from trt_sam.cuda.device import Device
from trt_sam.cuda.dlpack import DeviceArray
from trt_sam.errors import InferenceError

pytestmark = pytest.mark.hostcuda

# Errors where something is freed are not raised (see trt_sam.cuda.device); nor are those at close, of contexts and waits.
_FREEING = {"cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy", "cuMemFree", "cuMemFreeHost", "cuStreamDestroy"}
_AT_CLOSE = {"cuCtxPushCurrent", "cuCtxPopCurrent", "cuStreamSynchronize"}


def life(cuda: HostCuda) -> None:
    """One use of everything that talks to the driver."""
    given = clicks(1, 2, 2)
    with opened(cuda, in_flight=2, image_bytes=4 << 20) as (runner, _):
        runner.warm_up([(2, 3)])
        runner.set_image(toy_embedding(2))
        runner.decode(*given)
        call = runner.submit(*given, masks="device")
        scores = call.device_arrays.iou_predictions
        assert isinstance(scores, DeviceArray)
        scores.__dlpack__(stream=-1)
        # A consumer on the slot's own stream: what is queued there is always waited for.
        scores.__dlpack__(stream=runner._core.slots[0].stream.handle)
        call.done()
        runner.set_image(toy_embedding(3))
        call.result()
        found = runner.decode_many(*clicks(1, 5, 2), masks="all")
        wanted = expected(PLAIN, tokens(toy_embedding(3), *clicks(1, 5, 2)))
        np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])
        feed = tokens(toy_embedding(4), *given)
        runner.run(feed)
        runner.device_times(feed, 1)
        runner.set_image(Resident(runner._core.device, runner._core.slots[0].stream.handle))
        # A failed wait of close could not be told from one that was never made: nothing is queued by then.
        for _ in runner._core.slots:
            runner.decode(*given)


class Resident:
    """An embedding on the GPU, of a library that works in a stream of its own."""

    def __init__(self, device: Device, stream: int) -> None:
        address = device.buffer(EMBEDDING_BYTES).address
        self.__cuda_array_interface__ = {
            "shape": EMBEDDING_SHAPE,
            "typestr": "<f4",
            "data": (address, False),
            "version": 3,
            "stream": stream,
        }


def test_each_driver_call_may_fail_once(host_cuda: HostCuda) -> None:
    life(host_cuda)
    gc.collect()
    assert not host_cuda.held
    host_cuda.reset()  # what a process asks once only, the primary context, is no part of a runner's life
    life(host_cuda)
    calls = {name: host_cuda.count(name) for name in host_cuda.called if name != "cuGetErrorString"}
    graphs = {"cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch"}
    assert graphs | {"cuMemcpyDtoDAsync", "cuStreamWaitEvent", "cuEventRecord", "cuStreamQuery"} <= set(calls)
    for name, number in calls.items():
        raised = 0
        for count in range(1, number + 1):
            host_cuda.reset()
            host_cuda.fail(name, count, UNKNOWN)
            try:
                life(host_cuda)
            except InferenceError:
                raised += 1
            if host_cuda.held:
                gc.collect()
            assert not host_cuda.held, (name, count, host_cuda.held)
            assert not host_cuda.violations, (name, count, host_cuda.violations)
        if name not in _FREEING | _AT_CLOSE:
            assert raised == number, name
        if name in _AT_CLOSE:
            assert raised >= 3, name


def test_a_device_error_ends_all_calls_under_way_and_a_new_runner_works(host_cuda: HostCuda) -> None:
    given = clicks(1, 2, 2)
    runner, _ = make(host_cuda, in_flight=2)
    runner.set_image(toy_embedding(2))
    runner.warm_up([(2, 3)])
    first, second = runner.submit(*given), runner.submit(*given)
    host_cuda.fail_next_work()
    with pytest.raises(InferenceError, match=r"illegal memory access.*the runner is closed, open a new one"):
        first.result()
    assert runner.closed
    for call in (
        second.result,
        first.result,
        lambda: runner.decode(*given),
        lambda: runner.add_image(toy_embedding(1)),
        runner.warm_up,
    ):
        with pytest.raises(InferenceError):
            call()
    runner.close()
    del first, second, call
    gc.collect()
    assert not host_cuda.held
    host_cuda.reset()
    with opened(host_cuda) as (again, _):
        again.set_image(toy_embedding(2))
        wanted = expected(PLAIN, tokens(toy_embedding(2), *given))
        np.testing.assert_array_equal(again.decode(*given, masks="all").masks, wanted["low_res_masks"])


def test_running_out_of_memory_is_named_wherever_it_happens(host_cuda: HostCuda) -> None:
    given = clicks(1, 2, 2)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(2))
        host_cuda.set_capacity(1)
        with pytest.raises(InferenceError, match=r"out of memory in allocating 4\.0 MiB"):
            runner.add_image(toy_embedding(3))
        host_cuda.set_capacity(1 << 30)
        wanted = expected(PLAIN, tokens(toy_embedding(2), *given))
        np.testing.assert_array_equal(runner.decode(*given, masks="all").masks, wanted["low_res_masks"])
    host_cuda.set_capacity(40 << 20)
    with pytest.raises(InferenceError, match="out of memory"):
        make(host_cuda, in_flight=10)
    gc.collect()
    assert not host_cuda.held


def test_an_engine_that_cannot_be_recorded_is_told_with_what_to_do(host_cuda: HostCuda) -> None:
    given = clicks(1, 2, 2)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(2))
        host_cuda.fail("cuStreamEndCapture")
        with pytest.raises(InferenceError, match="open the runner with graphs=False"):
            runner.decode(*given)
        # It may be that this was a passing failure: the next call tries again.
        wanted = expected(PLAIN, tokens(toy_embedding(2), *given))
        np.testing.assert_array_equal(runner.decode(*given, masks="all").masks, wanted["low_res_masks"])
