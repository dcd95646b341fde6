"""The wheel, installed outside the checkout, does the job with what it carries."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.engine_sets import FILES
from tests.fixtures.real import photo_file
from tests.real_weights import checkpoint_file
from trt_sam.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # From a copy: setuptools would leave build/ in the checkout, and reuse what an older build left there.
    subprocess.run(["git", "-C", ROOT, "checkout-index", "--all", f"--prefix={source}/"], check=True)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_it_carries_recipes_and_stand_in_and_nothing_else_of_the_tree(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "trt_sam/recipes/standin.toml" in names
    assert "trt_sam/data/standin/model.safetensors" in names
    assert "trt_sam/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"calibrators", "trt_sam"}


def test_it_builds_an_engine_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import trt_sam; print(trt_sam.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(site))
    command = [sys.executable, "-m", "trt_sam", "build", "--checkpoint", "standin", "--backend", "rtx"]
    command += ["--compute-capability", "8.9", "--output", "engine"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "engine").iterdir()} == {*FILES, "decoder.layers.json"}


@pytest.mark.slow
def test_a_photo_is_segmented_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """What a service installs, and no more: numpy, ONNX Runtime and Pillow. The set was exported elsewhere."""
    folder, mask = tmp_path / "mobile_sam", tmp_path / "mask.png"
    arguments = ["export", "--checkpoint", str(checkpoint_file("mobile_sam")), "--encoder", "--output", str(folder)]
    assert main(arguments) == 0
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[onnxruntime,image]")
    heavy = "[n for n in ('torch', 'transformers', 'onnx') if importlib.util.find_spec(n)]"
    assert run(python, "-c", f"import importlib.util; print({heavy})").strip() == "[]"
    command = [python.with_name("trt-sam"), "segment", photo_file("astronaut.png"), "--set", folder, "--point", "220,400"]
    assert "ONNX Runtime (fp32 graph, CPU)" in run(*command, "--output", mask)
    written = np.asarray(Image.open(mask)) > 0
    assert written.shape == (512, 512)
    assert written[400, 220]
    assert 0.02 < written.mean() < 0.9
