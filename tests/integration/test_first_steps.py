"""What a new user meets in the first hour: mistakes are told before work is done, and interruptions leave one line."""

from __future__ import annotations

import importlib
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.recorder import Recorder, recorded
from trt_sam.cli import main
from trt_sam.errors import InferenceError, InputError
from trt_sam.imaging.photos import list_images, read_image
from trt_sam.recipe_toml import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "samples" / "astronaut.jpg", tmp_path / "photo.jpg"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "--checkpoint", "mobilesam", "--output", "d.onnx"], "did you mean mobile_sam?"),
        (
            ["export", "--checkpoint", "standin", "--precision", "int8", "--output", "d.onnx"],
            "trt-sam calibrate --checkpoint standin --photos PHOTOS --precision int8 --output d.onnx",
        ),
        (["segment", "photo.jpg", "--checkpoint", "mobilesam", "--point", "1,1"], "did you mean mobile_sam?"),
        (["serve", "mobilesam", "--port", "0"], "did you mean mobile_sam?"),
        (["export", "--checkpoint", "standin", "--output", "photo.jpg/d.onnx"], "photo.jpg is a file"),
        (["build", "--checkpoint", "standin", "--output", "photo.jpg"], "it is a file"),
        (
            ["build", "--checkpoint", "standin", "--precision", "int8", "--photos", "nothere", "--output", "x"],
            "folder of images not found: nothere",
        ),
        (["calibrate", "--checkpoint", "standin", "--photos", "nothere", "--output", "x.onnx"], "not found: nothere"),
        (["segment", "foto.jpg", "--checkpoint", "standin", "--point", "1,1"], "did you mean photo.jpg?"),
        (["segment", "photo.jpg", "--checkpoint", "standin", "--point", "1,1", "--output", "photo.jpg/m.png"], "is a file"),
        (["segment", "photo.jpg", "--checkpoint", "standin", "--point", "1,1", "--output", "m.gif"], "a folder is for"),
        (["segment", ".", "--checkpoint", "standin", "--point", "1,1"], ". is a folder"),
        (["segment", ".", "--set", "s", "--onnx", "d.onnx", "--everything", "--output", "m.jsonl"], "leave --checkpoint"),
        (["segmnet"], "did you mean segment?"),
        (["segment", "photo.jpg", "--jsno"], "see trt-sam segment --help"),
    ],
)
def test_what_can_be_seen_at_once_is_told_at_once(
    words: list[str], message: str, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photo.parent)
    try:
        code = main(words)
    except SystemExit as stop:  # argparse's own
        code = int(str(stop.code))
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1  # no stage was begun
    assert sorted(path.name for path in photo.parent.iterdir()) == ["photo.jpg"]


def test_a_port_that_is_taken_is_told_before_the_model_is_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trt_sam.commands.serve.open_model", lambda args: pytest.fail("the model was opened"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "mobile_sam", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"port {port}" in error
    assert len(error.splitlines()) == 1


def test_a_recipe_of_nearly_that_name() -> None:
    with pytest.raises(InputError, match="did you mean mobile_sam_int8"):
        load_recipe("mobile_sam_int9")


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main(["doctor"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "trt-sam: interrupted; nothing was left half-written\n"


def test_a_full_disk_behind_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "trt_sam", "download", "--list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


def test_masks_that_segment_wrote_are_no_photos(photo: Path) -> None:
    folder = photo.parent
    for name in ("photo.mask.png", "photo.mask-0.png", "photo.masks.png", "photo.overlay.png", "other.mask.png"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name)
    # A mask without its photo may be all that somebody has.
    assert [path.name for path in list_images([folder])] == ["other.mask.png", "photo.jpg"]
    assert list_images([folder / "photo.mask.png"])[0].name == "photo.mask.png"


def test_scores_that_are_not_numbers_are_an_error_and_no_mask() -> None:
    class Broken(Recorder):
        def run(self, feed: Any) -> Any:
            results = super().run(feed)
            results["iou_predictions"][0, 1] = np.nan
            return results

    with pytest.raises(InferenceError, match="not numbers"):
        recorded(Broken()).predict(np.array([[5, 5]]), np.array([1]))


def test_a_picture_of_another_kind_says_which_are_taken(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("a text")
    with pytest.raises(InputError, match="give a JPEG or PNG"):
        read_image(tmp_path / "text.jpg")
