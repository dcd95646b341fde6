"""What a runner has done so far, for whoever watches it."""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass
class Counters:
    """Numbers that only grow, since the runner was opened; written under the core's lock, and read as a copy."""

    calls: int = 0
    """Calls that were queued on the GPU; `decode_many` makes several."""
    failed: int = 0
    """Calls that were refused or failed once they had a slot."""
    slot_waits: int = 0
    """Calls that found no slot free, and would wait for one."""
    queue_ms: float = 0.0
    """Milliseconds that all calls together waited for their slots."""
    images: int = 0
    """Images that were brought to the GPU, those of feeds apart."""

    def waited(self, began: float, waits: bool, ended: float | None = None) -> None:
        """Count a call that asked for a slot at `began` (`time.perf_counter`), and had or gave it up at `ended`, None: now."""
        self.slot_waits += waits
        self.queue_ms += 1e3 * ((time.perf_counter() if ended is None else ended) - began)
