"""Ranges that come with the package: the file, and whom it is for."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrators.shipped import ShippedRanges, ShippedTensor, quantize_by_ranges, shipped_ranges
from calibrators.thresholds import THRESHOLDS
from trt_sam.errors import InputError
from trt_sam.quantize.share import ChannelChange
from trt_sam.recipe import GraphOptions, QuantizationOptions

DECODER = "eb4555b9ab5d053f2a8bd1c9c744225dea4da1a07b6a803f352fc490f932c716"
"""`Checkpoint.sha256` of mobile_sam.pt."""


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


def test_a_mixing_comes_back_from_a_file_too() -> None:
    mix = np.array([[[1.0, 0.25], [-0.5, 2.0]]])
    change = ChannelChange(np.zeros(2), np.ones(2), mix)
    tensor = ShippedTensor(change, np.zeros(2), {"max": 4.0})
    ranges = ShippedRanges("mobile_sam", "ab" * 32, "mobile_sam", {}, {"block0.image_out input": tensor})
    (again,) = ShippedRanges.from_dict(json.loads(json.dumps(ranges.to_dict()))).tensors.values()
    assert again.change.mix is not None
    np.testing.assert_array_equal(again.change.mix, mix)


def test_ranges_are_found_by_weights_and_encoder_and_not_by_name() -> None:
    unknown: Any = SimpleNamespace(sha256="00" * 32, encoder_kind="mobile_sam")
    assert shipped_ranges(unknown) is None


def test_mobile_sams_are_those_of_its_photographs_and_tensors() -> None:
    found = shipped_ranges(SimpleNamespace(sha256=DECODER, encoder_kind="mobile_sam"))  # type: ignore[arg-type]
    assert found is not None
    assert found.checkpoint == "mobile_sam"
    assert found.made_from["images"] == len(found.made_from["photographs"]) == 16
    # The demo and the tests judge by these.
    assert not {"astronaut", "chelsea", "coffee"} & set(found.made_from["photographs"])
    channels = {name: len(each.mean) for name, each in found.tensors.items()}
    assert channels == {
        "block0.image input": 256,
        "block0.image_out input": 128,
        "block1.image input": 256,
        "block1.image_out input": 128,
        "final.image input": 256,
        "upscale1 input": 64,
    }
    for name, each in found.tensors.items():
        assert set(each.amax) == set(THRESHOLDS), name
        assert each.amax["max"] == max(each.amax.values()), name
        # Within the range: the mean of what was seen.
        assert (np.abs(each.mean) < each.amax["max"]).all(), name
    # The same decoder behind SAM ViT-H's encoder sees other embeddings.
    assert shipped_ranges(SimpleNamespace(sha256=DECODER, encoder_kind="vit_h")) is None  # type: ignore[arg-type]


def test_other_precisions_need_photos() -> None:
    nobody: Any = None
    with pytest.raises(InputError, match=r"are int8's, not fp8's; give photos"):
        quantize_by_ranges(nobody, made(), GraphOptions(precision="fp8"), QuantizationOptions(), "x.onnx")
