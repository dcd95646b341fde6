"""Engines that several files of GPU tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.gpu import build, embedding, open_runner
from trt_sam.feeds.scenes import HELD_OUT_SEED, make_scene
from trt_sam.machine.driver import gpu_compute_capability


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes to calibrate with; others than those that are judged."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        Image.fromarray(make_scene(HELD_OUT_SEED + 3000 + number).image).save(folder / f"{number}.png")
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
