"""`KeptTerms`: of which images the terms are made, and of which they are kept. The standard library alone.

Terms cost what three to four prompts save, and take six times an embedding's room. So they are made for an image at its second
call, or at a call of several prompts; and kept for the few images that are in use, so that many users who click by turns never
wait for terms that the next one drives out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["MANY_PROMPTS", "MOST_KEPT", "KeptTerms"]

Terms = TypeVar("Terms")

MANY_PROMPTS = 4
"""As many in one call pay for the terms at once."""
MOST_KEPT = 4
"""Images whose terms are kept: 26 MiB each."""
_UNUSED = 32
"""An image that had no call among so many makes room for another."""


@dataclass
class _Entry(Generic[Terms]):
    terms: Terms
    last_call: int


class KeptTerms(Generic[Terms]):
    """What `make` made of images. An image is known by being the same object, and what was made of it goes with it."""

    def __init__(self, make: Callable[[Any], Terms], *, most: int = MOST_KEPT, many: int = MANY_PROMPTS) -> None:
        """Keep nothing yet; `make` gives the terms of an image, at once for a call of `many` prompts."""
        self._make, self._most, self._many = make, most, many
        self._calls = 0
        self._kept: WeakKeyDictionary[Any, _Entry[Terms]] = WeakKeyDictionary()
        self._seen: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    def for_call(self, image: Any, num_prompts: int) -> Terms | None:
        """The terms for a call of `num_prompts` on `image`; None where the call is quicker without."""
        self._calls += 1
        entry = self._kept.get(image)
        if entry is not None:
            entry.last_call = self._calls
            return entry.terms
        before = self._seen.get(image, False)
        self._seen[image] = True
        if num_prompts < self._many and not before:
            return None
        if self._has_room():
            terms = self._make(image)
            self._kept[image] = _Entry(terms, self._calls)
            return terms
        return self._make(image) if num_prompts >= self._many else None

    def _has_room(self) -> bool:
        """Whether one more fits, after an image that is not in use any more was dropped."""
        if len(self._kept) < self._most:
            return True
        oldest = min(self._kept, key=lambda image: self._kept[image].last_call)
        if self._calls - self._kept[oldest].last_call < _UNUSED:
            return False
        del self._kept[oldest]
        return True
