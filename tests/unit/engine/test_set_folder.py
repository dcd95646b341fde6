"""A folder holds a whole engine set or none, whatever happens to the build."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine_sets import FILES, RTX, names, tiny_build, tiny_set, write_tiny_graph
from trt_sam.engine.engine_set import GraphSource, build_set, copy_graph
from trt_sam.errors import BuildError, GraphError, InputError
from trt_sam.recipe import EngineRecipe, GraphOptions

ROOT = Path(__file__).resolve().parents[3]


def fail(*_: object, **__: object) -> Any:
    raise BuildError("TensorRT says no")


def test_a_failed_build_leaves_the_older_set_as_it_was(tmp_path: Path) -> None:
    tiny_set(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(BuildError, match="says no"):
        build_set([GraphSource(write_tiny_graph)], EngineRecipe(), tmp_path, flavour=RTX, engine_builder=fail)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failed_first_build_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="says no"):
        build_set([GraphSource(write_tiny_graph)], EngineRecipe(), tmp_path / "new", flavour=RTX, engine_builder=fail)
    assert names(tmp_path) == []


def test_two_builds_do_not_mix(tmp_path: Path) -> None:
    def meanwhile(path: Path, recipe: EngineRecipe, **options: Any) -> Any:
        with pytest.raises(BuildError, match="another build is writing into"):
            tiny_set(tmp_path)
        return tiny_build()(path, recipe, **options)

    build_set([GraphSource(write_tiny_graph)], EngineRecipe(), tmp_path, flavour=RTX, engine_builder=meanwhile)
    assert names(tmp_path) == FILES


def test_a_graph_that_is_no_decoder_or_for_the_cpu_is_refused(tmp_path: Path) -> None:
    def changed(path: Path) -> None:
        write_tiny_graph(path)
        path.write_bytes(path.read_bytes().replace(b"point_labels", b"point_levels"))

    with pytest.raises(GraphError, match=r"point_levels.*but its options promise.*point_labels"):
        build_set([GraphSource(changed)], EngineRecipe(), tmp_path, flavour=RTX, engine_builder=tiny_build())
    with pytest.raises(BuildError, match="--target gpu"):
        tiny_set(tmp_path, options=GraphOptions(target="cpu"))
    assert names(tmp_path) == []


def test_an_existing_graph_is_copied(tmp_path: Path) -> None:
    write_tiny_graph(tmp_path / "mine.onnx")
    source = GraphSource(copy_graph(tmp_path / "mine.onnx"))
    build_set([source], EngineRecipe(), tmp_path / "set", flavour=RTX, engine_builder=tiny_build())
    assert (tmp_path / "set" / "decoder.onnx").read_bytes() == (tmp_path / "mine.onnx").read_bytes()
    with pytest.raises(InputError, match="not found"):
        copy_graph(tmp_path / "missing.onnx")


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot write .*file.*choose another --output"):
        tiny_set(tmp_path / "file")


@pytest.mark.parametrize("size", [500, 100_000], ids=["the graph does not fit", "the engine does not fit"])
def test_a_full_disk_leaves_the_older_set_as_it_was(tmp_path: Path, size: int) -> None:
    tiny_set(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert 500 < len(before["decoder.onnx"]) < 100_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*File too large; choose another --output"):
            build_set(
                [GraphSource(write_tiny_graph)],
                EngineRecipe(),
                tmp_path,
                flavour=RTX,
                engine_builder=tiny_build(bytes(200_000)),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moments", ["random", "every"])
def test_a_build_killed_at_any_moment_leaves_a_whole_set_or_none(tmp_path: Path, moments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.engine.kill_builds", str(tmp_path / "set"), moments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["left"] == FILES
    # Both ends must have been seen, or the kills missed what they were for.
    assert report["whole"] >= 5
    assert report["none"] >= 5
