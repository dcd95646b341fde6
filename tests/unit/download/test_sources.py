"""What a source of a checkpoint may answer, over real HTTP."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

pytest.importorskip("pooch")
pytest.importorskip("pypi_simple")

from tests.fixtures.file_server import Answer, FileServer
from tests.fixtures.tiny_checkpoint import HTML, SHA256, WEIGHTS, WRONG, at, know, left_behind
from trt_sam import cli
from trt_sam.download import NoSourceError, cached_path, fetch
from trt_sam.download.catalogue import Url
from trt_sam.errors import CheckpointError


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


@pytest.mark.parametrize("end", ["", "/"])
def test_files_of_the_hub_come_from_its_mirror(server: FileServer, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    at(server, "/hub/owner/name/resolve/main/tiny.pt", Answer(WEIGHTS))
    at(server, "/elsewhere", Answer(status=404))
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/hub{end}")
    know(
        monkeypatch,
        Url("another server", f"{server.url}/elsewhere"),
        Url("the hub", "https://huggingface.co/owner/name/resolve/main/tiny.pt"),
    )
    assert fetch("tiny").read_bytes() == WEIGHTS
    assert server.asked == ["/elsewhere", "/hub/owner/name/resolve/main/tiny.pt"]
