"""Engines that several files of GPU tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.gpu import build, embedding, open_runner
from trt_sam.tensorrt import gpu_compute_capability


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of random blocks: scales from them are a test that calibration works, not how well."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(4):
        blocks = rng.integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(params=["fp32", "fp16", "int8", "fp8"], scope="session")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[str, Path]:
    capability = gpu_compute_capability()
    if request.param == "fp8" and (capability is None or float(capability) < 8.9):
        pytest.skip(f"FP8 needs compute capability 8.9, this GPU has {capability}")
    more = ["--photos", str(photos)] if request.param in ("int8", "fp8") else []
    return request.param, build(tmp_path_factory.mktemp("engine"), "--precision", request.param, *more)


@pytest.fixture(scope="session")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fp16"), "--precision", "fp16")


@pytest.fixture
def runner(fp16: Path) -> Iterator[Any]:
    with open_runner(fp16, in_flight=2) as opened:
        opened.set_image(embedding(0))
        yield opened
