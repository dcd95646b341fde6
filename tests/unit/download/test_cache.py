"""The cache folder: files that are there, processes that share it, disks that are full."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pooch")
pytest.importorskip("pypi_simple")

from tests.fixtures.file_server import Answer, FileServer
from tests.fixtures.tiny_checkpoint import SHA256, WEIGHTS, WRONG, at, know, left_behind
from trt_sam import cli
from trt_sam.download import cached_path, fetch
from trt_sam.errors import InputError


def test_a_file_that_was_put_there_is_verified_too(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    know(monkeypatch, at(server, "/good", Answer(WEIGHTS)))
    path = cached_path("tiny")
    path.parent.mkdir(parents=True)
    path.write_bytes(WRONG)
    assert cli.main(["download", "tiny"]) == 0
    words = capsys.readouterr().err
    assert hashlib.sha256(WRONG).hexdigest() in words
    assert SHA256 in words
    assert path.read_bytes() == WEIGHTS
    path.write_bytes(WRONG)  # changed after it was verified
    assert fetch("tiny").read_bytes() == WEIGHTS
    assert server.asked == ["/good", "/good"]


def test_two_processes_at_once_download_once(server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    at(server, "/good", Answer(WEIGHTS, silence=1.5))
    script = f"""
from trt_sam.download import CATALOGUE, KnownCheckpoint, fetch
from trt_sam.download.catalogue import Url
CATALOGUE["tiny"] = KnownCheckpoint("tiny", "tiny.pt", {len(WEIGHTS)}, "{SHA256}", "", "", (Url("a", "{server.url}/good"),))
print(fetch("tiny").stat().st_size)
"""
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in running] == [f"{len(WEIGHTS)}\n"] * 2
    assert server.asked == ["/good"]
    assert left_behind(cache) == ["tiny.pt"]


def test_what_a_killed_process_left_is_cleared(server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    know(monkeypatch, at(server, "/good", Answer(WEIGHTS)))
    partial = cache / "checkpoints" / ".tiny.pt.partial"
    partial.mkdir(parents=True)
    (partial / "tmpabc").write_bytes(b"half")
    fetch("tiny")
    assert left_behind(cache) == ["tiny.pt"]


def test_no_space(server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    know(monkeypatch, at(server, "/good", Answer(WEIGHTS)))
    script = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from trt_sam import cli
from trt_sam.download import CATALOGUE, KnownCheckpoint
from trt_sam.download.catalogue import Url
CATALOGUE["tiny"] = KnownCheckpoint("tiny", "tiny.pt", {len(WEIGHTS)}, "{SHA256}", "", "", (Url("a", "{server.url}/good"),))
sys.exit(cli.main(["download", "tiny"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot keep tiny" in done.stderr.splitlines()[-1]
    assert "--cache" in done.stderr
    assert left_behind(cache) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="1 bytes are free"):
        fetch("tiny")
    assert server.asked == ["/good"]  # the second was refused before anything was asked


@pytest.mark.parametrize("folder", ["/proc/nowhere", "{file}/cache"])
def test_a_cache_that_cannot_be_written(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    know(monkeypatch, at(server, "/good", Answer(WEIGHTS)))
    (tmp_path / "file").write_text("a file")
    folder = folder.format(file=tmp_path / "file")
    assert cli.main(["download", "tiny", "--cache", folder]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert folder in line
    assert "--cache" in line
