"""Checkpoints by name: the catalogue, near names, and which weights a name or a path stands for."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pooch")
pytest.importorskip("pypi_simple")

from tests.fixtures.tiny_checkpoint import SHA256, WEIGHTS, WRONG, know
from trt_sam import cli
from trt_sam._cache import CACHE_VARIABLE
from trt_sam.download import CATALOGUE, cached_path, nearest_names, weights_sha256


def test_unknown_names_offer_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert nearest_names("vit_b")[0] == "sam_vit_b"
    assert nearest_names("MobileSAM") == ["mobile_sam"]
    assert nearest_names("sam_vit_h_4b8939.pth")[0] == "sam_vit_h"
    assert nearest_names("stand-in")[0] == "standin"
    assert nearest_names("zebra") == []
    assert cli.main(["download", "mobilesam"]) == 2
    assert "did you mean mobile_sam?" in capsys.readouterr().err


def test_the_catalogue_holds_whole_hashes_and_the_list_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h"} == set(CATALOGUE)
    assert cli.main(["download", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [row["name"] for row in rows] == list(CATALOGUE)
    assert all(re.fullmatch("[0-9a-f]{64}", row["sha256"]) and row["bytes"] > 10_000_000 and row["sources"] for row in rows)
    assert cli.main(["download", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(row["sha256"] in shown for row in rows)


def test_downloading_loads_no_torch() -> None:
    code = "import sys; from trt_sam.cli import main; main(['download', '--list']); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.endswith("False\n")


REFUSE = """
import sys
from trt_sam.cli import main
codes = [main([*words.split(), "--checkpoint", wrong]) for wrong in ("folder", "file.pth") for words in sys.argv[1:]]
assert codes == [2] * len(codes) and "torch" not in sys.modules, (codes, "torch" in sys.modules)
"""


def test_a_folder_or_file_without_weights_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.pth").touch()
    commands = [
        "export --output x.onnx",
        "export --encoder --output set",
        "segment a.jpg --point 3,4",
        "embed a.jpg --output e",
    ]
    commands += [
        "embed a.jpg --output e",
        "build --output engine",
        "calibrate --photos p --output x.onnx",
        "golden --photos p --output g.npz",
    ]
    done = subprocess.run([sys.executable, "-c", REFUSE, *commands], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert {line.partition(": error: ")[2] for line in lines} == {
        "checkpoint folder is a folder without weights; give a .pth, or a Hugging Face folder, which holds config.json and "
        "model.safetensors",
        "checkpoint file.pth is empty; write or download it again",
    }


def test_mobile_sam_by_name_is_the_official_file(mobile_sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_sam import load_checkpoint
    from trt_sam._files import sha256_of

    assert sha256_of(mobile_sam) == CATALOGUE["mobile_sam"].sha256
    assert mobile_sam.stat().st_size == CATALOGUE["mobile_sam"].size
    monkeypatch.setenv("TRT_SAM_CACHE", str(mobile_sam.parent.parent))
    checkpoint = load_checkpoint("mobile_sam")
    assert checkpoint.source == "mobile_sam"
    assert checkpoint.encoder_kind == "mobile_sam"


def test_weights_are_known_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch)
    path = cached_path("tiny")
    path.parent.mkdir(parents=True)
    path.write_bytes(WEIGHTS)
    assert weights_sha256("tiny") == SHA256
    lone = tmp_path / "lone.pth"
    lone.write_bytes(WEIGHTS)
    assert weights_sha256(lone) == SHA256
    lone.write_bytes(WRONG)
    assert weights_sha256(lone) == hashlib.sha256(WRONG).hexdigest()
    folder = tmp_path / "folder"
    folder.mkdir()
    assert weights_sha256(folder) is None
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    before = weights_sha256(folder)
    (folder / "notes.txt").write_text("read by nobody")
    assert weights_sha256(folder) == before
    (folder / "config.json").write_text("{}")
    assert weights_sha256(folder) not in (before, None)
    assert weights_sha256("standin") != weights_sha256("standin-hard")
    assert weights_sha256(tmp_path / "nowhere.pth") is None
    assert weights_sha256("someone/some-sam") is None


def test_hashes_without_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the variable nor platformdirs is there: the file is read each time."""
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    (tmp_path / "lone.pth").write_bytes(WEIGHTS)
    assert weights_sha256(tmp_path / "lone.pth") == SHA256
    assert weights_sha256(tmp_path / "nowhere.pth") is None
