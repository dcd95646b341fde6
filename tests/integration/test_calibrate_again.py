"""Calibrating again with the same photos, prompts, seed and options: the same bytes. The real decoder, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from trt_sam._files import sha256_of
from trt_sam.cli import main

ASTRONAUT = Path(__file__).parents[2] / "samples" / "astronaut.jpg"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]


def test_the_same_again_is_the_same_file(mobile_sam: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with Image.open(ASTRONAUT) as photo:
        photo.save(photos / "a.png")
        ImageOps.mirror(photo).save(photos / "b.png")
        photo.crop((0, 0, photo.width, photo.height // 2)).save(photos / "c.png")
    # Enough prompts for the heads to be mixed.
    flags = ["--checkpoint", str(mobile_sam), "--photos", str(photos), "--mask-input", "--prompts-per-image", "32"]
    made = {}
    for name in ("first", "again"):
        output, report = tmp_path / f"{name}.onnx", tmp_path / f"{name}.json"
        assert main(["calibrate", *flags, "--output", str(output), "--json", str(report)]) == 0
        made[name] = output.read_bytes(), json.loads(report.read_text())
    (first, about), (again, repeated) = made.values()
    assert first == again
    assert {**about, "path": ""} == {**repeated, "path": ""}
    feeds = about["feeds"]
    assert feeds["photo_sha256"] == [sha256_of(photo) for photo in sorted(photos.iterdir())]
    assert len(set(feeds["image_sha256"])) == 3
    assert (feeds["seed"], feeds["prompts"], feeds["shares"]["refinement"]) == (0, 96, 6 / 16)
    assert about["choice"]["alpha"] in (1.0, 0.7)
