"""Streams, the work given to them, and events; see `trt_sam.cuda.device` for what they have in common with memory.

They are cuda-bindings' own: PyCUDA makes no stream with a priority, and takes none that it has not made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.cuda.bindings import bindings, checked, keep, raise_code
from trt_sam.cuda.device import Device, Owned

__all__ = ["Event", "Stream"]

Bytes = npt.NDArray[np.uint8]


class Stream(Owned):
    """A non-blocking stream: work given to it runs in order, later. `handle` is its CUstream as an integer.

    Args:
        device: whose stream it is.
        urgent: of the GPU's highest priority, so that its kernels go before those of other streams; else of the lowest, which
            is CUDA's own default.

    Raises:
        InferenceError: CUDA failed.
    """

    kind = "streams"

    def __init__(self, device: Device, *, urgent: bool = False) -> None:
        cuda = bindings()
        made: list[tuple[Any, Any]] = []
        super().__init__(device, made)
        try:
            with device.active():
                least, greatest = checked(cuda.cuCtxGetStreamPriorityRange(), "asking for priorities of streams")
                flags = cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
                keep(made, cuda.cuStreamCreateWithPriority, flags, greatest if urgent else least)
            (self.cu,) = checked(made[0], "making a stream")
        except BaseException:
            self.close()
            raise
        self.handle = int(self.cu)
        self.device = device
        self._synchronize = cuda.cuStreamSynchronize

    def upload(self, target: int, source: Bytes) -> None:
        """Queue a copy of page-locked bytes to device address `target`; they must not change before it has run."""
        (code,) = bindings().cuMemcpyHtoDAsync(target, _address(source), source.nbytes, self.cu)
        if code:
            raise_code(code, "copying to the GPU")

    def download(self, target: Bytes, source: int) -> None:
        """Queue a copy from device address `source` into page-locked bytes; nothing is there before a wait."""
        (code,) = bindings().cuMemcpyDtoHAsync(_address(target), source, target.nbytes, self.cu)
        if code:
            raise_code(code, "copying from the GPU")

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy from one device address to another."""
        (code,) = bindings().cuMemcpyDtoDAsync(target, source, nbytes, self.cu)
        if code:
            raise_code(code, "copying on the GPU")

    def zero(self, target: int, nbytes: int) -> None:
        """Queue zeros into device memory."""
        checked(bindings().cuMemsetD8Async(target, 0, nbytes, self.cu), "clearing memory of the GPU")

    def synchronize(self) -> None:
        """Wait for everything queued; raises what went wrong in it. Other Python threads run meanwhile."""
        (code,) = self._synchronize(self.cu)
        if code:
            raise_code(code, "waiting for the GPU")

    def done(self) -> bool:
        """Whether everything queued has run; returns at once, and raises what went wrong in it."""
        return _is_done(bindings().cuStreamQuery(self.cu), "asking for a stream")

    def wait(self, event: Event) -> None:
        """Queue a wait: what comes after it runs after `event`."""
        (code,) = bindings().cuStreamWaitEvent(self.cu, event.cu, 0)
        if code:
            raise_code(code, "queueing a wait")

    def _free(self, handle: Any) -> None:
        for code, stream in handle:
            if not int(code):
                bindings().cuStreamDestroy(stream)


class Event(Owned):
    """A mark in a stream that can be waited for."""

    kind = "events"

    def __init__(self, device: Device, *, timing: bool = False, blocking: bool = False) -> None:
        """With `blocking`, a thread that waits for it sleeps until the driver wakes it; else the driver may have it spin."""
        cuda = bindings()
        kinds = cuda.CUevent_flags
        flags = 0 if timing else int(kinds.CU_EVENT_DISABLE_TIMING)
        flags |= int(kinds.CU_EVENT_BLOCKING_SYNC) if blocking else 0
        made: list[tuple[Any, Any]] = []
        super().__init__(device, made)
        try:
            with device.active():
                keep(made, cuda.cuEventCreate, flags)
            (self.cu,) = checked(made[0], "making an event")
        except BaseException:
            self.close()
            raise

    def record(self, stream: Stream) -> None:
        """Put the mark after all that `stream` has been given; where it was before is forgotten."""
        (code,) = bindings().cuEventRecord(self.cu, stream.cu)
        if code:
            raise_code(code, "recording an event")

    def record_on(self, stream: int) -> None:
        """As `record`, on somebody else's stream by its handle."""
        cuda = bindings()
        checked(cuda.cuEventRecord(self.cu, cuda.CUstream(stream)), "recording an event")

    def synchronize(self) -> None:
        """Wait until what was queued before the mark has run."""
        checked(bindings().cuEventSynchronize(self.cu), "waiting for an event")

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds on the device from `since` to here; both made with `timing`, recorded, and waited for."""
        (found,) = checked(bindings().cuEventElapsedTime(since.cu, self.cu), "timing")
        return float(found)

    def done(self) -> bool:
        """Whether what was queued before the mark has run; returns at once."""
        return _is_done(bindings().cuEventQuery(self.cu), "asking for an event")

    def _free(self, handle: Any) -> None:
        for code, event in handle:
            if not int(code):
                bindings().cuEventDestroy(event)


def _is_done(answer: tuple[Any], doing: str) -> bool:
    (code,) = answer
    if code and code != bindings().CUresult.CUDA_ERROR_NOT_READY:
        raise_code(code, doing)
    return not code


def _address(array: Bytes) -> int:
    # Not `array.ctypes`, which is slower and leaves what only a collection frees.
    return int(array.__array_interface__["data"][0])
