"""Memory of the GPU that holds images, by number: the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from trt_sam.contract import EMBEDDING_BYTES
from trt_sam.cuda.device import Device
from trt_sam.cuda.streams import Event
from trt_sam.runtime.held import not_held

__all__ = ["Resident", "Residents"]


@dataclass(frozen=True)
class Resident:
    """Memory of one image. Whoever reads or writes it makes its stream wait for `written` before, on the GPU."""

    address: int
    written: Event
    """After what was queued last to write it; of memory that was never written, an event that nobody waits for."""


class Residents:
    """Embeddings by image number. Device memory is allocated as images come and kept for the next ones.

    Args:
        device: owns the memory.
        capacity: most images to hold, at least 1.
    """

    def __init__(self, device: Device, capacity: int) -> None:
        self._device = device
        self.capacity = capacity
        self._held: OrderedDict[int, Resident] = OrderedDict()
        self._spare: list[Resident] = []
        self._fresh: list[Resident] = []
        """Never written."""

    def __len__(self) -> int:
        return len(self._held)

    def allocate(self) -> None:
        """Allocate what is lacking for `capacity` images; raises InferenceError where the GPU is out of memory."""
        for _ in range(self.capacity - len(self._held) - len(self._spare) - len(self._fresh)):
            self._fresh.append(self._make())

    def take(self) -> tuple[Resident, bool]:
        """Memory for one more image, and whether queued work may still use what was in it."""
        if self._spare:
            return self._spare.pop(), True
        if len(self._held) >= self.capacity:
            return self._held.popitem(last=False)[1], True
        if self._fresh:
            return self._fresh.pop(), False
        return self._make(), False

    def put(self, image: int, resident: Resident) -> None:
        """Hold what is written into `resident` as `image`."""
        self._held[image] = resident

    def give(self, resident: Resident) -> None:
        """Take memory back that was not filled."""
        self._spare.append(resident)

    def get(self, image: int) -> Resident:
        """The memory of `image`, which is now the most recently used.

        Raises:
            ContractError: it is not held any more, or never was.
        """
        resident = self._held.get(image)
        if resident is None:
            raise not_held(image, list(self._held))
        self._held.move_to_end(image)
        return resident

    def drop(self, image: int) -> None:
        """Forget `image`, if it is held; its memory serves the next one."""
        resident = self._held.pop(image, None)
        if resident is not None:
            self._spare.append(resident)

    def clear(self) -> None:
        """Forget all; the device frees the memory."""
        self._held.clear()
        self._spare.clear()
        self._fresh.clear()

    def _make(self) -> Resident:
        buffer = self._device.buffer(EMBEDDING_BYTES)
        try:
            return Resident(buffer.address, Event(self._device))
        except BaseException:
            buffer.close()
            raise
