"""Page-locked memory through which things of the host go to the GPU: two, so that one is filled while the other is read."""

from __future__ import annotations

import itertools

import numpy as np

from trt_sam.cuda.device import Device
from trt_sam.cuda.page_locked import Bytes, page_locked
from trt_sam.cuda.streams import Event, Stream

__all__ = ["Stages", "Staging"]


class Staging:
    """One of them: fill `block` once `ready` has waited, queue the copy, then say so by `queued`."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.block: Bytes = page_locked(device, nbytes)
        self._read = Event(device)

    def ready(self) -> None:
        """Wait on the host until the copy that was queued last has run; raises what went wrong before it."""
        self._read.synchronize()

    def queued(self, stream: Stream) -> None:
        """The copy is in `stream`."""
        self._read.record(stream)

    def close(self) -> None:
        """Let go of the memory, once nothing that is queued reads it."""
        self.block = np.empty(0, np.uint8)


class Stages:
    """Two staging memories, in turn. Under a lock of the owner's."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self._both = [Staging(device, nbytes) for _ in range(2)]
        self._turn = itertools.cycle(self._both)

    def next(self) -> Staging:
        """One that may be filled; waits on the host where its last copy has not run."""
        staging = next(self._turn)
        staging.ready()
        return staging

    def close(self) -> None:
        """Let go of both, once nothing that is queued reads them."""
        for staging in self._both:
            staging.close()
