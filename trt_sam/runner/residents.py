"""Image embeddings that stay on the GPU: the least recently used goes when the memory bound is reached."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.cuda.device import Device, DeviceBuffer
from trt_sam.errors import ContractError

__all__ = ["EMBEDDING_BYTES", "Residents"]

EMBEDDING_BYTES = 4 * prod(EMBEDDING_SHAPE)


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

    def __len__(self) -> int:
        return len(self._held)

    def take(self) -> tuple[DeviceBuffer, bool]:
        """Memory for one more image, and whether queued work may still read what was in it."""
        if self._spare:
            return self._spare.pop(), True
        if len(self._held) >= self.capacity:
            return self._held.popitem(last=False)[1], True
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
