"""Images of a runner: from the host or from another library's device memory into resident memory of the GPU."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE
from trt_sam.cuda.device import Device, DeviceBuffer
from trt_sam.cuda.dlpack import Borrowed, borrow, check_device, is_on_device
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Event, Stream
from trt_sam.errors import ContractError, InferenceError

__all__ = ["Handover", "Images", "Residents", "Source"]

NAME = "image_embeddings"
Source = Borrowed | None
"""An embedding to copy: somebody's device memory, or None for what lies in the staging memory."""


class Handover:
    """An embedding on the GPU, taken on one thread for a runner on another.

    A producer such as torch makes a stream wait for what the *calling* thread's current stream was given: so it is asked here.

    Args:
        embedding: offers DLPack or `__cuda_array_interface__`, on the GPU of `stream`.
        device: of `stream`.
        stream: waits for the producer.

    Raises:
        ContractError, InferenceError: as `borrow`.
    """

    def __init__(self, embedding: Any, device: Device, stream: Stream) -> None:
        self.event = Event(device)
        try:
            with device.active():
                self.borrowed: Borrowed | None = borrow(embedding, NAME, EMBEDDING_SHAPE, device, stream)
                self.event.record(stream)
        except BaseException:
            self.event.close()
            raise
        self.index = device.index

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.index

    def close(self) -> None:
        """The embedding is its owner's again. May be called again."""
        self.borrowed = None
        self.event.close()


class Images:
    """Used in the device's context; under which lock, each method says.

    Args:
        device: owns the memory.
        capacity: most images to hold.
        pending: gives events after which calls that are queued no longer read memory that a new image gets.
    """

    def __init__(self, device: Device, capacity: int, pending: Callable[[], Iterable[Event]]) -> None:
        self._device = device
        self._pending = pending
        self._residents = Residents(device, capacity)
        self.lock = threading.Lock()
        """Held while an upload waits, so that nobody frees the memory meanwhile; the runner's lock may be taken before it."""
        self.closed = False
        self.stream = Stream(device, urgent=True)
        self._staging = page_locked(device, EMBEDDING_BYTES)

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def capacity(self) -> int:
        return self._residents.capacity

    def source(self, embedding: Any) -> Source:
        """What `start` takes, of a checked array or an object on the device. Under `lock`: this may wait for others' work.

        Raises:
            ContractError: something on the device that cannot be taken.
            InferenceError: CUDA failed.
        """
        if isinstance(embedding, Handover):
            check_device(NAME, embedding.index, self._device)
            self.stream.wait(embedding.event)
            return embedding.borrowed
        if is_on_device(embedding):
            return borrow(embedding, NAME, EMBEDDING_SHAPE, self._device, self.stream)
        self._stage(embedding)
        return None

    def start(self, source: Source) -> DeviceBuffer:
        """Queue the copy of a source into memory for one more image, under the runner's lock.

        The source is its owner's again, and the staging memory free, when `stream` has been waited for (under `lock`).

        Raises:
            InferenceError: CUDA failed, or the GPU is out of memory.
        """
        buffer, reused = self._residents.take()
        try:
            if reused:
                for event in self._pending():
                    self.stream.wait(event)
            if source is None:
                self.stream.upload(buffer.address, self._staging)
            else:
                self.stream.copy(buffer.address, source.address, EMBEDDING_BYTES)
        except BaseException:
            self._residents.give(buffer)
            raise
        return buffer

    def allocate(self) -> None:
        """Allocate the memory of all images that are to be held, under the runner's lock.

        Raises:
            InferenceError: the GPU is out of memory.
        """
        self._residents.allocate()

    def put(self, image: int, buffer: DeviceBuffer) -> None:
        """Hold what `start` gave as `image`, under the runner's lock."""
        self._residents.put(image, buffer)

    def give(self, buffer: DeviceBuffer) -> None:
        """Take back what `start` gave, where the wait for it failed; under the runner's lock."""
        self._residents.give(buffer)

    def upload(self, embedding: npt.NDArray[np.float32], address: int) -> None:
        """Copy a checked embedding to `address`, and wait; under the runner's lock."""
        self._stage(embedding)
        self.stream.upload(address, self._staging)
        self.stream.synchronize()

    def address(self, image: int) -> int:
        """Where `image` lies; raises ContractError where it is not held any more. Under the runner's lock."""
        return self._residents.address(image)

    def drop(self, image: int) -> None:
        """Forget `image`, under the runner's lock."""
        self._residents.drop(image)

    def close(self) -> None:
        """Wait, and forget all, under the runner's lock; the device frees the memory. May be called again."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            # A source that was refused leaves a wait for its owner's work behind.
            with contextlib.suppress(InferenceError):
                self.stream.synchronize()
            self._residents.clear()
            self._staging = np.empty(0, np.uint8)

    def _stage(self, embedding: npt.NDArray[np.float32]) -> None:
        np.copyto(self._staging.view(np.float32).reshape(EMBEDDING_SHAPE), embedding)


class Residents:
    """Embeddings by image number. Device memory is allocated as images come and kept for the next ones.

    Args:
        device: owns the memory.
        capacity: most images to hold, at least 1.
    """

    def __init__(self, device: Device, capacity: int) -> None:
        self._device = device
        self.capacity = capacity
        self._held: OrderedDict[int, DeviceBuffer] = OrderedDict()
        self._spare: list[DeviceBuffer] = []
        self._fresh: list[DeviceBuffer] = []
        """Never written."""

    def __len__(self) -> int:
        return len(self._held)

    def allocate(self) -> None:
        """Allocate what is lacking for `capacity` images; raises InferenceError where the GPU is out of memory."""
        for _ in range(self.capacity - len(self._held) - len(self._spare) - len(self._fresh)):
            self._fresh.append(self._device.buffer(EMBEDDING_BYTES))

    def take(self) -> tuple[DeviceBuffer, bool]:
        """Memory for one more image, and whether queued work may still read what was in it."""
        if self._spare:
            return self._spare.pop(), True
        if len(self._held) >= self.capacity:
            return self._held.popitem(last=False)[1], True
        if self._fresh:
            return self._fresh.pop(), False
        return self._device.buffer(EMBEDDING_BYTES), False

    def put(self, image: int, buffer: DeviceBuffer) -> None:
        """Hold what was written into `buffer` as `image`."""
        self._held[image] = buffer

    def give(self, buffer: DeviceBuffer) -> None:
        """Take memory back that was not filled."""
        self._spare.append(buffer)

    def address(self, image: int) -> int:
        """Where `image` lies; it is now the most recently used.

        Raises:
            ContractError: it is not held any more, or never was.
        """
        buffer = self._held.get(image)
        if buffer is None:
            held = ", ".join(map(str, self._held)) or "none"
            raise ContractError(f"image {image} is not held (held: {held}); set it again, or open the runner with more images")
        self._held.move_to_end(image)
        return buffer.address

    def drop(self, image: int) -> None:
        """Forget `image`, if it is held; its memory serves the next one."""
        buffer = self._held.pop(image, None)
        if buffer is not None:
            self._spare.append(buffer)

    def clear(self) -> None:
        """Forget all; the device frees the memory."""
        self._held.clear()
        self._spare.clear()
        self._fresh.clear()
