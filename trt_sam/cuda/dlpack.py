"""`DeviceArray`: a result in device memory, for others by DLPack and `__cuda_array_interface__`. No torch, no CuPy needed."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from trt_sam.cuda._capsules import CODES, CUDA, LEGACY_STREAM, NAME, Lent, Managed, Tensor, allocate, free, new_capsule
from trt_sam.cuda.device import Device
from trt_sam.cuda.graphs import order
from trt_sam.cuda.streams import Stream
from trt_sam.errors import InferenceError

__all__ = ["DeviceArray", "Lender"]


class Lender(Protocol):
    """Who owns the memory of a `DeviceArray`: a slot of a runner."""

    device: Device
    stream: Stream
    """In which the memory is written."""
    lock: threading.Lock
    """While it is held nobody closes the lender."""
    closed: bool
    owner: Callable[[], object]
    """Gives what must not be dropped while the lender is used."""

    def lent_to(self, reader: int) -> None:
        """A stream, by its handle, reads from now on: the lender waits for it before it writes again."""

    def returned_by(self, reader: int) -> None:
        """That stream has been given all its reads, and is not asked again."""


class DeviceArray:
    """A result on the GPU, C-contiguous: `torch.from_dlpack(array)` takes it without a copy.

    It lies in the runner's memory: valid until the slot's next use, never after the runner is closed. Whoever reads it must
    have queued all reads by then. A DLPack consumer's stream is made to wait for the result, and the slot's next call for what
    that stream was given until then; nobody waits on the host. That stream must live until that call, or until `release`. A
    consumer that names
    none (-1), or takes `__cuda_array_interface__`, must have finished reading before the slot's next call.
    """

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str, slot: Lender) -> None:
        self.address = address
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._slot = slot

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype} {list(self.shape)} at {self.address:#x})"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._check()
        stream = self._slot.stream.handle
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),  # torch takes no other
            "strides": None,
            "version": 3,
            "stream": stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._slot.device.index

    def release(self, stream: int) -> None:
        """Say that a consumer's stream has been given all its reads of the slot's results: the slot's next call waits for them,
        and the stream may go.

        Args:
            stream: its handle, torch: `torch.cuda.current_stream().cuda_stream`; 0 is the legacy default stream.

        Raises:
            ContractError: the stream is being captured, or has gone already.
            InferenceError: CUDA failed, or the runner is closed.
        """
        slot = self._slot
        owner = slot.owner()
        with slot.lock:
            self._check()
            with slot.device.active():
                slot.returned_by(stream or LEGACY_STREAM)
        del owner

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A capsule for one consumer, whose `stream` (None: the legacy default stream; -1: no waiting) waits for the result.

        Any consumer of `max_version` takes the unversioned capsule that this gives. One that nobody takes costs its 100 bytes.

        Raises:
            BufferError: a copy or another device is asked for; this is a view of the slot's memory and nothing else.
            InferenceError: the runner is closed.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("the runner lends a view on its own GPU and makes no copy; copy or move the tensor that you get")
        slot = self._slot
        owner = slot.owner()  # else it could be collected, and closed, on this very thread
        with slot.lock:  # nobody closes it meanwhile
            self._check()
            if stream != -1:
                reader = stream or LEGACY_STREAM
                with slot.device.active():
                    order(slot.stream.handle, reader)
                slot.lent_to(reader)
        del owner
        at = allocate(ctypes.sizeof(Lent))
        if not at:
            raise MemoryError
        lent = Lent.from_address(at)
        lent.shape[: len(self.shape)] = self.shape
        shape = ctypes.cast(at + Lent.shape.offset, ctypes.POINTER(ctypes.c_int64))
        kind, bits = CODES[self.dtype.kind], 8 * self.dtype.itemsize
        lent.managed = Managed(Tensor(self.address, CUDA, slot.device.index, len(self.shape), kind, bits, 1, shape), None, free)
        return new_capsule(at, NAME, None)

    def _check(self) -> None:
        if self._slot.closed:
            raise InferenceError("the runner is closed, and its device memory with it")
