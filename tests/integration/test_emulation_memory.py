"""The float16 emulation holds one layer's tensors, not the whole graph's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trt_sam.graph.export import export_decoder
from trt_sam.model import SamDecoder
from trt_sam.recipe import GraphOptions

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import resource, sys
import numpy as np
from trt_sam.graph.float16 import Float16Emulation
from trt_sam.graph.parity import random_feed
from trt_sam.recipe import GraphOptions
emulation = Float16Emulation(sys.argv[1], threads=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
emulation.run(random_feed(np.random.default_rng(0), 8, 2, GraphOptions(precision="fp16")))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_eight_prompts_take_less_than_half_a_gigabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((1, 2),))
    export_decoder(SamDecoder().eval(), tmp_path / "fp16.onnx", GraphOptions(precision="fp16"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, str(tmp_path / "fp16.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    # 240 MB was seen; 1,350 MB where every tensor waits for its magnitude.
    assert float(done.stdout) < 500
