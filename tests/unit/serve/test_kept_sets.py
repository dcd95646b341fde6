"""Sets in the cache: which go when a new one is written, and that nobody who uses one loses it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine_sets import RTX, tiny_build, write_tiny_encoder, write_tiny_graph
from trt_sam.commands import _kept_sets, _served
from trt_sam.commands._kept_sets import UNUSED_DAYS, hold, remove_unused
from trt_sam.engine import engine_set, flavour
from trt_sam.engine.graph_set import write_graph_set
from trt_sam.engine.manifest import open_manifest
from trt_sam.engine.set_folder import writing
from trt_sam.errors import BuildError, ManifestError
from trt_sam.recipe import EngineRecipe

fcntl = pytest.importorskip("fcntl", reason="nothing is removed where there are no locks")

CURRENT = "c" * 16
OTHER = f"{'0' * 16}-{'1' * 32}"
FILES = ("manifest.json", "decoder.onnx", "encoder.onnx")


@pytest.fixture(autouse=True)
def held() -> Iterator[dict[Any, int]]:
    """What a test holds, until it ends."""
    before = set(_kept_sets._held)
    yield _kept_sets._held
    for inode in set(_kept_sets._held) - before:
        os.close(_kept_sets._held.pop(inode))


def write_set(folder: Path, days: float = UNUSED_DAYS + 1) -> Path:
    """A set that was used `days` ago."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).write_text("{}")
    used = time.time() - days * 86400
    os.utime(folder, (used, used))
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sets_of_other_versions_go_when_they_were_not_used_for_long(tmp_path: Path) -> None:
    other, nameless = write_set(tmp_path / OTHER), write_set(tmp_path / ("2" * 32))
    graphs, killed = write_set(tmp_path / f"{OTHER}.graphs"), write_set(tmp_path / f".removed-{'3' * 32}", days=0)
    left = [write_set(tmp_path / f"{CURRENT}-{'1' * 32}{end}") for end in (".graphs", ".h_3xk2q9.graphs")]
    write_set(tmp_path / f"{CURRENT}-{'1' * 32}")
    write_set(tmp_path / f"{'0' * 16}-{'2' * 32}", days=UNUSED_DAYS - 1)
    write_set(tmp_path / "the user's own")
    assert sorted(remove_unused(tmp_path, CURRENT)) == sorted([other, nameless, graphs, killed, *left])
    assert files_in(tmp_path) == sorted([f"{CURRENT}-{'1' * 32}", f"{'0' * 16}-{'2' * 32}", "the user's own"])
    assert remove_unused(tmp_path / "nowhere", CURRENT) == []


def test_using_a_set_keeps_it_for_another_while(tmp_path: Path, held: dict[Any, int]) -> None:
    folder = write_set(tmp_path / OTHER)
    assert hold(folder)
    os.close(held.popitem()[1])
    assert remove_unused(tmp_path, CURRENT) == []
    assert files_in(folder) == sorted(FILES)


def test_a_set_that_another_process_uses_stays_until_that_ends(tmp_path: Path) -> None:
    folder = write_set(tmp_path / OTHER)
    code = "import sys; from pathlib import Path; from trt_sam.commands._kept_sets import hold; print(hold(Path(sys.argv[1])))"
    command = [sys.executable, "-u", "-c", f"{code}; input()", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "True\n"
        os.utime(folder, (0, 0))  # it has run for longer than sets are kept
        assert remove_unused(tmp_path, CURRENT) == []
        assert files_in(folder) == sorted(FILES)
        user.kill()
    assert remove_unused(tmp_path, CURRENT) == [folder]


def test_a_set_that_is_being_written_stays(tmp_path: Path) -> None:
    from trt_sam.engine.set_folder import writing

    folder = tmp_path / OTHER
    with writing(folder):
        os.utime(folder, (0, 0))
        assert remove_unused(tmp_path, CURRENT) == []
        assert folder.is_dir()


@pytest.fixture
def before_the_lock(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What others do between the moment that a folder is opened and that of its lock, once each."""
    others: list[Callable[[], object]] = []
    flock = fcntl.flock

    def late(handle: int, operation: int) -> None:
        if others:
            others.pop()()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    return others


def test_who_is_too_late_has_none(tmp_path: Path, before_the_lock: list[Callable[[], object]], held: dict[Any, int]) -> None:
    folder, before = write_set(tmp_path / OTHER), dict(held)
    before_the_lock.append(lambda: remove_unused(tmp_path, CURRENT))
    assert not hold(folder)
    assert held == before
    assert files_in(tmp_path) == []


def test_who_is_late_has_what_was_written_again(tmp_path: Path, before_the_lock: list[Callable[[], object]]) -> None:
    folder = write_set(tmp_path / OTHER)
    before_the_lock.append(lambda: (remove_unused(tmp_path, CURRENT), write_set(folder)))
    assert hold(folder)
    os.utime(folder, (0, 0))
    assert remove_unused(tmp_path, CURRENT) == []


def test_who_is_just_in_time_keeps_it(
    tmp_path: Path, before_the_lock: list[Callable[[], object]], held: dict[Any, int]
) -> None:
    folder = write_set(tmp_path / OTHER)

    def use_and_end() -> None:
        assert hold(folder)
        os.close(held.popitem()[1])

    before_the_lock.append(use_and_end)
    assert remove_unused(tmp_path, CURRENT) == []
    assert files_in(folder) == sorted(FILES)


@pytest.mark.parametrize("_", range(20))
def test_two_that_remove_and_one_that_uses_it_at_once(_: int, tmp_path: Path) -> None:
    folder = write_set(tmp_path / OTHER)
    with ThreadPoolExecutor(3) as threads:
        removers = [threads.submit(remove_unused, tmp_path, CURRENT) for _ in range(2)]
        user = threads.submit(hold, folder)
    removed = [path for remover in removers for path in remover.result()]
    assert removed == ([] if user.result() else [folder])
    assert files_in(tmp_path) == ([OTHER] if user.result() else [])
    assert not user.result() or files_in(folder) == sorted(FILES)


def test_what_is_gone_or_no_set_is_not_held(tmp_path: Path, held: dict[Any, int]) -> None:
    before = dict(held)
    assert not hold(tmp_path / OTHER)
    (tmp_path / OTHER).mkdir()
    assert not hold(tmp_path / OTHER)
    assert held == before


def test_without_locks_sets_are_used_and_none_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_set(tmp_path / OTHER)

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for module in (fcntl, None):
        monkeypatch.setattr(_kept_sets, "fcntl", module)
        assert hold(folder)
        assert not hold(tmp_path / "nowhere")
        os.utime(folder, (0, 0))
        assert remove_unused(tmp_path, CURRENT) == []
        assert files_in(folder) == sorted(FILES)


def test_a_new_set_in_the_cache_takes_the_place_of_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("TRT_SAM_CACHE", str(tmp_path))
    monkeypatch.setattr(_served, "write_encoder_set", lambda source, recipe, output, stages, decode_mask: write_set(output))
    monkeypatch.setattr("trt_sam.engine.manifest.open_manifest", lambda folder: None)
    write_set(tmp_path / "sets" / OTHER)
    folder = _served.cached_set("standin", None)
    assert files_in(tmp_path / "sets") == [folder.name]
    assert "sets of other versions removed from the cache, unused for 30 days: 1" in caplog.text
    # One of this version stays however old it is, also when another checkpoint's is written.
    os.utime(folder, (0, 0))
    os.close(_kept_sets._held.popitem()[1])
    other = _served.cached_set("standin-hard", None)
    assert files_in(tmp_path / "sets") == sorted([folder.name, other.name])
    # And is used without being written again.
    monkeypatch.setattr(_served, "write_encoder_set", None)
    assert _served.cached_set("standin", None) == folder
    assert time.time() - folder.stat().st_mtime < 60


def test_a_damaged_set_in_the_cache_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who had found it held it, and so could not write it: the advice to do that ended in "another build is writing"."""
    written: list[Path] = []

    def write(source: str, recipe: EngineRecipe, output: Path, stages: Any, *, decode_mask: bool) -> None:
        with writing(output):
            write_set(output)
            written.append(output)

    def damaged(folder: Path) -> None:
        raise ManifestError(f"{folder}/encoder.onnx is not as it was written; write the set again with trt-sam export")

    monkeypatch.setenv("TRT_SAM_CACHE", str(tmp_path))
    monkeypatch.setattr(_served, "write_encoder_set", write)
    folder = _served.cached_set("standin", None)
    monkeypatch.setattr("trt_sam.engine.manifest.open_manifest", damaged)
    assert _served.cached_set("standin", None) == folder
    assert written == [folder] * 2
    assert f"a set in the cache was damaged; it is made again: {folder}/encoder.onnx is not as it was written" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_the_graphs_of_engines_go_when_these_are_built_and_when_they_are_not(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache; the export is tiny and the build a stand-in."""
    exported: list[Path] = []

    def export(source: str, recipe: EngineRecipe, output: Path, stages: Any, *, decode_mask: bool) -> None:
        exported.append(output)
        masked = dataclasses.replace(recipe.graph, mask_input=True)
        writers: dict[str, Callable[[Path], Any]] = {
            "decode": functools.partial(write_tiny_graph, options=recipe.graph),
            "decode_mask": functools.partial(write_tiny_graph, options=masked),
            "encode": write_tiny_encoder,
        }
        write_graph_set(writers, recipe, output)

    def build(path: Path, recipe: EngineRecipe, **more: Any) -> Any:
        if fails:
            raise BuildError("no kernel")
        return tiny_build()(path, recipe, **more)

    monkeypatch.setenv("TRT_SAM_CACHE", str(tmp_path))
    monkeypatch.setattr(_served, "write_encoder_set", export)
    monkeypatch.setattr(flavour, "choose_flavour", lambda backend: RTX)
    monkeypatch.setattr(engine_set, "build_set", functools.partial(engine_set.build_set, engine_builder=build))
    with pytest.raises(BuildError, match="no kernel") if fails else contextlib.nullcontext():
        assert open_manifest(_served.cached_set("standin", 0)).recipe.checkpoint == "standin"
    assert len(exported) == 1
    assert exported[0].name.endswith(".graphs")
    assert [path.name for path in (tmp_path / "sets").iterdir() if path.name.endswith(".graphs")] == []
