"""`BodyBudget`: a bound on what the requests that are being received hold together."""

from __future__ import annotations

from trt_sam.serve.faults import Refusal

__all__ = ["BodyBudget"]


class BodyBudget:
    """How many bytes of requests are being held, all together. Used by the event loop's thread only."""

    def __init__(self, most: int) -> None:
        self._most, self.held = most, 0

    def take(self, count: int) -> None:
        """Take `count` bytes more; Refusal where they are too many."""
        if self.held + count > self._most:
            raise Refusal(429, "busy", "too many requests are being received; try again later", retry_seconds=2)
        self.held += count

    def give(self, count: int) -> None:
        """Give bytes back."""
        self.held -= count
