"""`trt-sam serve`: what it opens, for whom it listens, and what it refuses before it does."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.served import DiscRunner
from trt_sam.cli import main
from trt_sam.commands import _served, serve
from trt_sam.machine.driver import Driver, Gpu
from trt_sam.serve import Model


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been run."""
    calls: list[dict[str, Any]] = []

    def run_server(app: Any, settings: Any, host: str, port: int, listening: Any) -> None:
        listening(host, port)
        calls.append({"settings": settings, "host": host, "port": port})

    monkeypatch.setattr("trt_sam.serve.http.server.run_server", run_server)
    monkeypatch.setattr(serve, "open_model", lambda args: Model(DiscRunner(), "discs"))
    monkeypatch.delenv("TRT_SAM_TOKEN", raising=False)
    return calls


def test_only_this_machine_reaches_it_unless_asked(started: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert main(["serve", "set"]) == 0
    (call,) = started
    assert (call["host"], call["port"], call["settings"].token) == ("127.0.0.1", 8000, "")
    assert "http://127.0.0.1:8000/" in caplog.text


def test_other_machines_need_a_token(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert main(["serve", "set", "--host", "0.0.0.0"]) == 0
    made = started[-1]["settings"].token
    assert len(made) >= 20
    assert f"http://{socket.gethostname()}:8000/#token={made}" in caplog.text
    assert main(["serve", "set", "--host", "::1"]) == 0
    assert "http://[::1]:8000/" in caplog.text
    (tmp_path / "token").write_text("from-a-file\n")
    assert main(["serve", "set", "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")]) == 0
    assert started[-1]["settings"].token == "from-a-file"
    monkeypatch.setenv("TRT_SAM_TOKEN", "of-the-environment")
    assert main(["serve", "set"]) == 0
    assert started[-1]["settings"].token == "of-the-environment"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "70000"], "from 0 to 65535"),
        (["--images", "0"], "--images is 0"),
        (["--threads", "0"], "--threads is 0, must be at least 1"),
        (["--image-seconds", "-1"], "--image-seconds is -1"),
        (["--token-file", "/nothing/here"], "/nothing/here"),
    ],
)
def test_what_cannot_be_is_refused(
    started: list[dict[str, Any]], flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "set", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not started


def test_a_port_that_is_taken_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve, "open_model", lambda args: Model(DiscRunner(), "discs"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "set", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


def test_neither_set_nor_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "nothing"), "--device", "cpu"]) == 2
    assert "neither a set with a manifest nor a checkpoint" in capsys.readouterr().err
    assert main(["serve", "set", "--device", "gpu"]) == 2
    assert "must be cuda:N" in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, "notes.txt", "decoder.onnx", "config.json"])
def test_a_folder_that_holds_neither_is_refused_before_torch_is_loaded(name: str | None, tmp_path: Path) -> None:
    if name is not None:
        (tmp_path / name).write_text("{}")
    code = "import sys; from trt_sam.cli import main; code = main(); print('torch' in sys.modules); sys.exit(code)"
    command = [sys.executable, "-c", code, "serve", str(tmp_path), "--device", "cpu", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert f"{tmp_path} is neither a set with a manifest nor a checkpoint" in done.stderr


def test_a_checkpoint_becomes_a_set_in_the_cache_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRT_SAM_CACHE", str(tmp_path))
    written: list[tuple[str, bool]] = []

    def write(source: str, recipe: Any, output: Path, stages: Any, *, decode_mask: bool) -> None:
        written.append((recipe.graph.precision, decode_mask))
        output.mkdir(parents=True)
        (output / "manifest.json").write_text("{}")

    monkeypatch.setattr(_served, "write_encoder_set", write)
    monkeypatch.setattr("trt_sam.engine.manifest.open_manifest", lambda folder: None)
    folders = [_served.cached_set("standin", None) for _ in range(2)]
    assert folders[0] == folders[1]
    assert folders[0].is_relative_to(tmp_path)
    assert written == [("fp32", True)]


def test_a_gpu_gets_engines_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRT_SAM_CACHE", str(tmp_path))
    built: list[tuple[Path, int]] = []
    monkeypatch.setattr(_served, "_build", lambda source, folder, stages, device: built.append((folder, device)))
    assert _served.cached_set("standin", 1) == built[0][0]
    assert built[0][1] == 1
    assert built[0][0] != _served.ClickCache.of("standin").set_folder("graphs")  # type: ignore[union-attr]
    monkeypatch.setattr(_served, "examine_driver", lambda: Driver("13.0", (Gpu("a GPU", "8.9", 1 << 34),)))
    monkeypatch.setattr(_served.importlib.util, "find_spec", lambda name: None)
    assert _served._device("auto") is None
    monkeypatch.setattr(_served.importlib.util, "find_spec", lambda name: name)
    assert _served._device("auto") == 0
    assert _served._device("cuda:3") == 3
    assert _served._device("cpu") is None
