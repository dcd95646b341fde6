"""Who reads a result on the device: the slot's next use waits for their streams, released, gone or under capture."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, clicks, expected, opened, tokens
from trt_sam.cuda.graphs import capture
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Stream
from trt_sam.errors import ContractError, InferenceError

pytestmark = pytest.mark.hostcuda


@pytest.mark.parametrize("again", ["decode", "run", "device_times", "another bucket", "warm_up"])
def test_the_slots_next_use_waits_for_who_reads_the_last_result(host_cuda: HostCuda, again: str) -> None:
    given, other = clicks(1, 1, 1), clicks(2, 1, 1)
    with opened(host_cuda) as (runner, _):
        device = runner._core.device
        runner.set_image(toy_embedding(1))
        runner.decode(*given, masks="device")
        scores = runner.decode(*given, masks="device").iou_predictions
        readers = [(Stream(device), page_locked(device, 4 * 4)) for _ in range(2)]
        for stream, host in readers:
            scores.__dlpack__(stream=stream.handle)
            with device.active():
                stream.download(host, scores.address)
        feed = tokens(toy_embedding(1), *other)
        uses = {
            "decode": lambda: runner.decode(*other, masks="device"),
            "run": lambda: runner.run(feed),
            "device_times": lambda: runner.device_times(feed, 1),
            "another bucket": lambda: runner.decode(*clicks(2, 4, 4), masks="device"),
            "warm_up": lambda: runner.warm_up([(4, 6)]),
        }
        uses[again]()
        wanted = expected(PLAIN, tokens(toy_embedding(1), *given))["iou_predictions"]
        for stream, host in readers:
            with device.active():
                stream.synchronize()
            np.testing.assert_array_equal(host.view(np.float32).reshape(1, 4), wanted)
        assert not runner._core.slots[0].has_readers
        del readers, host


def test_a_readers_stream_that_is_gone_does_not_stop_the_runner(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        stream = Stream(runner._core.device)
        runner.decode(*given, masks="device").masks.__dlpack__(stream=stream.handle)
        with runner._core.device.active():
            stream.synchronize()
        stream.close()
        found = runner.decode(*given, masks="all")
        wanted = expected(PLAIN, tokens(toy_embedding(1), *given))
        np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])


def test_a_readers_stream_that_has_released_may_go_and_is_waited_for(host_cuda: HostCuda) -> None:
    given, other = clicks(1, 1, 1), clicks(2, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        device = runner._core.device
        stream, host = Stream(device), page_locked(device, 4 * 4)
        found = runner.decode(*given, masks="device")
        found.iou_predictions.__dlpack__(stream=stream.handle)
        with device.active():
            stream.download(host, found.iou_predictions.address)
        found.release(stream.handle)
        asked = host_cuda.count("cuStreamIsCapturing")
        runner.decode(*other)
        # Its read has run before the call wrote there, though nobody asked for the stream, which may have gone.
        wanted = expected(PLAIN, tokens(toy_embedding(1), *given))["iou_predictions"]
        np.testing.assert_array_equal(host.view(np.float32).reshape(1, 4), wanted)
        assert host_cuda.count("cuStreamIsCapturing") == asked
        handle = stream.handle
        stream.close()
        with pytest.raises(ContractError, match=r"there is no stream 0x.* \(any more\); release before it is destroyed"):
            found.release(handle)
        host_cuda.fail("cuEventRecord")
        with pytest.raises(InferenceError, match="recording an event"):
            found.release(0)
        assert not runner._core.slots[0].has_readers
        del host


def test_a_readers_stream_under_capture_is_named_and_nothing_is_spoilt(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        device = runner._core.device
        stream = Stream(device)
        runner.decode(*given, masks="device").masks.__dlpack__(stream=stream.handle)

        def call() -> None:
            with pytest.raises(ContractError, match="is being captured; end the capture before"):
                runner.decode(*given)

        with device.active():
            capture(device, stream, call).close()
        runner.decode(*given)
