"""Every command of the README runs as it stands there, in order, in a copy of the checkout's samples."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path, mobile_sam: Path) -> None:
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    commands = [line for kind, text in blocks if kind == "sh" for line in text.splitlines() if line.strip()]
    assert [command.split()[1] for command in commands] == ["segment", "build", "build", "inspect", "export", "compare"]
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "trt-sam"
        done = subprocess.run([sys.executable, "-m", "trt_sam", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert {p.name for p in tmp_path.iterdir()} >= {"mobile_sam_set", "engine", "engine_int8"}
    assert (tmp_path / "samples" / "astronaut.mask.png").exists()
    (code,) = [text for kind, text in blocks if kind == "python"]
    check = code + "\nassert masks.shape == (3, 512, 512) and masks.any()\nimport sys; assert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_lines_of_docs_python_run(tmp_path: Path, mobile_sam: Path) -> None:
    """In one process, as a reader tries them; of the grid of 1,024 clicks 16 are enough to see that they do."""
    shutil.copy(ROOT / "samples" / "astronaut.jpg", tmp_path / "photo.jpg")
    for words in (
        ["export", "--checkpoint", "mobile_sam", "--output", "decoder.onnx"],
        ["export", "--checkpoint", "mobile_sam", "--mask-input", "--output", "decoder_mask.onnx"],
        ["export", "--checkpoint", "mobile_sam", "--encoder", "--output", "mobile_sam_set"],
        ["embed", "photo.jpg", "--checkpoint", "mobile_sam", "--output", "embeddings"],
    ):
        subprocess.run([sys.executable, "-m", "trt_sam", *words], cwd=tmp_path, check=True)
    shutil.copytree(tmp_path / "mobile_sam_set", tmp_path / "engine")
    code = "".join(text for kind, text in BLOCK.findall((ROOT / "docs" / "python.md").read_text()) if kind == "python")
    code = code.replace("AutomaticMaskGenerator(runner", "AutomaticMaskGenerator(runner, 4")
    code = code.replace(
        "# image:",
        "import torch\nfrom trt_sam import Predictor, load_checkpoint\n"
        "predictor = Predictor(OnnxRunner('decoder_mask.onnx'), load_checkpoint('mobile_sam').image_encoder())\n"
        "image, detections = photo, torch.tensor([[20.0, 16, 360, 511]])\n# image:",
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} >= {"masks.json", "coco.json", "masks.png"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 900


def test_the_readme_names_the_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())
    assert {"demo", "test"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_links_of_the_readmes_lead_somewhere() -> None:
    for readme in (ROOT / "README.md", ROOT / "engines" / "README.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / link).exists(), f"{readme}: {link}"
