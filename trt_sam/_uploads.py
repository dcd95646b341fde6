"""Images of a runner: from the host or from another library's device memory into resident memory of the GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._dlpack import borrow, is_on_device
from trt_sam._residents import EMBEDDING_BYTES, Residents
from trt_sam._slot import Slot
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.cuda import Device, page_locked

__all__ = ["Images"]


class Images:
    """Used under the runner's lock, in the device's context.

    Args:
        device: owns the memory.
        capacity: most images to hold.
        slots: calls of theirs may still read memory that a new image gets.
    """

    def __init__(self, device: Device, capacity: int, slots: Iterable[Slot]) -> None:
        self._device = device
        self._slots = slots
        self._residents = Residents(device, capacity)
        self.stream = device.stream()
        self._staging = page_locked(device, EMBEDDING_BYTES)

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def capacity(self) -> int:
        return self._residents.capacity

    def add(self, image: int, embedding: Any) -> None:
        """Hold `embedding`, a checked array or an object on the device, as `image`; it may change or go afterwards.

        Raises:
            ContractError: something on the device that cannot be taken.
            InferenceError: CUDA failed, or the GPU is out of memory.
        """
        stream = self.stream
        borrowed = (
            borrow(embedding, "image_embeddings", EMBEDDING_SHAPE, self._device, stream) if is_on_device(embedding) else None
        )
        buffer, reused = self._residents.take()
        try:
            if reused:
                for slot in self._slots:
                    if slot.pending:
                        stream.wait(slot.event)
            if borrowed is not None:
                stream.copy(buffer.address, borrowed.address, EMBEDDING_BYTES)
                # The source is its owner's again when we return.
                stream.synchronize()
            else:
                self.upload(embedding, buffer.address)
        except BaseException:
            self._residents.give(buffer)
            raise
        self._residents.put(image, buffer)

    def upload(self, embedding: npt.NDArray[np.float32], address: int) -> None:
        """Copy a checked embedding to `address`, and wait: the staging memory is written again by the next one."""
        np.copyto(self._staging.view(np.float32).reshape(EMBEDDING_SHAPE), embedding)
        self.stream.upload(address, self._staging)
        self.stream.synchronize()

    def address(self, image: int) -> int:
        """Where `image` lies; raises ContractError where it is not held any more."""
        return self._residents.address(image)

    def drop(self, image: int) -> None:
        """Forget `image`."""
        self._residents.drop(image)

    def close(self) -> None:
        """Forget all; every call here has waited for its work. The device frees the memory. May be called again."""
        self._residents.clear()
        self._staging = np.empty(0, np.uint8)
