"""More prompts than one call takes: cut up into calls that overlap as far as there are slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from trt_sam.runner.call import Decoded
from trt_sam.runner.lease import NoSlotError
from trt_sam.runner.submission import Submission
from trt_sam.runtime.call.several import spans

__all__ = ["decode_many"]


def decode_many(
    submit: Callable[..., Submission[Decoded]], given: list[Any], images: Sequence[Any], most: int, timeout: float | None
) -> Decoded:
    """Any number of prompts in calls that overlap as far as there are slots; results in memory of their own.

    Args:
        submit: queues prompts, by position; takes `image` and `timeout`.
        given: what it takes, each with a row to a prompt, or None.
        images: number of each prompt's image.
        most: prompts of one call.
        timeout: seconds to wait for the first slot; later ones come as our own calls end.
    """
    waiting: deque[Submission[Decoded]] = deque()
    parts: list[Decoded] = []
    try:
        for rows in spans(images, most, 1):
            part, image = [None if each is None else each[rows] for each in given], images[rows.start]
            while True:
                try:
                    # While calls of ours are under way they are what to wait for, not a slot.
                    waiting.append(submit(*part, image=image, timeout=0 if waiting else timeout))
                    break
                except NoSlotError:
                    if not waiting:
                        raise
                    parts.append(waiting.popleft().result(copy=True))
        while waiting:
            parts.append(waiting.popleft().result(copy=True))
    except BaseException:
        # The error's frames would keep the calls, and with them the slots, as long as anybody keeps the error.
        for submission in waiting:
            submission.drop()
        raise
    return Decoded.joined(parts)
