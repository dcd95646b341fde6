"""The slot that a call holds, taken from the runner's queue and put back once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from operator import length_hint
from queue import SimpleQueue

from trt_sam.errors import InferenceError
from trt_sam.runner.slot import Slot

__all__ = ["Lease", "NoSlotError"]


class Lease:
    """A slot taken from a queue, which it goes back to once: a Ctrl-C comes before or after that, and loses no slot.

    CPython looks for signals between Python's instructions only, so what must not be torn apart is one call of C code.
    """

    __slots__ = ("_back", "_free", "_held")

    def __init__(self, free: SimpleQueue[Slot | None]) -> None:
        self._free = free
        self._held: list[Slot | None] = []
        self._back: Iterator[Slot | None] = iter(self._held)

    @property
    def slot(self) -> Slot | None:
        return self._held[0]

    def take(self, timeout: float | None) -> None:
        """Wait for a slot; queue.Empty where none came in time."""
        if timeout is not None:
            timeout = min(timeout, threading.TIMEOUT_MAX)
        self._held.extend(map(self._free.get, (timeout is None or timeout > 0,), (timeout,)))

    def give_back(self) -> None:
        """Put it back, if that has not been done."""
        if length_hint(self._back):
            any(map(self._free.put, self._back))  # nothing but a loop in C: `put` gives None

    def __del__(self) -> None:
        if hasattr(self, "_back"):
            self.give_back()


class NoSlotError(InferenceError):
    """All slots are in use, and the caller would not wait (longer)."""
