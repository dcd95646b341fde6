"""Prompts through a graph that runs on the CPU: tokens from what callers give, and what they asked for from all outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import (
    LABEL_ABSENT,
    LABEL_BOX_END,
    LABEL_BOX_START,
    LABEL_NOT_A_POINT,
    LOW_RES_SIZE,
    TensorSpec,
)
from trt_sam.errors import ContractError
from trt_sam.runtime.call.decoded import PACKED, THRESHOLD, Bits, Decoded, Masks, chosen_mask
from trt_sam.runtime.call.given import Given, check_labels

__all__ = ["check_asked", "decode", "tokens_of"]

Array = npt.NDArray[Any]
Feed = dict[str, Array]

_MASKS = ("best", "all")
_BITS = (False, True, PACKED)


def check_asked(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    masks: Masks,
    bits: Bits,
    with_mask: bool,
    image_size: tuple[int, int] | None,
) -> None:
    """Raise ContractError where a graph of these tensors cannot give what is asked."""
    taken = {spec.name for spec in inputs}
    if masks not in _MASKS:
        raise ContractError(f"masks is {masks!r}, must be one of {', '.join(_MASKS)}")
    if bits not in _BITS:
        raise ContractError(f"bits is {bits!r}, must be True, False or {PACKED!r}")
    if with_mask and "mask_input" not in taken:
        raise ContractError(
            "this graph takes no mask_input; export it with --mask-input, or its set with --decode-mask "
            "(export --encoder --decode-mask, or build --decode-mask for engines)"
        )
    if image_size is None and "orig_im_size" in taken:
        raise ContractError("this graph gives masks at the original size: say image_size, (height, width)")
    if image_size is not None and "orig_im_size" not in taken:
        raise ContractError("this graph gives 256 x 256 masks and takes no image_size; leave it out")
    if bits == PACKED and all(spec.name != "mask_bits" for spec in outputs):
        raise ContractError("this graph packs no bits; export it with --mask-bits, or ask for bits=True")


def tokens_of(given: Given, inputs: Sequence[TensorSpec], image_size: tuple[int, int] | None) -> Feed:
    """The feed, without an image, that prompts stand for; what is in it is not the caller's memory.

    Raises:
        ContractError: a label that is not allowed.
    """
    count, points = given.count, given.num_points
    tail = {"corners": [LABEL_BOX_START, LABEL_BOX_END], "point": [LABEL_NOT_A_POINT], "": [LABEL_ABSENT]}[given.tail]
    coords = np.zeros((count, points + len(tail), 2), np.float32)
    labels = np.empty((count, points + len(tail)), np.float32)
    labels[:, points:] = tail
    if given.points is not None and given.labels is not None:
        coords[:, :points], labels[:, :points] = given.points, given.labels
        check_labels(labels[:, :points].tolist(), with_tail=True)
    if given.boxes is not None:
        coords[:, points:] = given.boxes
    feed: Feed = {"point_coords": coords, "point_labels": labels}
    if any(spec.name == "mask_input" for spec in inputs):
        feed["mask_input"] = np.zeros((count, 1, LOW_RES_SIZE, LOW_RES_SIZE), np.float32)
        feed["has_mask_input"] = np.full(count, given.mask_input is not None, np.float32)
        if given.mask_input is not None:
            feed["mask_input"][...] = given.mask_input
    if image_size is not None:
        feed["orig_im_size"] = np.array(image_size, np.int64)
    return feed


def decode(
    run: Callable[[Feed], Mapping[str, Array]], feed: Feed, passes: Sequence[slice], masks: Masks, bits: Bits
) -> Decoded:
    """Run a feed of `tokens_of` in passes, and take of the outputs what was asked.

    Beside the results, memory does not grow with the number of prompts.

    Args:
        run: every output of a feed by name, in the graph's dtypes, in memory that belongs to its caller.
        feed: of one or more prompts.
        passes: the prompts of each call of `run`, in order.
        masks: which.
        bits: whether as pixels, packed or not.
    """
    parts = []
    for rows in passes:
        part = {name: array if name == "orig_im_size" else array[rows] for name, array in feed.items()}
        parts.append(_asked(run(part), part["point_labels"], masks, bits))
    return Decoded.joined(parts)


def _asked(outputs: Mapping[str, Array], labels: Array, masks: Masks, bits: Bits) -> Decoded:
    iou = outputs["iou_predictions"]
    shown = "masks" if "masks" in outputs else "low_res_masks"
    packed = bool(bits) and "mask_bits" in outputs
    found = {name: array for name, array in outputs.items() if name == "mask_bits" or not packed}
    if masks == "best" and iou.shape[1] > 1:
        chosen = [chosen_mask(scores, row) for scores, row in zip(iou.tolist(), labels.tolist(), strict=True)]
        rows = np.arange(len(chosen))
        found = {name: array[rows, chosen][:, None] for name, array in found.items()}
        iou = iou[rows, chosen][:, None]
    if not packed:
        low_res = found["low_res_masks"]
        return Decoded(found[shown] > THRESHOLD if bits else found[shown], iou, low_res)
    pixels = found["mask_bits"]
    if bits != PACKED:
        pixels = np.unpackbits(pixels, axis=-1, count=outputs[shown].shape[3]).view(np.bool_)
    return Decoded(pixels, iou, None)
