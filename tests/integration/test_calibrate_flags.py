"""`trt-sam calibrate`: what its flags mean, and what is refused before anything is computed."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from trt_sam.commands import calibrate
from trt_sam.commands._calibration import calibration_recipe
from trt_sam.errors import InputError
from trt_sam.recipe import EngineRecipe

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def run(*flags: object) -> int:
    parser = argparse.ArgumentParser()
    calibrate.add_arguments(parser)
    return calibrate.run(parser.parse_args([str(flag) for flag in flags]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--output", "graph.engine"), "must end in .onnx"),
        (("--precision", "fp16"), "; export writes fp16"),
        (("--tiers", "A,D"), "tiers is A,D, must name each of A, B, C at most once"),
        (("--tiers", "A,A"), "at most once"),
        (("--prompts-per-image", "0"), "prompts_per_image is 0"),
        (("--checkpoint", "absent.pth"), "checkpoint not found"),
        (("--prompts", "absent.json"), "prompt file not found"),
        ((), "no embedding file"),
    ],
)
def test_bad_flags_are_told_before_anything_is_computed(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    given = {"--checkpoint": "standin", "--embeddings": str(tmp_path), "--output": str(tmp_path / "int8.onnx")}
    given |= dict(zip(flags[::2], flags[1::2], strict=True))
    with pytest.raises(InputError, match=message):
        run(*(part for pair in given.items() for part in pair))
    assert not list(tmp_path.glob("*.onnx"))


def test_fp8_takes_max_unless_something_else_is_asked_for() -> None:
    def chosen(*flags: str) -> tuple[str, str]:
        recipe = recipe_of(*flags)
        assert recipe.graph.target == "gpu"
        return recipe.graph.precision, recipe.quantization.calibrator

    assert chosen() == ("int8", "auto")
    assert chosen("--recipe", "standin") == ("int8", "auto")
    assert chosen("--precision", "fp8") == ("fp8", "max")
    assert chosen("--precision", "fp8", "--calibrator", "mse") == ("fp8", "mse")


def test_the_floor_under_entropy_can_be_taken_away() -> None:
    assert recipe_of().quantization.floor
    assert not recipe_of("--calibrator", "entropy", "--no-floor").quantization.floor


def recipe_of(*flags: str) -> EngineRecipe:
    parser = argparse.ArgumentParser()
    calibrate.add_arguments(parser)
    return calibration_recipe(parser.parse_args(["--embeddings", "x", "--output", "x.onnx", *flags]))


@pytest.mark.parametrize("flags", [("--output", "{file}/x.onnx"), ("--output", "{new}/x.onnx", "--json", "{file}/x.json")])
def test_files_that_cannot_be_written_are_told_before_photos_are_embedded(flags: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "here").write_text("here")
    given = [flag.format(file=tmp_path / "here", new=tmp_path / "new") for flag in flags]
    with pytest.raises(InputError, match=r"cannot write .*here/x\.(onnx|json): .*here is a file"):
        run("--checkpoint", "standin", "--photos", tmp_path / "none", *given)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
