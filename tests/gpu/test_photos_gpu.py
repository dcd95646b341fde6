"""A set with an image encoder on a GPU: photo in, masks out, as on the CPU.

Run with `make test-gpu`; skipped with the reason where there is no GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.gpu import backend, mean_iou, needs_gpu, open_runner
from tests.fixtures.real import photo
from tests.real_weights import checkpoint_file
from trt_sam.cli import main
from trt_sam.runtime.onnx_runner import OnnxRunner

pytestmark = needs_gpu

POINTS, LABELS = np.array([[[500, 300]], [[320, 200]]], np.float32), np.ones((2, 1), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("photos") / "set"
    arguments = ["build", "--checkpoint", str(checkpoint_file("mobile_sam")), "--encoder", "--backend", backend()]
    assert main([*arguments, "--output", str(output)]) == 0
    return output


def test_photo_in_masks_out_as_on_the_cpu(folder: Path) -> None:
    pictures = [photo("rocket.jpg"), photo("astronaut.jpg")]
    with OnnxRunner(folder) as cpu, open_runner(folder, in_flight=2) as gpu:
        gpu.warm_up([(2, 2)])
        submitted = [gpu.submit_image(picture) for picture in pictures]
        for picture, image in zip(pictures, submitted, strict=True):
            cpu.set_image(picture)
            ours = gpu.decode(POINTS, LABELS, image=image.number, masks="all")
            theirs = cpu.decode(POINTS, LABELS, masks="all")
            assert mean_iou(ours.masks, theirs.masks) >= 0.97
            embedding = gpu.embed(picture)
            expected = cpu.embed(picture)
            assert np.abs(embedding - expected).max() <= 0.1 * np.abs(expected).max()
        assert [image.result() for image in submitted] == [1, 2]
