"""The files that `trt-sam triton` writes, and what it refuses. `tests/services` starts a real Triton on them."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.engine_sets import tiny_build, tiny_set, tiny_sources, write_tiny_encoder, write_tiny_graph
from trt_sam.cli import main
from trt_sam.commands import triton
from trt_sam.engine.engine_set import GraphSource, build_set
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.graph_set import write_graph_set
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile

TENSORRT = Flavour("tensorrt", "10.13.3.9", ModuleType("tensorrt"))
PROFILES = (ShapeProfile((1, 1, 4), (2, 3, 8)), ShapeProfile((1, 8, 32), (2, 3, 8)))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of TensorRT 10, float16, with two decoders and an image encoder."""
    return engine_set(tmp_path_factory.mktemp("engines") / "set", EngineRecipe(decode_mask=True, profiles=PROFILES))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of graphs for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("graphs") / "set"
    options = GraphOptions(precision="fp32", target="cpu")
    writers = {
        "decode": functools.partial(write_tiny_graph, options=options),
        "encode": functools.partial(write_tiny_encoder, precision="fp32"),
    }
    write_graph_set(writers, EngineRecipe(graph=options), folder)
    return folder


def engine_set(folder: Path, recipe: EngineRecipe, flavour: Flavour = TENSORRT) -> Path:
    build_set(
        tiny_sources(1 + recipe.decode_mask),
        recipe,
        folder,
        flavour=dataclasses.replace(flavour),
        encoder=GraphSource(write_tiny_encoder),
        engine_builder=tiny_build(b"an engine"),
    )
    return folder


def fields_of(config: Path, kind: str) -> dict[str, tuple[str, list[int]]]:
    """Type and dimensions by name of the inputs or outputs in a config.pbtxt."""
    pattern = kind + r' \{\s+name: "(\w+)"\s+data_type: (\w+)\s+dims: \[ ([-\d, ]+) \]'
    return {name: (of, json.loads(f"[{dims}]")) for name, of, dims in re.findall(pattern, config.read_text())}


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main(["triton", *map(str, words)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_engines_become_plans(engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "repository"
    assert main(["triton", str(engines), "--output", str(output), "--backend", "tensorrt", "--images", "7"]) == 0
    assert "TensorRT 10.13.3.9" in capsys.readouterr().out
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert files == {
        ".trt-sam-triton",
        "README.md",
        *(f"sam/{name}" for name in ("config.pbtxt", "1/model.py", "1/contract.json")),
        *(f"sam_{name}/{file}" for name in ("encoder", "decoder") for file in ("config.pbtxt", "1/model.plan")),
    }
    assert (output / "sam_decoder/1/model.plan").read_bytes() == b"an engine"
    assert "10.13.3.9" in (output / "README.md").read_text()
    encoder, decoder, sam = (output / name / "config.pbtxt" for name in ("sam_encoder", "sam_decoder", "sam"))
    assert fields_of(encoder, "input") == {
        "image": ("TYPE_UINT8", [1, 1024, 1024, 3]),
        "image_size": ("TYPE_INT32", [2]),
    }
    assert fields_of(encoder, "output") == {"image_embeddings": ("TYPE_FP16", [1, 256, 64, 64])}
    assert fields_of(decoder, "input")["point_coords"] == ("TYPE_FP32", [-1, -1, 2])
    assert fields_of(decoder, "input")["mask_input"] == ("TYPE_FP32", [-1, 1, 256, 256])
    assert fields_of(decoder, "output")["low_res_masks"] == ("TYPE_FP16", [-1, 4, 256, 256])
    assert 'profile: [ "0", "1" ]' in decoder.read_text()
    for config in (encoder, decoder, sam):
        assert "max_batch_size: 0" in config.read_text()
        assert "KIND_GPU" in config.read_text()
    assert 'key: "FORCE_CPU_ONLY_INPUT_TENSORS"\n  value: { string_value: "no" }' in sam.read_text()
    assert 'key: "images"\n  value: { string_value: "7" }' in sam.read_text()
    contract = json.loads((output / "sam/1/contract.json").read_text())
    assert contract["limits"]["num_points"] == [2, 8]
    assert contract["most_prompts"] == 32


def test_graphs_run_on_a_cpu(graphs: Path, tmp_path: Path) -> None:
    output = tmp_path / "repository"
    assert main(["triton", str(graphs), "--output", str(output)]) == 0
    assert (output / "sam_decoder/1/model.onnx").read_bytes() == (graphs / "decoder.onnx").read_bytes()
    for name in ("sam", "sam_encoder", "sam_decoder"):
        config = (output / name / "config.pbtxt").read_text()
        assert 'backend: "python"' in config
        assert "KIND_CPU" in config
        compile((output / name / "1/model.py").read_text(), name, "exec")
    assert "mask_input" not in fields_of(output / "sam/config.pbtxt", "input")


def test_a_set_without_encoder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_set(tmp_path / "set", flavour=TENSORRT)
    assert "has no image encoder, only decode" in refused(capsys, tmp_path / "set", "--output", tmp_path / "repository")
    repository, nothing = ("--output", tmp_path / "repository"), tmp_path / "nothing"
    assert "neither a set with a manifest nor a checkpoint" in refused(capsys, nothing, *repository)
    assert "is no engine set" in refused(capsys, nothing, *repository, "--backend", "tensorrt")
    assert not (tmp_path / "repository").exists()


def test_a_checkpoints_name_takes_its_set_from_the_cache(graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int | None]] = []
    monkeypatch.setattr(triton, "cached_set", lambda name, device: asked.append((name, device)) or graphs)
    assert main(["triton", "mobile_sam", "--output", str(tmp_path / "repository")]) == 0
    assert asked == [("mobile_sam", None)]
    assert (tmp_path / "repository/sam_encoder/1/model.onnx").is_file()


def test_engines_of_another_tensorrt_are_refused_with_both_versions(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (engines, "--output", tmp_path / "repository", "--backend", "tensorrt", "--tensorrt-version")
    said = refused(capsys, *words, "10.14.1.48")
    assert "built by TensorRT 10.13.3.9" in said
    assert "this Triton has 10.14.1.48" in said
    assert "must be numbers" in refused(capsys, *words, "newest")
    assert main(["triton", *map(str, words), "10.13.3.9"]) == 0


def test_engines_made_to_be_compatible_go_with_a_newer_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = engine_set(tmp_path / "set", EngineRecipe(version_compatible=True))
    words = ["triton", str(folder), "--output", str(tmp_path / "repository"), "--backend", "tensorrt", "--tensorrt-version"]
    assert main([*words, "10.14.1.48"]) == 0
    assert "tensorrt,version-compatible=true" in (tmp_path / "repository/README.md").read_text()
    capsys.readouterr()
    assert "this Triton has 11.1.0" in refused(capsys, *words[1:], "11.1.0", "--force")


def test_what_has_no_engines_of_tensorrt_is_refused(graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ("--output", tmp_path / "repository", "--backend", "tensorrt")
    assert "no engines" in refused(capsys, graphs, *output)
    rtx = engine_set(tmp_path / "rtx", EngineRecipe(), Flavour("rtx", "1.7.1.116", ModuleType("tensorrt_rtx")))
    assert "TensorRT for RTX 1.7.1.116" in refused(capsys, rtx, *output)


def test_a_folder_that_is_there_is_kept(graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "repository"
    assert main(["triton", str(graphs), "--output", str(output)]) == 0
    (output / "mine").write_text("kept")
    capsys.readouterr()
    assert "--force replaces it" in refused(capsys, graphs, "--output", output)
    assert (output / "mine").read_text() == "kept"
    assert main(["triton", str(graphs), "--output", str(output), "--force"]) == 0
    assert not (output / "mine").exists()
    assert list(tmp_path.iterdir()) == [output]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "photo.jpg").write_text("mine")
    capsys.readouterr()
    assert "no repository of trt-sam triton" in refused(capsys, graphs, "--output", other, "--force")
    assert (other / "photo.jpg").exists()


def test_a_full_disk_leaves_nothing(
    graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in refused(capsys, graphs, "--output", tmp_path / "repository")
    assert list(tmp_path.iterdir()) == []
