"""SAM's ViT as an ONNX graph: the stand-in's small one through every step, ViT-B and ViT-L with random weights, slowly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.pinned_rtx import pinned_rtx
from tests.fixtures.random_vit import VIT_B, VIT_H, VIT_L, random_vit
from tests.fixtures.real import photo
from trt_sam.cli import main
from trt_sam.engine.builder import build_engine
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.layers import KernelSummary
from trt_sam.errors import ExportError
from trt_sam.graph.encoder import export_encoder, sample_pictures
from trt_sam.imaging.frame import to_frame
from trt_sam.model.checkpoint import Checkpoint, load_checkpoint
from trt_sam.model.encoders.vit import Vit, VitSettings
from trt_sam.model.image_encoder import ImageEncoder
from trt_sam.recipe import EngineRecipe
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.predictor import Predictor
from trt_sam.runtime.torch_runner import TorchRunner

pytestmark = pytest.mark.usefixtures("one_torch_thread")

OF_A_BLOCK, OF_THE_REST = 12, 9
"""Kernels: LayerNorm, projection, arranging, two products and joining for relative positions, attention, arranging, output
product, LayerNorm, and two products of the MLP; normalising, patches and neck.
"""


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint("standin")


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return pinned_rtx()


def kernels_of(path: Path, rtx: Flavour) -> KernelSummary:
    result = build_engine(path, EngineRecipe(compute_capabilities=("8.9",)), flavour=rtx)
    assert result.warnings == ()
    (kernels,) = result.kernels
    print(kernels)
    return kernels


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_fp32_meets_pytorch(checkpoint: Checkpoint, target: str, tmp_path: Path) -> None:
    samples = [to_frame(photo("rocket.jpg"))]
    report = export_encoder(checkpoint.image_encoder(), tmp_path / "e.onnx", target=target, samples=samples)
    assert report.error < 1e-5


def test_fp16_builds_with_every_attention_fused(checkpoint: Checkpoint, rtx: Flavour, tmp_path: Path) -> None:
    path, samples, encoder = tmp_path / "e.onnx", [to_frame(photo("rocket.jpg"))], checkpoint.image_encoder()
    report = export_encoder(encoder, path, precision="fp16", samples=samples)
    assert report.error < 0.03
    assert report.largest < 5000
    assert isinstance(encoder.model, Vit)
    depth = len(encoder.model.blocks)
    kernels = kernels_of(path, rtx)
    assert kernels.fused_attentions == depth
    assert kernels.kernels <= OF_A_BLOCK * depth + OF_THE_REST


@pytest.mark.slow
def test_the_command_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A set from `export --encoder`; photo to mask by it and by PyTorch are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((1, 2),))
        patch.setattr("trt_sam.graph.encoder.sample_pictures", lambda: sample_pictures()[:1])
        assert main(["export", "--checkpoint", "standin", "--encoder", "--output", str(tmp_path / "set")]) == 0
    picture = photo("rocket.jpg")
    with OnnxRunner(tmp_path / "set") as runner:
        found = Predictor(runner)
        found.set_image(picture)
        expected = Predictor(TorchRunner(checkpoint.decoder), checkpoint.image_encoder())
        expected.set_image(picture)
        (masks, scores, _), (their_masks, their_scores, _) = (
            predictor.predict(np.array([[320, 200]]), np.array([1])) for predictor in (found, expected)
        )
    assert np.mean(masks != their_masks) < 1e-5
    np.testing.assert_allclose(scores, their_scores, atol=1e-5)


def test_what_one_file_cannot_hold_is_one_line(tmp_path: Path) -> None:
    with torch.device("meta"):
        encoder = ImageEncoder(Vit(VIT_H), "vit_h", "")
    with pytest.raises(ExportError, match=r"fp32 graph of the image encoder vit_h would have 2\.5 GB .* export it in fp16"):
        export_encoder(encoder, tmp_path / "e.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_vit_b_in_float32(tmp_path: Path) -> None:
    encoder = ImageEncoder(random_vit(VIT_B), "vit_b", "")
    report = export_encoder(encoder, tmp_path / "e.onnx", target="cpu", samples=sample_pictures()[:1])
    print(report)
    assert report.error < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("settings", [VIT_B, VIT_L], ids=["vit_b", "vit_l"])
def test_published_sizes_in_float16(settings: VitSettings, rtx: Flavour, tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    report = export_encoder(
        ImageEncoder(random_vit(settings), "vit", ""), path, precision="fp16", samples=sample_pictures()[:1]
    )
    print(report)
    assert report.error < 0.03
    kernels = kernels_of(path, rtx)
    assert kernels.fused_attentions == settings.depth
    assert kernels.kernels <= OF_A_BLOCK * settings.depth + OF_THE_REST
