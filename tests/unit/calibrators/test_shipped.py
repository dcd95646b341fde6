"""Ranges that come with the package: the file, and whom it is for."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrators.shipped import ShippedRanges, ShippedTensor, quantize_by_ranges, shipped_ranges
from trt_sam.errors import InputError
from trt_sam.quantize.share import ChannelChange
from trt_sam.recipe import GraphOptions, QuantizationOptions


def made() -> ShippedRanges:
    tensor = ShippedTensor(ChannelChange(np.array([0.5, -2.0]), np.array([1.0, 3.0])), np.array([0.1, 0.2]), {"max": 4.0})
    return ShippedRanges("mobile_sam", "ab" * 32, "mobile_sam", {"images": 16}, {"block0.image input": tensor})


def test_a_file_gives_back_what_was_put_in() -> None:
    written = json.dumps(made().to_dict())
    again = ShippedRanges.from_dict(json.loads(written))
    assert json.dumps(again.to_dict()) == written
    tensor = again.tensors["block0.image input"]
    assert (tensor.change.shift.tolist(), tensor.change.scale.tolist(), tensor.mean.tolist()) == ([0.5, -2], [1, 3], [0.1, 0.2])
    assert tensor.amax == {"max": 4.0}


def test_ranges_are_found_by_weights_and_encoder_and_not_by_name() -> None:
    unknown: Any = SimpleNamespace(sha256="00" * 32, encoder_kind="mobile_sam")
    assert shipped_ranges(unknown) is None


def test_other_precisions_need_photos() -> None:
    nobody: Any = None
    with pytest.raises(InputError, match=r"are int8's, not fp8's; give photos"):
        quantize_by_ranges(nobody, made(), GraphOptions(precision="fp8"), QuantizationOptions(), "x.onnx")
