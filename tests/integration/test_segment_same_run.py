"""`trt-sam segment` into lines that are there: what counts as the same run, and what is refused because it is not."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.fixtures.many_photos import command, write_many
from trt_sam.cli import main
from trt_sam.formats.lines import read_lines

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_many(tmp_path_factory.mktemp("many"))


@pytest.fixture
def own(inputs: Path, tmp_path: Path) -> Path:
    """`inputs` to change: photos a.png and b.png, each with a prompt, and a line for both in `masks.jsonl`."""
    folder = tmp_path / "own"
    (folder / "photos").mkdir(parents=True)
    for name in ("photos/a.png", "photos/b.png", "toy.onnx"):
        shutil.copy(inputs / name, folder / name)
    write_prompts(folder, {"a.png": (10, 10), "b.png": (5, 5)})
    assert main(prompted(folder)) == 0
    return folder


def write_prompts(folder: Path, clicks: dict[str, tuple[int, int]]) -> None:
    images = {name: [{"points": [list(click)], "labels": [1]}] for name, click in clicks.items()}
    (folder / "prompts.json").write_text(json.dumps({"images": images}))


def prompted(folder: Path, *more: str) -> list[str]:
    return command(folder, folder / "masks.jsonl", "--prompts", str(folder / "prompts.json"), *more)


def refused(folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal that leaves the output as it was."""
    before = (folder / "masks.jsonl").read_bytes()
    capsys.readouterr()
    assert main(words) == 2
    assert (folder / "masks.jsonl").read_bytes() == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_changed_prompts_of_a_photo_are_refused(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts(own, {"a.png": (60, 50), "b.png": (5, 5)})
    said = refused(own, prompted(own), capsys)
    assert "has lines of what has changed since: a.png (its prompts); name another --output, or remove these lines" in said
    # What the message says works: without its line the photo is done again.
    _, kept = (own / "masks.jsonl").read_text().splitlines(keepends=True)
    (own / "masks.jsonl").write_text(kept)
    assert main(prompted(own)) == 0
    assert "1 photo, 1 mask, 1 were there" in capsys.readouterr().out
    lines = {line["image"]["file_name"]: line["annotations"][0]["prompt"]["points"] for line in read_lines(own / "masks.jsonl")}
    assert lines == {"a.png": [[60.0, 50.0]], "b.png": [[5.0, 5.0]]}


def test_prompts_of_more_photos_go_on(own: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(inputs / "photos" / "d.jpg", own / "photos" / "d.jpg")
    write_prompts(own, {"d.jpg": (9, 9), "b.png": (5, 5), "a.png": (10, 10)})
    (own / "prompts.json").rename(own / "more.json")
    capsys.readouterr()
    assert main(command(own, own / "masks.jsonl", "--prompts", str(own / "more.json"))) == 0
    assert "1 photo, 1 mask, 2 were there" in capsys.readouterr().out


def test_a_photo_replaced_under_its_name_is_refused(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = (own / "photos" / "b.png").stat()
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(own / "photos" / "b.png")
    os.utime(own / "photos" / "b.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "has changed since: b.png (its file)" in refused(own, prompted(own), capsys)
    (own / "photos" / "b.png").unlink()
    assert main(prompted(own)) == 0
    assert "0 photos, 0 masks, 1 were there" in capsys.readouterr().out


def test_another_graph_or_checkpoint_under_its_name_is_refused(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(own, [word if word != "standin" else "standin-hard" for word in prompted(own)], capsys)
    assert re.search("--checkpoint was SHA-256 [0-9a-f]{12}, now SHA-256 [0-9a-f]{12}; name another --output", said)
    assert "--onnx" not in said
    model = onnx.load(own / "toy.onnx")
    model.doc_string = "another"
    onnx.save(model, own / "toy.onnx")
    said = refused(own, prompted(own), capsys)
    assert re.search("--onnx was SHA-256 [0-9a-f]{12}, now SHA-256 [0-9a-f]{12}; name another --output", said)
    assert "--checkpoint" not in said


def test_the_same_files_by_other_paths_go_on(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own)
    capsys.readouterr()
    start = ["segment", "photos", "--checkpoint", "standin", "--onnx", "toy.onnx"]
    assert main([*start, "--prompts", "prompts.json", "--output", "masks.jsonl"]) == 0
    assert "0 photos, 0 masks, 2 were there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"image": {"file_name": "a.png"}, "settings": {"checkpoint": "standin", "onnx": None, "everything": None}},
            "line 1 is of an older version, which did not write down what weights, photo and prompts it was made of",
        ),
        (
            {"image": {"file_name": "a.png"}},
            "line 1 is not of this command: it has no image or settings; name another --output",
        ),
        ({"settings": {"model": {}}}, "line 1 is not of this command"),
    ],
)
def test_lines_that_do_not_say_what_they_are_of(
    line: dict[str, Any], message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "masks.jsonl").write_text(json.dumps(line) + "\n")
    assert message in refused(own, prompted(own), capsys)
