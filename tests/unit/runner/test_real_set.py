"""MobileSAM's own set on both runners: one photograph, ten prompts, and MobileSAM's masks from either.

The engines are the set's graphs in ONNX Runtime, over the host-memory driver: what is compared is all that the runners do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.ort_engine import FakeTrt, OrtEngine
from tests.fixtures.real import agreement, golden_masks, photo, replay
from tests.real_weights import checkpoint_file
from trt_sam.cli import main
from trt_sam.cuda.device import Device
from trt_sam.graph.metadata import read_graph
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runner.engine import Engine
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.predictor import Predictor

pytestmark = [pytest.mark.hostcuda, pytest.mark.slow]

PHOTO = "rocket.jpg"
SIZES = {"num_prompts": (1, 4), "num_points": (1, 8)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((1, 2),))
    flags = ["--checkpoint", str(checkpoint_file("mobile_sam")), "--encoder", "--decode-mask"]
    assert main(["export", *flags, "--output", str(tmp_path / "set")]) == 0
    return tmp_path / "set"


def engine(cuda: HostCuda, path: Path) -> Engine:
    graph = read_graph(path)
    profile = SIZES if "point_coords" in {spec.name for spec in graph.inputs} else {}
    fake = OrtEngine(cuda, path.read_bytes(), graph.inputs, graph.outputs, [profile])
    return Engine(FakeTrt, fake, graph.inputs, graph.outputs, [profile])


def test_both_runners_give_the_masks_of_mobile_sam(folder: Path, host_cuda: HostCuda) -> None:
    decoders = [engine(host_cuda, folder / name) for name in ("decoder.onnx", "decoder_mask.onnx")]
    encoder = engine(host_cuda, folder / "encoder.onnx")
    with DecoderRunner(decoders, Device(), encoder=encoder) as gpu, OnnxRunner(folder) as cpu:
        answers = []
        for runner in (gpu, cpu):
            predictor = Predictor(runner)
            predictor.set_image(photo(PHOTO))
            answers.append(replay(predictor, PHOTO))
            mean, least, scores = agreement(answers[-1], golden_masks(PHOTO))
            assert mean >= 0.9999
            assert least >= 0.999
            assert scores < 1e-4
    mean, least, scores = agreement(*answers)
    # ONNX Runtime optimizes the two sessions differently: float32 sums in another order.
    assert mean >= 0.99999
    assert least >= 0.9999
    assert scores < 1e-5
    for one, other in zip(*answers, strict=True):
        assert one.masks.shape == other.masks.shape
        assert np.array_equal(one.low_res, other.low_res) or (one.low_res != other.low_res).mean() < 1e-4
