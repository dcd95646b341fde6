"""`AutomaticMaskGenerator` on `DecoderRunner`, over the host-memory driver: the records are those of the graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import specs, toy_embedding
from tests.fixtures.toy_runner import GRAPHS, expected, opened
from trt_sam.masks import AutomaticMaskGenerator

pytestmark = pytest.mark.hostcuda


class Plain:
    """The toy graph in ONNX Runtime, behind the part of the runners' interface that generators use."""

    def __init__(self, name: str) -> None:
        self.options = GRAPHS[name]
        self.inputs, self.outputs = specs(self.options)
        self.limits = {"num_prompts": (1, 1), "num_points": (1, 8)}

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        return {name: array.astype(np.float32) for name, array in expected(self.options, dict(feed)).items()}


@pytest.mark.parametrize("name", ["mask_bits", "full_resolution_bits"])
def test_records_are_those_of_the_graph(host_cuda: HostCuda, name: str) -> None:
    settings: dict[str, Any] = {
        "points_per_side": 3,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
        "output_mode": "uncompressed_rle",
    }
    size = (64, 47)
    wanted = AutomaticMaskGenerator(Plain(name), **settings)  # type: ignore[arg-type]
    with opened(host_cuda, GRAPHS[name], in_flight=2) as (runner, _):
        runner.set_image(toy_embedding(5))
        current = runner.image_id
        records = AutomaticMaskGenerator(runner, **settings).generate_from_embedding(toy_embedding(1), size)
        assert runner.image_id == current, "the image of others stays set"
    assert records == wanted.generate_from_embedding(toy_embedding(1), size)
    assert len(records) == 27
    if name == "mask_bits":
        assert len({record["area"] for record in records}) > 3
