"""Images by number, the least recently used dropped first: what a runner on a CPU holds."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from trt_sam.errors import ContractError

__all__ = ["HeldImages", "not_held"]


class HeldImages:
    """At most `capacity` images (1 or more); whatever a runner makes of one."""

    def __init__(self, capacity: int) -> None:
        """Hold none yet."""
        self._capacity = capacity
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._last = 0

    def put(self, image: Any) -> int:
        """Hold one more; gives its number, which no other ever has."""
        if len(self._held) >= self._capacity:
            self._held.popitem(last=False)
        self._last += 1
        self._held[self._last] = image
        return self._last

    def get(self, number: int) -> Any:
        """The image, now the most recently used; raises ContractError where it is not held any more."""
        if number not in self._held:
            raise not_held(number, list(self._held))
        self._held.move_to_end(number)
        return self._held[number]

    def drop(self, number: int) -> None:
        """Forget an image; nothing happens where it is not held."""
        self._held.pop(number, None)

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()


def not_held(number: int, held: list[int]) -> ContractError:
    """The error of a call on an image that has gone."""
    known = ", ".join(map(str, held)) or "none"
    return ContractError(
        f"image {number} is not held (held: {known}); set it again, or open the runner with a larger image_bytes"
    )
