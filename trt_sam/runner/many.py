"""More prompts than one call takes: cut up into calls that overlap as far as there are slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from trt_sam.errors import ContractError
from trt_sam.runner.call import Decoded
from trt_sam.runner.lease import NoSlotError
from trt_sam.runner.prompts import CallMaker, host_array
from trt_sam.runner.submission import Submission

__all__ = ["decode_many"]


def decode_many(
    submit: Callable[..., Submission],
    calls: CallMaker,
    points: Any,
    labels: Any,
    boxes: Any,
    mask_input: Any,
    asked: dict[str, Any],
) -> Decoded:
    """Any number of prompts in calls that overlap as far as there are slots; results in memory of their own."""
    if asked.get("masks") == "device":
        raise ContractError("decode_many gathers results on the host; use submit for masks on the device")
    named = {"points": points, "labels": labels, "boxes": boxes, "mask_input": mask_input}
    given = [None if each is None else host_array(each, name) for name, each in named.items()]
    if given[0] is not None and given[0].ndim == 2:
        given[:2] = [given[0][None], None if given[1] is None else given[1][None]]
    if given[2] is not None and given[2].ndim == 1:
        given[2] = given[2][None]
    counts = {len(each) if each.ndim else 0 for each in given if each is not None}
    if counts <= {0}:
        raise ContractError("there is no prompt; give points with labels, boxes, or a mask_input")
    if len(counts) != 1:
        raise ContractError(f"points, labels, boxes and mask_input have {sorted(counts)} prompts; they must agree")
    points, boxes = given[0], given[2]
    tokens = (points.shape[1] if points is not None and points.ndim > 1 else 0) + (
        2 if boxes is not None else int(points is not None)
    )
    most = calls.most_prompts(tokens, with_mask=mask_input is not None, image_size=asked.get("image_size"))
    waiting: deque[Submission] = deque()
    parts: list[Decoded] = []
    timeout = asked.pop("timeout", None)
    try:
        for start in range(0, counts.pop(), most):
            part = [None if each is None else each[start : start + most] for each in given]
            while True:
                try:
                    # While calls of ours are under way they are what to wait for, not a slot.
                    waiting.append(submit(*part, **asked, timeout=0 if waiting else timeout))
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
    if len(parts) == 1:
        return parts[0]
    low_res = None if parts[0].low_res_masks is None else np.concatenate([part.low_res_masks for part in parts])
    same = parts[0].masks is parts[0].low_res_masks
    masks = low_res if same else np.concatenate([part.masks for part in parts])
    return Decoded(masks, np.concatenate([part.iou_predictions for part in parts]), low_res)
