"""Engines on a real GPU against PyTorch. Run with `make test-gpu`; skipped with the reason where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trt_sam.cli import main
from trt_sam.export import random_feed
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.recipe import GraphOptions
from trt_sam.tensorrt import available_flavours, gpu_compute_capability

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_compute_capability() is None, reason="no CUDA GPU that the driver answers for"),
]

TOLERANCE = {"fp32": 2e-2, "fp16": 3e-2}
"""Relative to the largest |logit|; TensorRT may use TF32 for float32 products."""


@pytest.fixture(params=["fp32", "fp16"], scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    flavours = available_flavours()
    if not flavours:
        pytest.skip("no TensorRT is installed")
    folder = tmp_path_factory.mktemp("engine")
    assert main(["build", "--checkpoint", "standin", "--precision", request.param, "--output", str(folder)]) == 0
    return request.param, folder


def test_the_engine_matches_pytorch(built: tuple[str, Path]) -> None:
    from trt_sam.runner import DecoderRunner

    precision, folder = built
    decoder = load_checkpoint("standin").decoder
    rng = np.random.default_rng(0)
    with DecoderRunner.open(folder) as runner:
        for num_prompts, num_points in ((1, 1), (1, 2), (3, 5), (16, 8)):
            feed = random_feed(rng, num_prompts, num_points, GraphOptions(precision=precision))
            with torch.no_grad():
                masks, iou = decoder(*(torch.from_numpy(array) for array in feed.values()))
            out = runner.run(feed)
            scale = float(masks.abs().max())
            assert np.abs(out["low_res_masks"] - masks.numpy()).max() <= TOLERANCE[precision] * scale
            np.testing.assert_allclose(out["iou_predictions"], iou, atol=TOLERANCE[precision])


def test_the_same_call_twice_gives_the_same_bits(built: tuple[str, Path]) -> None:
    from trt_sam.runner import DecoderRunner

    _, folder = built
    feed = random_feed(np.random.default_rng(1), 4, 3, GraphOptions())
    with DecoderRunner.open(folder) as runner:
        first, second = runner.run(feed), runner.run(feed)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
