"""Streams, the work given to them, and events; see `trt_sam.cuda.device` for what they have in common with memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trt_sam.cuda.device import Device, Owned, guard, raise_ours

__all__ = ["Event", "Stream"]

Bytes = npt.NDArray[np.uint8]

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: not serialized with the legacy default stream, which PyCUDA has no name for."""


class Stream(Owned):
    """A non-blocking stream: work given to it runs in order, later. `handle` is its CUstream as an integer."""

    kind = "streams"

    def __init__(self, device: Device) -> None:
        with device.active(), guard("making a stream"):
            stream = device.driver.Stream(_NON_BLOCKING)
        self.handle = int(stream.handle)
        self.device = device
        super().__init__(device, stream)

    def upload(self, target: int, source: Bytes) -> None:
        """Queue a copy of page-locked bytes to device address `target`; they must not change before it has run."""
        try:
            self._device.driver.memcpy_htod_async(target, source, self._handle)
        except Exception as error:
            raise_ours(error, "copying to the GPU")

    def download(self, target: Bytes, source: int) -> None:
        """Queue a copy from device address `source` into page-locked bytes; nothing is there before a wait."""
        try:
            self._device.driver.memcpy_dtoh_async(target, source, self._handle)
        except Exception as error:
            raise_ours(error, "copying from the GPU")

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy from one device address to another."""
        try:
            self._device.driver.memcpy_dtod_async(target, source, nbytes, self._handle)
        except Exception as error:
            raise_ours(error, "copying on the GPU")

    def zero(self, target: int, nbytes: int) -> None:
        """Queue zeros into device memory."""
        with guard("clearing memory of the GPU"):
            self._device.driver.memset_d8_async(target, 0, nbytes, self._handle)

    def synchronize(self) -> None:
        """Wait for everything queued; raises what went wrong in it. Other Python threads run meanwhile."""
        try:
            self._handle.synchronize()
        except Exception as error:
            raise_ours(error, "waiting for the GPU")

    def done(self) -> bool:
        """Whether everything queued has run; returns at once, and raises what went wrong in it."""
        with guard("asking for a stream"):
            return bool(self._handle.is_done())

    def wait(self, event: Event) -> None:
        """Queue a wait: what comes after it runs after `event`."""
        with guard("queueing a wait"):
            self._handle.wait_for_event(event._handle)


class Event(Owned):
    """A mark in a stream that can be waited for."""

    kind = "events"

    def __init__(self, device: Device, *, timing: bool = False, blocking: bool = False) -> None:
        """With `blocking`, a thread that waits for it sleeps until the driver wakes it; else the driver may have it spin."""
        kinds = device.driver.event_flags
        flags = (kinds.DEFAULT if timing else kinds.DISABLE_TIMING) | (kinds.BLOCKING_SYNC if blocking else 0)
        with device.active(), guard("making an event"):
            event = device.driver.Event(flags)
        super().__init__(device, event)

    def record(self, stream: Stream) -> None:
        try:
            self._handle.record(stream._handle)
        except Exception as error:
            raise_ours(error, "recording an event")

    def synchronize(self) -> None:
        """Wait until what was queued before the mark has run."""
        with guard("waiting for an event"):
            self._handle.synchronize()

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds on the device from `since` to here; both made with `timing`, recorded, and waited for."""
        with guard("timing"):
            return float(self._handle.time_since(since._handle))

    def done(self) -> bool:
        """Whether what was queued before the mark has run; returns at once."""
        with guard("asking for an event"):
            return bool(self._handle.query())
