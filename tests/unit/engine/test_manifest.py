"""Engine sets and their manifest: what is written, what is refused and in which words, and what a kill leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.advice import advised
from tests.engine_sets import FILES, names, tiny_set
from trt_sam._files import sha256_of
from trt_sam.contract import input_specs, output_specs
from trt_sam.engine.layers import KernelSummary
from trt_sam.engine.manifest import Manifest, open_manifest, write_manifest
from trt_sam.errors import ManifestError
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    recipe = EngineRecipe(
        name="mine",
        profiles=(ShapeProfile(num_prompts=(1, 1, 1)), ShapeProfile(num_prompts=(2, 8, 32), num_points=(3, 4, 5))),
        compute_capabilities=("8.9", "12.0"),
    )
    options = GraphOptions(mask_input=True, full_resolution=True, mask_bits=True)
    built = tiny_set(tmp_path, recipe=recipe, options=options)
    manifest = open_manifest(tmp_path)
    assert manifest == built.manifest
    assert names(tmp_path) == FILES
    assert (manifest.flavour, manifest.flavour_version, manifest.target) == ("tensorrt_rtx", "1.7.1.116", "gpu")
    assert manifest.compute_capabilities == ("8.9", "12.0")
    assert (manifest.recipe.name, manifest.recipe.profiles) == ("mine", recipe.profiles)
    graph = manifest.graph("decode_mask")
    assert graph.inputs == input_specs(mask_input=True, full_resolution=True)
    assert graph.outputs == output_specs(full_resolution=True, mask_bits=True, dtype="float16")
    assert graph.limits == {"num_prompts": (1, 32), "num_points": (1, 32), "height": (1, 4096), "width": (1, 4096)}
    assert graph.options == manifest.recipe.graph == options
    assert graph.kernels == (KernelSummary(kernels=3),)
    assert (graph.onnx.sha256, graph.checkpoint_sha256) == (sha256_of(tmp_path / "decoder.onnx"), "ab" * 32)
    assert manifest.read(graph.engine) == b"engine"
    assert open_manifest(tmp_path / "manifest.json") == manifest


def test_a_manifest_from_before_mask_bits_has_none(tmp_path: Path) -> None:
    tiny_set(tmp_path)
    data = json.loads((tmp_path / "manifest.json").read_text())
    for options in (data["graphs"][0]["options"], data["recipe"]["graph"]):
        assert options.pop("mask_bits") is False
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    manifest = open_manifest(tmp_path)
    assert not manifest.graph("decode").options.mask_bits
    assert not manifest.recipe.graph.mask_bits


def test_a_graph_without_mask_and_size_has_the_role_decode_and_no_size_limits(tmp_path: Path) -> None:
    manifest = tiny_set(tmp_path).manifest
    assert manifest.graph("decode").limits == {"num_prompts": (1, 16), "num_points": (1, 32)}
    with pytest.raises(ManifestError, match="has no 'encode' graph, only decode"):
        manifest.graph("encode")


@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.engine"])
def test_a_changed_or_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    tiny_set(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ManifestError, match=rf"{name} is not the file that was built.*write the set again"):
        open_manifest(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ManifestError, match=rf"{name} is missing.*write the set again"):
        open_manifest(tmp_path)
    assert open_manifest(tmp_path, verify=False).flavour == "tensorrt_rtx"


def test_no_manifest_is_no_engine_set(tmp_path: Path) -> None:
    tiny_set(tmp_path)
    (tmp_path / "manifest.json").unlink()
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "decoder.onnx"):
        with pytest.raises(ManifestError, match=r"is no engine set.*build one with trt-sam build") as caught:
            open_manifest(folder)
        assert advised(str(caught.value))[0] == "build"
    tiny_set(tmp_path / "set")
    with pytest.raises(ManifestError, match=rf"is a file; give its folder, {tmp_path / 'set'}$"):
        open_manifest(tmp_path / "set" / "decoder.engine")


def test_a_newer_schema_asks_for_a_newer_package(tmp_path: Path) -> None:
    tiny_set(tmp_path)
    edit(tmp_path, lambda data: data.update(schema=2, graphs="all is different"))
    with pytest.raises(ManifestError, match=r"schema 2, this trt-sam reads up to 1; install the newer trt-sam") as caught:
        open_manifest(tmp_path)
    assert advised(str(caught.value))[0] == "build"


def test_a_key_that_a_later_version_adds_is_skipped(tmp_path: Path) -> None:
    tiny_set(tmp_path)
    edit(tmp_path, lambda data: (data.update(novelty=1), data["graphs"][0].update(novelty=2)))
    assert open_manifest(tmp_path).graph("decode").role == "decode"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\0b", "C:x", 7])
def test_a_file_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    tiny_set(tmp_path)
    edit(tmp_path, lambda data: data["graphs"][0]["engine"].update(name=name))
    with pytest.raises(ManifestError, match="name"):
        open_manifest(tmp_path, verify=False)


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "schema": lambda d: d.update(schema="1"),
    "schema 0": lambda d: d.update(schema=0),
    "no tensorrt": lambda d: d.pop("tensorrt"),
    "unknown flavour": lambda d: d["tensorrt"].update(flavour="tvm"),
    "no graphs": lambda d: d.update(graphs=[]),
    "a role twice": lambda d: d.update(graphs=d["graphs"] * 2),
    "an unknown role": lambda d: d["graphs"][0].update(role="sing"),
    "a graph that is text": lambda d: d.update(graphs=["decode"]),
    "hash": lambda d: d["graphs"][0]["onnx"].update(sha256="AB"),
    "size": lambda d: d["graphs"][0]["onnx"].update(size=-1),
    "dtype": lambda d: d["graphs"][0]["inputs"][0].update(dtype="float17"),
    "dims": lambda d: d["graphs"][0]["inputs"][0].update(dims=[1.5]),
    "limits": lambda d: d["graphs"][0]["limits"].update(num_points=[8, 1]),
    "options": lambda d: d["graphs"][0]["options"].update(precision="int3"),
    "kernels": lambda d: d["graphs"][0]["kernels"][0].update(kernels=-1),
    "recipe": lambda d: d["recipe"].update(surprise=1),
    "profiles": lambda d: d["recipe"]["profiles"][0].update(num_points=[3, 2, 1]),
    "capabilities": lambda d: d.update(compute_capabilities=[89]),
    "calibration": lambda d: d.update(calibration=[]),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_manifest_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tiny_set(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ManifestError, match=r"is damaged \(.*write the set again") as caught:
        open_manifest(tmp_path)
    assert advised(str(caught.value))[-1] == str(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"schema": 1}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match="is damaged"):
        open_manifest(tmp_path)


def test_binary_noise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="is not text"):
        open_manifest(tmp_path)


def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    manifest = tiny_set(tmp_path).manifest
    before = (tmp_path / "manifest.json").read_bytes()
    wrong = Manifest(tmp_path, (), manifest.recipe, manifest.flavour, manifest.flavour_version)
    with pytest.raises(ManifestError, match="at least one"):
        write_manifest(wrong)
    assert (tmp_path / "manifest.json").read_bytes() == before
