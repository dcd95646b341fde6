"""Building a set of two graphs: what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine_sets import FILES, MASK, PLAIN, RECIPE, RTX, names, tiny_build, tiny_set, tiny_sources, write_tiny_graph
from trt_sam.engine.builder import BuildResult
from trt_sam.engine.engine_set import GraphSource, build_set, check_one_image
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import BuildError, RecipeError
from trt_sam.recipe import EngineRecipe, GraphOptions
from trt_sam.recipe_toml import load_recipe

TWO = sorted([*FILES, "decoder_mask.engine", "decoder_mask.onnx"])


def test_the_manifest_has_both_graphs_and_their_calibrations(tmp_path: Path) -> None:
    sources = [dataclasses.replace(each, calibration=mark * 64) for each, mark in zip(tiny_sources(2), "ab", strict=True)]
    built = build_set(sources, RECIPE, tmp_path, flavour=RTX, engine_builder=tiny_build())
    manifest = open_manifest(tmp_path)
    assert manifest == built.manifest
    assert names(tmp_path) == TWO
    assert [graph.role for graph in manifest.graphs] == ["decode", "decode_mask"]
    assert [graph.engine.name for graph in manifest.graphs] == ["decoder.engine", "decoder_mask.engine"]
    assert [graph.calibration for graph in manifest.graphs] == ["a" * 64, "b" * 64]
    assert manifest.calibration == "a" * 64
    assert manifest.recipe.decode_mask
    assert manifest.recipe.graph == GraphOptions()
    assert manifest.graph("decode_mask").options == GraphOptions(mask_input=True)
    assert manifest.created["build_seconds"] == 1.0
    assert len(built.builds) == 2


def test_a_manifest_that_says_its_calibration_once_still_opens(tmp_path: Path) -> None:
    build_set(
        [dataclasses.replace(tiny_sources()[0], calibration="c" * 64)],
        EngineRecipe(),
        tmp_path,
        flavour=RTX,
        engine_builder=tiny_build(),
    )
    path = tmp_path / "manifest.json"
    data = json.loads(path.read_text())
    del data["graphs"][0]["calibration"], data["recipe"]["decode_mask"]
    path.write_text(json.dumps(data))
    manifest = open_manifest(tmp_path)
    assert manifest.graphs[0].calibration == manifest.calibration == "c" * 64
    assert not manifest.recipe.decode_mask


def test_progress_rises_over_both_builds(tmp_path: Path) -> None:
    seen: list[float] = []

    def builder(path: Path, recipe: EngineRecipe, **options: Any) -> BuildResult:
        for fraction in (0.0, 0.5, 1.0):
            options["progress"](fraction, "phase")
        return tiny_build()(path, recipe)

    build_set(
        tiny_sources(2), RECIPE, tmp_path, flavour=RTX, engine_builder=builder, progress=lambda done, _: seen.append(done)
    )
    assert seen == [0.0, 0.25, 0.5, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("graphs", "decode_mask", "words"),
    [
        ([PLAIN], True, "there are 1 graphs, but decode_mask is True: give two graphs, without and with mask_input"),
        ([PLAIN, MASK], False, "there are 2 graphs, but decode_mask is False: give one graph"),
        ([], False, "there are 0 graphs"),
        ([MASK, PLAIN], True, "differ in mask_input alone"),
        ([PLAIN, PLAIN], True, "differ in mask_input alone"),
        ([PLAIN, dataclasses.replace(MASK, best_mask=True)], True, "differ in mask_input alone"),
    ],
)
def test_graphs_that_are_no_set_are_refused(tmp_path: Path, graphs: list[GraphOptions], decode_mask: bool, words: str) -> None:
    sources = [GraphSource(lambda path, each=each: write_tiny_graph(path, each)) for each in graphs]
    with pytest.raises(BuildError, match=words):
        build_set(sources, EngineRecipe(decode_mask=decode_mask), tmp_path, flavour=RTX, engine_builder=tiny_build())
    assert names(tmp_path) == []


def test_graphs_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    def other(path: Path) -> None:
        write_tiny_graph(path, MASK)
        path.write_bytes(path.read_bytes().replace(b"ab" * 32, b"cd" * 32))

    with pytest.raises(BuildError, match="of different checkpoints"):
        build_set([tiny_sources(1, PLAIN)[0], GraphSource(other)], RECIPE, tmp_path, flavour=RTX, engine_builder=tiny_build())


@pytest.mark.parametrize("stop", [BuildError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("older", [1, 2])
def test_a_second_graph_that_is_not_built_leaves_the_older_set(tmp_path: Path, older: int, stop: BaseException) -> None:
    tiny_set(tmp_path, recipe=EngineRecipe(decode_mask=older == 2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def builder(path: Path, recipe: EngineRecipe, **_: object) -> BuildResult:
        if path.name == "decoder_mask.onnx":
            raise stop
        return tiny_build(b"other")(path, recipe)

    with pytest.raises(type(stop)):
        build_set(tiny_sources(2), RECIPE, tmp_path, flavour=RTX, engine_builder=builder)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_graph_after_two_leaves_nothing_of_the_second(tmp_path: Path) -> None:
    tiny_set(tmp_path, recipe=RECIPE)
    (tmp_path / "decoder_mask.engine.rtx-cache").write_bytes(b"kernels")
    tiny_set(tmp_path)
    assert names(tmp_path) == FILES


def test_a_file_of_the_users_is_not_taken_for_a_second_graph(tmp_path: Path) -> None:
    (tmp_path / "decoder_mask.onnx").write_text("mine")
    tiny_set(tmp_path)
    tiny_set(tmp_path)
    assert (tmp_path / "decoder_mask.onnx").read_text() == "mine"


def test_a_recipe_says_it(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("decode_mask = true\n")
    assert load_recipe(str(tmp_path / "r.toml")).decode_mask
    with pytest.raises(RecipeError, match="decode_mask is 1, must be true or false"):
        EngineRecipe(decode_mask=1)  # type: ignore[arg-type]


def test_a_graph_of_several_images_is_refused() -> None:
    with pytest.raises(BuildError, match="takes 3 images a call, an engine's runner one: export it without --images"):
        check_one_image(GraphOptions(images=3))
    check_one_image(GraphOptions())
