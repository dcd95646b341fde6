"""More prompts than one call takes: cut up into calls that overlap as far as there are slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from trt_sam.runner.call import Decoded
from trt_sam.runner.lease import NoSlotError
from trt_sam.runner.submission import Submission

__all__ = ["decode_many"]


def decode_many(
    submit: Callable[..., Submission[Decoded]], given: list[Any], count: int, most: int, timeout: float | None
) -> Decoded:
    """Any number of prompts in calls that overlap as far as there are slots; results in memory of their own.

    Args:
        submit: queues prompts, by position; takes `timeout`.
        given: what it takes, each with a row to a prompt, or None.
        count: prompts.
        most: prompts of one call.
        timeout: seconds to wait for the first slot; later ones come as our own calls end.
    """
    waiting: deque[Submission[Decoded]] = deque()
    parts: list[Decoded] = []
    try:
        for start in range(0, count, most):
            part = [None if each is None else each[start : start + most] for each in given]
            while True:
                try:
                    # While calls of ours are under way they are what to wait for, not a slot.
                    waiting.append(submit(*part, timeout=0 if waiting else timeout))
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
