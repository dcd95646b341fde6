"""Which TensorRT and which GPU an engine set is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.advice import advised
from tests.engine_sets import RTX, tiny_set
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.manifest import Manifest, open_manifest
from trt_sam.errors import ManifestError, RecipeError
from trt_sam.recipe import EngineRecipe, GraphOptions

TRT = Flavour("tensorrt", "10.16.1.11", ModuleType("tensorrt"))


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
        ((), "7.5", "--precision fp16 --backend tensorrt"),
        ((), "9.0", "--precision fp16 --backend tensorrt"),
        ((), "10.0", "--precision fp16 --backend tensorrt"),
        (("8.9",), "12.0", "--compute-capability 12.0 --backend rtx"),
        (("8.6",), "8.9", "--compute-capability 8.9 --backend rtx"),
    ],
)
def test_another_gpu_is_refused_with_the_command_that_helps(capabilities: tuple[str, ...], here: str, advice: str) -> None:
    with pytest.raises(
        ManifestError, match=f"this GPU is {here}; build again with trt-sam build .*{advice} --output"
    ) as caught:
        manifest_for(RTX, capabilities).check_fits(rtx(), here)
    assert advised(str(caught.value))[0] == "build"


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
        ManifestError, match=r"is FP8, which needs compute capability 8\.9; this GPU is 8\.6; build it in FP16"
    ) as caught:
        manifest.check_fits(rtx(), "8.6")
    assert "--precision fp16 --compute-capability 8.6,8.9 --backend rtx" in " ".join(advised(str(caught.value)))


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
