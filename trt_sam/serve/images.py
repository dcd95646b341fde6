"""`Images`: who has sent which picture, until when it is kept, and the masks that later requests may name.

An id is a secret: who has it may use and delete the image. Used by the event loop's thread only.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trt_sam.serve.faults import Refusal, image_unknown

__all__ = ["HeldImage", "Images"]

FloatArray = npt.NDArray[np.float32]


@dataclass
class HeldImage:
    """One image."""

    id: str
    number: int
    """The model's."""
    size: tuple[int, int]
    """(height, width) of the picture."""
    used: float
    """When it was last asked for, on the clock of `Images`."""
    masks: OrderedDict[str, FloatArray] = field(default_factory=OrderedDict)
    """Logits float32 [256, 256] by id, the oldest first."""

    def mask(self, mask: str) -> FloatArray:
        """The logits of an earlier mask; Refusal where they are not kept."""
        logits = self.masks.get(mask)
        if logits is None:
            raise Refusal(404, "mask_unknown", "no such mask of this image, or it is not kept any more; ask without it")
        self.masks.move_to_end(mask)
        return logits


class Images:
    """The images by id; `forget` is told the number of each that goes."""

    def __init__(
        self,
        forget: Callable[[int], None],
        *,
        most: int,
        seconds: float,
        masks: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep at most `most` images, each `seconds` after its last use, and `masks` of each."""
        self._forget, self._most, self._clock, self._most_masks = forget, most, clock, masks
        self.seconds = seconds
        self._held: OrderedDict[str, HeldImage] = OrderedDict()
        self.evicted = 0
        """Images that made room for others."""

    def __len__(self) -> int:
        return len(self._held)

    def make_room(self) -> None:
        """Forget the least recently used where one more would be too many."""
        while len(self._held) >= self._most:
            _, image = self._held.popitem(last=False)
            self.evicted += 1
            self._forget(image.number)

    def add(self, number: int, size: tuple[int, int]) -> HeldImage:
        """Keep the model's image `number`."""
        self.make_room()
        image = HeldImage(secrets.token_urlsafe(12), number, size, self._clock())
        self._held[image.id] = image
        return image

    def get(self, image: str) -> HeldImage:
        """The image, which is now the most recently used; Refusal where there is none."""
        self.sweep()
        held = self._held.get(image)
        if held is None:
            raise image_unknown()
        held.used = self._clock()
        self._held.move_to_end(image)
        return held

    def keep_mask(self, image: HeldImage, logits: FloatArray) -> str:
        """Keep logits [256, 256] of a mask, and give their id."""
        mask = secrets.token_urlsafe(6)
        image.masks[mask] = logits
        while len(image.masks) > self._most_masks:
            image.masks.popitem(last=False)
        return mask

    def drop(self, image: str) -> None:
        """Forget an image; Refusal where there is none."""
        self._forget(self.get(image).number)
        self._held.pop(image, None)

    def sweep(self) -> None:
        """Forget those whose time is over."""
        over = self._clock() - self.seconds
        while self._held:
            oldest = next(iter(self._held.values()))
            if oldest.used > over:
                return
            del self._held[oldest.id]
            self._forget(oldest.number)

    def clear(self) -> None:
        """Forget all."""
        for image in self._held.values():
            self._forget(image.number)
        self._held.clear()
