"""Commands talk while they work: real processes that write into a pipe, and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from PIL import Image

from tests.engine_sets import write_tiny_graph
from trt_sam.feeds.scenes import make_scene

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["loading standin", "embedding 2 photos", "done"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        Image.fromarray(make_scene(number, 256).image).save(folder / f"{number}.png")
    return folder


def command(photos: Path, *flags: object) -> list[str]:
    return [sys.executable, "-m", "trt_sam", "embed", str(photos), "--checkpoint", "standin", *map(str, flags)]


def test_into_a_pipe_each_stage_is_a_line_at_once_and_stdout_is_the_result(photos: Path, tmp_path: Path) -> None:
    arguments = command(photos, "--output", tmp_path / "out", "--json")
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    # Said when it begins, not when all is over.
    assert process.poll() is None
    assert not (tmp_path / "out").exists()
    out, rest = process.communicate(timeout=200)
    assert process.returncode == 0
    said = [re.fullmatch(r"\[ *(\d+\.\d) s\] (.*)", line) for line in (first + rest).splitlines()]
    assert all(said), first + rest
    assert [match[2] for match in said if match] == STAGES
    seconds = [float(match[1]) for match in said if match]
    assert seconds == sorted(seconds)
    assert "\r" not in first + rest
    assert "\x1b" not in first + rest
    assert len(json.loads(out)["embeddings"]) == 2


def test_on_a_terminal_one_bar_with_its_times_stands_below_the_lines_and_goes(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for photo in photos.iterdir():
        (tmp_path / "photos" / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / "photos" / "z.png").write_bytes(b"no image")
    for folder, code in ((photos, 0), (tmp_path / "photos", 2)):
        seen, returncode = on_a_terminal(command(folder, "--output", tmp_path / f"out{code}"))
        assert returncode == code, seen
        shown = [int(percent) for percent in re.findall(r"(\d+)%\|", seen)]
        assert len(set(shown)) >= 3, seen
        assert shown == sorted(shown)
        assert re.search(r"\d\d:\d\d so far, about \d\d:\d\d left", seen)
        # What is left on the screen: no bar, and last what matters.
        left = [line for line in map(on_the_screen, seen.split("\n")) if line]
        assert not any("%|" in line for line in left), left
        assert [re.sub(r"^\[ *\d+\.\d s\] ", "", line) for line in left[:1]] == STAGES[:1]
        assert left[-1].endswith("] done") if code == 0 else left[-1].startswith("trt-sam: error: "), left


def test_verbose_says_what_the_library_notes_and_who(tmp_path: Path) -> None:
    write_tiny_graph(tmp_path / "decoder.onnx")
    arguments = ["build", "--onnx", str(tmp_path / "decoder.onnx"), "--compute-capability", "8.9", "--backend", "rtx"]
    done = subprocess.run(
        [sys.executable, "-m", "trt_sam", *arguments, "--output", str(tmp_path / "set"), "-v"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\[ *\d+\.\d s\] trt_sam\.engine\.builder: TensorRT", done.stderr, re.M), done.stderr


def on_a_terminal(arguments: list[str]) -> tuple[str, int]:
    """What a process writes to stderr, a terminal 120 columns wide, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    return seen.decode().replace("\r\n", "\n"), process.wait(timeout=200)


def on_the_screen(line: str) -> str:
    """What is seen of a line in which carriage returns and \"up\" took the cursor back."""
    shown = ""
    for part in re.sub(r"\x1b\[A", "", line).split("\r"):
        shown = part + shown[len(part) :]
    return shown.rstrip()
