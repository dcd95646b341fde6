"""What this process holds of CUDA, counted, and whether it was forked from one that used CUDA, which does not survive that."""

from __future__ import annotations

import os
import threading
from collections import Counter

__all__ = ["count", "cuda_is_used", "forked", "keep_forever", "outstanding"]

_outstanding: Counter[str] = Counter()
_lock = threading.RLock()
"""Reentrant: a buffer may be collected, and counted, while this thread is counting."""
_used = threading.Event()
_forked = threading.Event()
_left: list[object] = []
"""What a forked process has of its parent's: freeing it would ask a driver that is not there."""


def outstanding() -> dict[str, int]:
    """What has been made and not yet freed in this process: "device_bytes", "host_bytes", "streams", "events", "graphs"."""
    if forked():
        return {}  # and the lock may have been held by a thread that is not here
    with _lock:
        now = _outstanding.copy()
    return {kind: number for kind, number in now.items() if number}


def count(kind: str, number: int) -> None:
    """Add to what is outstanding, or take off it."""
    with _lock:
        _outstanding[kind] += number


def cuda_is_used() -> None:
    """Say that the driver has been initialized in this process."""
    _used.set()


def forked() -> bool:
    """Whether this process was forked from one that used CUDA: what it has of its parent's cannot be freed."""
    return _forked.is_set()


def keep_forever(item: object) -> None:
    """Keep what a forked process must not free."""
    _left.append(item)


def _after_fork() -> None:
    if _used.is_set():
        _forked.set()


os.register_at_fork(after_in_child=_after_fork)
