"""What is said of what is no set, and the command that writes a set again: read off the set's manifest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.advice import advised
from tests.engine_sets import RTX, tiny_build, tiny_set, tiny_sources, write_tiny_encoder, write_tiny_graph
from tests.helpers import error_line
from trt_sam.cli import main
from trt_sam.engine.engine_set import GraphSource, build_set
from trt_sam.engine.graph_set import write_graph_set
from trt_sam.errors import ContractError, ManifestError
from trt_sam.graph.advice import command_of_set
from trt_sam.recipe import EngineRecipe, GraphOptions
from trt_sam.recipe_toml import load_recipe
from trt_sam.runtime.call.decode import check_asked
from trt_sam.runtime.set_graphs import graphs_of_set

NEW_SET = "trt-sam export --checkpoint mobile_sam --encoder --output SET"


def command(folder: Path) -> str:
    text = command_of_set(folder, json.loads((folder / "manifest.json").read_text()))
    return text.removesuffix(f" --output {folder}")


def graph_set(folder: Path, *roles: str) -> Path:
    """As `trt-sam export --encoder --mask-bits` writes one."""
    plain = GraphOptions(precision="fp32", target="cpu", mask_bits=True)
    masked = GraphOptions(precision="fp32", target="cpu", mask_bits=True, mask_input=True)
    writers = {
        "decode": lambda path: write_tiny_graph(path, plain),
        "decode_mask": lambda path: write_tiny_graph(path, masked),
        "encode": lambda path: write_tiny_encoder(path, "fp32"),
    }
    write_graph_set({role: writers[role] for role in roles}, EngineRecipe(graph=plain), folder)
    return folder


def engine_set(folder: Path, recipe: EngineRecipe) -> Path:
    """As `trt-sam build --encoder` writes one."""
    build_set(
        tiny_sources(1 + recipe.decode_mask),
        recipe,
        folder,
        flavour=RTX,
        encoder=GraphSource(write_tiny_encoder),
        engine_builder=tiny_build(),
    )
    return folder


def test_a_set_of_graphs_is_exported_again(tmp_path: Path) -> None:
    both = graph_set(tmp_path / "both", "decode", "decode_mask", "encode")
    export = "trt-sam export --checkpoint CHECKPOINT --precision fp32 --target cpu --encoder"
    assert command(both) == f"{export} --decode-mask --mask-bits"
    assert command(graph_set(tmp_path / "one", "decode", "encode")) == f"{export} --mask-bits"


def test_a_set_of_engines_is_built_again(tmp_path: Path) -> None:
    recipe = EngineRecipe(decode_mask=True, compute_capabilities=("8.9", "12.0"))
    gpus = "--compute-capability 8.9,12.0"
    build = "trt-sam build --checkpoint CHECKPOINT --precision fp16"
    assert command(engine_set(tmp_path / "a", recipe)) == f"{build} --encoder {gpus} --backend rtx --decode-mask"
    tiny_set(tmp_path / "b")
    assert command(tmp_path / "b") == f"{build} --backend rtx"
    build = "trt-sam build --checkpoint mobile_sam --recipe mobile_sam --precision fp16"
    assert command(engine_set(tmp_path / "c", load_recipe("mobile_sam"))) == f"{build} --encoder --backend rtx"


def test_a_recipe_of_ones_own_and_an_encoder_of_its_own_have_to_be_named(tmp_path: Path) -> None:
    folder = engine_set(tmp_path / "set", EngineRecipe(name="mine"))
    data = json.loads((folder / "manifest.json").read_text())
    data["graphs"][-1]["options"]["precision"] = "int8"
    (folder / "manifest.json").write_text(json.dumps(data))
    assert " --recipe RECIPE.toml --precision fp16 --encoder-onnx ENCODER.onnx " in command(folder)


@pytest.mark.parametrize("damage", ["missing", "changed", "manifest"])
@pytest.mark.parametrize("engines", [False, True])
def test_a_damaged_set_says_the_whole_command(damage: str, engines: bool, tmp_path: Path) -> None:
    folder = tmp_path / "a set"
    if engines:
        engine_set(folder, EngineRecipe(decode_mask=True))
    else:
        graph_set(folder, "decode", "decode_mask", "encode")
    match damage:
        case "missing":
            (folder / "encoder.onnx").unlink()
        case "changed":
            (folder / "encoder.onnx").write_bytes(b"another")
        case "manifest":
            (folder / "manifest.json").write_text("{")
    with pytest.raises(ManifestError) as caught:
        graphs_of_set(folder)
    _, _, advice = str(caught.value).partition("; write the set again with ")
    assert advice.startswith(f"trt-sam {'build' if engines else 'export'} --checkpoint CHECKPOINT ")
    assert " --encoder " in advice
    assert (" --decode-mask " in advice) == (damage != "manifest")
    assert advice.endswith(f" --output '{folder}'")
    assert "\n" not in advice


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "photos",
            f"photos is no set with a manifest: it has no manifest.json; give a set's folder, or write one with {NEW_SET}",
        ),
        ("nosuch", f"nosuch is no set with a manifest: it does not exist; give a set's folder, or write one with {NEW_SET}"),
        ("photos/a.png", "photos/a.png is no set with a manifest: it is a file; give a set's folder"),
        ("set/decoder.onnx", "set/decoder.onnx is a file of a set, and no set with a manifest itself; give its folder, set"),
    ],
)
def test_segment_of_no_set(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save("photos/a.png")
    graph_set(Path("set"), "decode", "encode")
    assert main(["segment", "photos/a.png", "--set", given, "--point", "3,4", "--output", "mask.png"]) == 2
    assert said in error_line(capsys.readouterr().err)
    assert not Path("mask.png").exists()


def test_graphs_do_not_take_the_place_of_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = engine_set(tmp_path / "set", EngineRecipe(decode_mask=True))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["export", "--checkpoint", "standin", "--encoder", "--output", str(folder)]) == 2
    said = error_line(capsys.readouterr().err)
    assert "holds a set with decoder.engine, decoder_mask.engine, encoder.engine, which graphs alone would replace" in said
    assert said.rstrip().endswith(f"--encoder --backend rtx --decode-mask --output {folder}")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("damaged", ["{", '{"schema": 99}', "recipe"])
def test_graphs_do_not_take_the_place_of_engines_with_a_damaged_manifest(
    damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = engine_set(tmp_path / "a set", EngineRecipe(decode_mask=True))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"] = {"surprise": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest) if damaged == "recipe" else damaged)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["export", "--checkpoint", "standin", "--encoder", "--output", str(folder)]) == 2
    said = error_line(capsys.readouterr().err)
    assert "holds a set with decoder.engine, decoder_mask.engine, encoder.engine, which graphs alone would replace" in said
    assert advised(said)[0] == "build"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_graph_without_masks_names_the_flags_of_export_and_build() -> None:
    with pytest.raises(ContractError, match=r"--mask-input, or its set with --decode-mask \(export --encoder --decode"):
        check_asked((), (), masks="best", bits=False, with_mask=True, image_size=None)
