"""A script for Polygraphy's `--compare-func-script`: mask IoU and finite values decide, not the largest difference of a logit.

    export TRT_SAM_MIN_MEAN_IOU=0.99         # of all masks of a feed (default: 0.99)
    export TRT_SAM_MIN_IOU=0.9               # of any mask of 200 pixels or more (default: 0.9)
    polygraphy run decoder.onnx --onnxrt --load-outputs reference.json \
        --compare-func-script "$(python -m trt_sam.polygraphy.compare_func)"

Run as a module it prints its own path.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.accuracy.metrics import mask_iou
from trt_sam.errors import InputError
from trt_sam.gate.limits import LARGE_MASK

__all__ = ["compare_outputs"]

Array = npt.NDArray[Any]
_SCORES = 0.05
_NEEDED = ("low_res_masks", "iou_predictions")


def compare_outputs(first: Mapping[str, Any], second: Mapping[str, Any]) -> OrderedDict[str, bool]:
    """Whether each output of two iterations agrees: masks by IoU, `iou_predictions` within 0.05, all finite on both sides.

    Which side is the reference, Polygraphy does not say: outputs that `--load-outputs` brings are the second. An output that
    only one side has fails where every decoder gives it, and is left out where it is one of those that are asked for.

    Raises:
        InputError: a variable is no number from 0 to 1, or the iterations have no masks in common.
    """
    least_mean, least = _limit("TRT_SAM_MIN_MEAN_IOU", "0.99"), _limit("TRT_SAM_MIN_IOU", "0.9")
    verdict: OrderedDict[str, bool] = OrderedDict()
    for name in first:
        if name not in second:
            continue
        left, right = (np.asarray(each[name]) for each in (first, second))
        if left.shape != right.shape:
            print(f"{name}: {list(left.shape)} on one side, {list(right.shape)} on the other")
            verdict[name] = False
        elif not all(np.isfinite(each.astype(np.float64)).all() for each in (left, right)):
            print(f"{name}: holds values that are NaN or infinite")
            verdict[name] = False
        elif name in ("low_res_masks", "masks", "mask_bits"):
            if name == "mask_bits":
                # Eight pixels to a byte, as bool again.
                left, right = (np.unpackbits(each, axis=-1).astype(np.bool_) for each in (left, right))
            threshold = 0.5 if left.dtype == np.bool_ else 0.0
            ious = mask_iou(left, right, threshold)
            large = ious[(left > threshold).sum((-2, -1)) >= LARGE_MASK]
            lowest = float(large.min()) if large.size else 1.0
            verdict[name] = bool(ious.mean() >= least_mean and lowest >= least)
            print(f"{name}: mean mask IoU {ious.mean():.5f} (at least {least_mean:g}), least {lowest:.4f} (at least {least:g})")
        elif name == "iou_predictions":
            error = float(np.abs(left.astype(np.float64) - right).max())
            verdict[name] = error <= _SCORES
            print(f"{name}: largest difference {error:.2e} (at most {_SCORES:g})")
        else:
            verdict[name] = bool(np.array_equal(left, right))
    if not {"low_res_masks", "masks"} & set(verdict):
        raise InputError("the two results have no masks in common; run decoders of trt-sam export")
    for name in _NEEDED:
        if name not in verdict:
            print(f"{name}: one side does not give it")
            verdict[name] = False
    return verdict


def _limit(name: str, default: str) -> float:
    text = os.environ.get(name, default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name} is {text!r}, must be a number from 0 to 1")
    return value


if __name__ == "__main__":
    print(os.path.abspath(__file__))
