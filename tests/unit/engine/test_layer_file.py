"""The list of an engine's layers in its set: written by what TensorRT 10's inspector tells, hashed, replaced with the set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine_sets import FILES, RECIPE, RTX, names, tiny_build, tiny_set, tiny_sources, write_tiny_graph
from tests.fixtures.calibrator_calls import tensorrt_10
from tests.fixtures.tensorrt_10 import FakeTensorrt10
from trt_sam.cli import main
from trt_sam.engine.builder import BuildResult
from trt_sam.engine.engine_set import GraphSource, build_set
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.layers import Layer
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import ManifestError
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile

TOLD = {
    "Layers": [
        {
            "Name": "__myl_FcAdd_myl0_3",
            "LayerType": "gemm",
            "Inputs": [{"Name": "a", "Dimensions": [1, 4096, 256], "Format/Datatype": "Row major linear FP16 format"}],
            "TacticName": "sm90_gemm_fp16",
            "Metadata": "[ONNX Layer: first/MatMul]",
        },
        {"Name": "_gemm_mha_v2_myl0_4", "LayerType": "kgen", "Inputs": [{"Name": "q", "Dimensions": [8], "Datatype": "Half"}]},
    ]
}
LAYERS = (Layer("one", "gemm"),)


def build(path: Path, recipe: EngineRecipe, **_: object) -> BuildResult:
    return BuildResult(b"engine", (), LAYERS, 0.5, (), ())


def test_what_the_inspector_of_tensorrt_10_tells_is_in_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trt = FakeTensorrt10(tensorrt_10())
    trt.told = json.dumps(TOLD)
    flavour = Flavour("tensorrt", trt.__version__, trt)
    recipe = EngineRecipe(profiles=(ShapeProfile(num_prompts=(1, 2, 4), num_points=(1, 2, 3)),))
    source = GraphSource(lambda path: write_tiny_graph(path, GraphOptions()))
    built = build_set([source], recipe, tmp_path, flavour=flavour)
    assert built.builds[0].warnings == ()
    (graph,) = open_manifest(tmp_path).graphs
    assert graph.kernels[0].precisions == {"Half": 2}
    assert graph.kernels[0].fused_attentions == 1
    assert graph.layers is not None
    assert graph.layers.name == "decoder.layers.json"
    told = json.loads((tmp_path / graph.layers.name).read_text())
    assert told["tensorrt"] == flavour.title
    first, second = told["layers"]
    assert (first["name"], first["tactic"], first["onnx_nodes"]) == ("__myl_FcAdd_myl0_3", "sm90_gemm_fp16", ["first/MatMul"])
    assert first["inputs"] == [{"name": "a", "dims": [1, 4096, 256], "dtype": "Half", "format": "Row major linear FP16 format"}]
    assert second["inputs"][0]["dtype"] == "Half"
    assert main(["inspect", str(tmp_path)]) == 0
    assert "every layer with its types and kernel: decoder.layers.json" in capsys.readouterr().out


def test_it_belongs_to_the_set(tmp_path: Path) -> None:
    both = sorted([*FILES, *(f"decoder_mask.{end}" for end in ("engine", "onnx"))])
    build_set(tiny_sources(2), RECIPE, tmp_path, flavour=RTX, engine_builder=build)
    assert names(tmp_path) == sorted([*both, "decoder.layers.json", "decoder_mask.layers.json"])
    path = tmp_path / "decoder.layers.json"
    path.write_text(path.read_text().replace("one", "two"))
    with pytest.raises(ManifestError, match=r"decoder\.layers\.json is not the file that was built"):
        open_manifest(tmp_path)
    # A TensorRT that tells nothing replaces it by nothing.
    build_set(tiny_sources(2), RECIPE, tmp_path, flavour=RTX, engine_builder=tiny_build())
    assert names(tmp_path) == both
    assert open_manifest(tmp_path).graphs[0].layers is None


def test_older_manifests_have_none(tmp_path: Path) -> None:
    tiny_set(tmp_path)
    path = tmp_path / "manifest.json"
    data = json.loads(path.read_text())
    del data["graphs"][0]["layers"], data["verified"], data["not_verified"]
    path.write_text(json.dumps(data))
    manifest = open_manifest(tmp_path)
    assert (manifest.graphs[0].layers, manifest.verified, manifest.not_verified) == (None, None, "")
