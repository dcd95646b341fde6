"""Images of a runner: from the host or from another library's device memory into resident memory of the GPU."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE
from trt_sam.cuda.borrowed import Borrowed, borrow, check_device, is_on_device
from trt_sam.cuda.device import Device
from trt_sam.cuda.graphs import order
from trt_sam.cuda.streams import Event, Stream
from trt_sam.errors import InferenceError
from trt_sam.runner.images.residents import Resident, Residents
from trt_sam.runner.images.staging import Stages, Staging

__all__ = ["Handover", "Images", "Source"]

NAME = "image_embeddings"
Source = Borrowed | Staging
"""An embedding to copy: somebody's device memory, or what lies in a staging memory."""


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
                found = borrow(embedding, NAME, EMBEDDING_SHAPE, device, stream)
                # The producer's stream may have gone when the runner copies: its owner keeps the embedding as it is meanwhile.
                self.borrowed: Borrowed | None = replace(found, stream=None)
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
        self._stages = Stages(device, EMBEDDING_BYTES)
        self._kept: deque[tuple[Event, Borrowed]] = deque()
        """What others lent, until the copy has run."""

    def __len__(self) -> int:
        return len(self._residents)

    def source(self, embedding: Any) -> Source:
        """What `start` takes, of a checked array or an object on the device. Under `lock`: this may wait for others' work.

        Raises:
            ContractError: something on the device that cannot be taken.
            InferenceError: CUDA failed.
        """
        if isinstance(embedding, Handover):
            check_device(NAME, embedding.index, self._device)
            self.stream.wait(embedding.event)
            assert embedding.borrowed is not None
            return embedding.borrowed
        if is_on_device(embedding):
            return borrow(embedding, NAME, EMBEDDING_SHAPE, self._device, self.stream)
        return self.stage(embedding)

    def stage(self, embedding: npt.NDArray[np.float32]) -> Staging:
        """A checked embedding in a staging memory, under `lock`: this waits where both are still being copied from."""
        staging = self._stages.next()
        np.copyto(staging.block.view(np.float32).reshape(EMBEDDING_SHAPE), embedding)
        return staging

    def start(self, source: Source) -> Resident:
        """Queue the copy of a source into memory for one more image, under the runner's lock; nobody waits on the host.

        What was lent is kept until the copy has run. A producer's stream that is known waits for the copy, so that what it is
        given from now on may write there.

        Raises:
            InferenceError: CUDA failed, or the GPU is out of memory.
        """

        def copy(address: int) -> None:
            if isinstance(source, Staging):
                self.stream.upload(address, source.block)
                source.queued(self.stream)
                return
            self.stream.copy(address, source.address, EMBEDDING_BYTES)
            if source.stream is not None:
                order(self.stream.handle, source.stream)

        resident = self.write(self.stream, copy)
        if isinstance(source, Borrowed):
            self._kept.append((resident.written, source))
        return resident

    def write(self, stream: Stream, queue: Callable[[int], None]) -> Resident:
        """Memory for one more image, into which `queue`, called with its address, queues in `stream`. Under the runner's lock.

        After an error `stream` must be waited for before anything else is written.
        """
        self.let_go()
        resident, reused = self._residents.take()
        try:
            if reused:
                stream.wait(resident.written)
                for event in self._pending():
                    stream.wait(event)
            queue(resident.address)
            resident.written.record(stream)
        except BaseException:
            self._residents.give(resident)
            raise
        return resident

    def let_go(self) -> None:
        """Give back what others lent, where its copy has run; under the runner's lock."""
        while self._kept and self._kept[0][0].done():
            self._kept.popleft()

    @property
    def keeps(self) -> bool:
        """Whether `let_go` may have something to do."""
        return bool(self._kept)

    def allocate(self) -> None:
        """Allocate the memory of all images that are to be held, under the runner's lock.

        Raises:
            InferenceError: the GPU is out of memory.
        """
        self._residents.allocate()

    def put(self, image: int, resident: Resident) -> None:
        """Hold what `start` or `write` gave as `image`, under the runner's lock."""
        self._residents.put(image, resident)

    def get(self, image: int) -> Resident:
        """Where `image` lies; raises ContractError where it is not held any more. Under the runner's lock."""
        return self._residents.get(image)

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
            self._kept.clear()
            self._residents.clear()
            self._stages.close()
