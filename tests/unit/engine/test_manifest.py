"""Engine sets and their manifest: what is written, what is refused and in which words, and what a kill leaves."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.engine_sets import RTX, tiny_build, tiny_set, write_tiny_graph
from trt_sam._files import sha256_of
from trt_sam.contract import input_specs, output_specs
from trt_sam.engine.engine_set import GraphSource, build_set, copy_graph
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.layers import KernelSummary
from trt_sam.engine.manifest import Manifest, open_manifest, write_manifest
from trt_sam.errors import BuildError, GraphError, InputError, ManifestError, RecipeError
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile

ROOT = Path(__file__).resolve().parents[3]
TRT = Flavour("tensorrt", "10.16.1.11", ModuleType("tensorrt"))
FILES = ["decoder.engine", "decoder.onnx", "manifest.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    with pytest.raises(ManifestError, match=rf"{name} is not the file that was built.*build the set again"):
        open_manifest(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ManifestError, match=rf"{name} is missing.*build the set again"):
        open_manifest(tmp_path)
    assert open_manifest(tmp_path, verify=False).flavour == "tensorrt_rtx"


def test_no_manifest_is_no_engine_set(tmp_path: Path) -> None:
    tiny_set(tmp_path)
    (tmp_path / "manifest.json").unlink()
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "decoder.onnx"):
        with pytest.raises(ManifestError, match=r"is no engine set.*build one with trt-sam build"):
            open_manifest(folder)


def test_a_newer_schema_asks_for_a_newer_package(tmp_path: Path) -> None:
    tiny_set(tmp_path)
    edit(tmp_path, lambda data: data.update(schema=2, graphs="all is different"))
    with pytest.raises(ManifestError, match=r"schema 2, this trt-sam reads up to 1; pip install --upgrade"):
        open_manifest(tmp_path)


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
    with pytest.raises(ManifestError, match=r"is damaged \(.*build the set again"):
        open_manifest(tmp_path)


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


def rtx(version: str = "1.7.1.116") -> Flavour:
    members = dict.fromkeys(("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120"))
    module = ModuleType("tensorrt_rtx")
    module.ComputeCapability = SimpleNamespace(__members__=members)  # type: ignore[attr-defined]
    return Flavour("rtx", version, module)


def manifest_for(flavour: Flavour, capabilities: tuple[str, ...], **recipe: bool) -> Manifest:
    return Manifest(Path("set"), (), EngineRecipe(**recipe), flavour.name, flavour.version, compute_capabilities=capabilities)


@pytest.mark.parametrize(
    ("capabilities", "here"),
    [
        ((), "8.0"),
        ((), "8.6"),
        ((), "8.9"),
        ((), "12.0"),
        ((), "12.1"),
        ((), None),
        (("8.9", "12.0"), "8.9"),
        (("7.5",), "7.5"),
    ],
)
def test_a_gpu_that_rtx_built_for_fits(capabilities: tuple[str, ...], here: str | None) -> None:
    manifest_for(RTX, capabilities).check_fits(rtx(), here)


@pytest.mark.parametrize(
    ("capabilities", "here", "advice"),
    [
        ((), "7.5", "--backend rtx --compute-capability 7.5"),
        ((), "9.0", "--backend tensorrt --output"),
        ((), "10.0", "--backend tensorrt --output"),
        (("8.9",), "12.0", "--backend rtx --compute-capability 12.0"),
        (("8.6",), "8.9", "--backend rtx --compute-capability 8.9"),
    ],
)
def test_another_gpu_is_refused_with_the_command_that_helps(capabilities: tuple[str, ...], here: str, advice: str) -> None:
    with pytest.raises(ManifestError, match=f"this GPU is {here}; build again with trt-sam build {advice}"):
        manifest_for(RTX, capabilities).check_fits(rtx(), here)


def test_another_version_is_refused_with_the_pip_command() -> None:
    with pytest.raises(ManifestError, match=r"this is 1\.8\.0\.1; pip install tensorrt-rtx-cu13==1\.7\.1\.116, or build again"):
        manifest_for(RTX, ()).check_fits(rtx("1.8.0.1"), "8.9")


def test_another_flavour_is_refused() -> None:
    with pytest.raises(
        ManifestError, match=r"built by TensorRT-RTX 1\.7\.1\.116 and cannot run on TensorRT 10.*--backend tensorrt"
    ):
        manifest_for(RTX, ()).check_fits(TRT, "8.9")


def test_compatibility_modes_of_tensorrt_widen_what_fits() -> None:
    newer = Flavour("tensorrt", "10.20.0.1", TRT.trt)
    older = Flavour("tensorrt", "10.2.0.1", TRT.trt)
    manifest_for(TRT, ("9.0",)).check_fits(TRT, "9.0")
    manifest_for(TRT, ("8.6",), hardware_compatible=True).check_fits(TRT, "9.0")
    manifest_for(TRT, ("9.0",), version_compatible=True).check_fits(newer, "9.0")
    for wrong in (older, Flavour("tensorrt", "11.4.0.1", TRT.trt)):
        with pytest.raises(ManifestError, match="was built by TensorRT 10"):
            manifest_for(TRT, ("9.0",), version_compatible=True).check_fits(wrong, "9.0")
    with pytest.raises(ManifestError, match=r"this GPU is 7\.5"):
        manifest_for(TRT, ("8.6",), hardware_compatible=True).check_fits(TRT, "7.5")
    with pytest.raises(ManifestError, match=r"this GPU is 9\.0"):
        manifest_for(TRT, ("8.6",)).check_fits(TRT, "9.0")


def test_fp8_is_refused_where_a_gpu_has_none(tmp_path: Path) -> None:
    recipe = EngineRecipe(compute_capabilities=("8.6", "8.9"))
    tiny_set(tmp_path, recipe=recipe, options=GraphOptions(precision="fp8"))
    manifest = open_manifest(tmp_path)
    manifest.check_fits(rtx(), "8.9")
    with pytest.raises(
        ManifestError, match=r"is FP8, which needs compute capability 8\.9; this GPU is 8\.6; build FP16 or INT8"
    ):
        manifest.check_fits(rtx(), "8.6")


def test_another_model_of_the_same_compute_capability_is_named() -> None:
    built, here = "NVIDIA RTX A6000, 84 multiprocessors", "NVIDIA GeForce RTX 3060, 28 multiprocessors"
    tuned = replace(manifest_for(TRT, ("8.6",)), gpu_model=built)
    assert tuned.other_model(built) == tuned.other_model(None) == ""
    assert f"built on {built}, this is {here}" in tuned.other_model(here)
    assert manifest_for(TRT, ("8.6",)).other_model(here) == ""  # an older set does not say
    for portable in ({"any_model": True}, {"hardware_compatible": True}):
        assert replace(manifest_for(TRT, ("8.6",), **portable), gpu_model=built).other_model(here) == ""
    with pytest.raises(RecipeError, match="any_model and hardware_compatible are both set"):
        EngineRecipe(any_model=True, hardware_compatible=True)


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
