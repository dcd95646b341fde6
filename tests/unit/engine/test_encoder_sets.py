"""Sets with an image encoder: what is written, what an older set leaves, what does not belong together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine_sets import RTX, names, tiny_build, tiny_set, tiny_sources, write_tiny_encoder, write_tiny_graph
from trt_sam.engine.engine_set import GraphSource, build_set
from trt_sam.engine.graph_set import write_graph_set
from trt_sam.engine.manifest import Manifest, open_manifest
from trt_sam.errors import BuildError, GraphError, ManifestError
from trt_sam.recipe import EngineRecipe, GraphOptions
from trt_sam.runtime.set_graphs import graphs_of_set

CPU = GraphOptions(precision="fp32", target="cpu")
DECODER = ["decoder.engine", "decoder.onnx"]
ENCODER = ["encoder.engine", "encoder.onnx"]


def with_encoder(folder: Path, write: Callable[[Path], Any] = write_tiny_encoder, graphs: int = 1) -> Manifest:
    recipe = EngineRecipe(decode_mask=graphs == 2)
    encoder = GraphSource(write)
    return build_set(tiny_sources(graphs), recipe, folder, flavour=RTX, encoder=encoder, engine_builder=tiny_build()).manifest


def test_roles_and_files(tmp_path: Path) -> None:
    manifest = with_encoder(tmp_path, graphs=2)
    assert [graph.role for graph in manifest.graphs] == ["decode", "decode_mask", "encode"]
    assert open_manifest(tmp_path) == manifest
    encoder = manifest.graph("encode")
    assert (encoder.engine_name, encoder.limits, encoder.options.precision) == ("encoder.engine", {}, "fp16")
    assert set(graphs_of_set(tmp_path)) == {"decode", "decode_mask", "encode"}


def test_a_set_without_an_encoder_removes_the_older_ones_files(tmp_path: Path) -> None:
    with_encoder(tmp_path)
    (tmp_path / "encoder.engine.rtx-cache").write_bytes(b"compiled")
    tiny_set(tmp_path)
    assert names(tmp_path) == [*DECODER, "manifest.json"]


def test_a_file_that_no_build_wrote_stays(tmp_path: Path) -> None:
    tiny_set(tmp_path)
    (tmp_path / "encoder.onnx").write_bytes(b"somebody's own")
    tiny_set(tmp_path)
    assert (tmp_path / "encoder.onnx").read_bytes() == b"somebody's own"


def test_an_encoder_of_another_checkpoint_or_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="of another checkpoint than the decoder's; export both from one"):
        with_encoder(tmp_path / "set", functools.partial(write_tiny_encoder, checkpoint_sha256="cd" * 32))
    with pytest.raises(GraphError, match=r"is not an image encoder .*; write one with trt-sam export .*--encoder"):
        with_encoder(tmp_path / "set", write_tiny_graph)
    assert not (tmp_path / "set").exists()


def test_graphs_alone(tmp_path: Path) -> None:
    with_encoder(tmp_path)
    writers = {
        "encode": functools.partial(write_tiny_encoder, precision="fp32"),
        "decode": functools.partial(write_tiny_graph, options=CPU),
    }
    manifest = write_graph_set(writers, EngineRecipe(graph=CPU), tmp_path)
    assert names(tmp_path) == ["decoder.onnx", "encoder.onnx", "manifest.json"]
    assert open_manifest(tmp_path) == manifest
    assert (manifest.flavour, manifest.target) == ("onnxruntime", "cpu")
    with pytest.raises(ManifestError, match="holds graphs for ONNX Runtime and no engine; open it with OnnxRunner"):
        manifest.check_fits(RTX, "8.9")
    tiny_set(tmp_path)
    assert names(tmp_path) == [*DECODER, "manifest.json"]


def test_engines_and_their_absence_must_agree_with_the_flavour(tmp_path: Path) -> None:
    write_graph_set({"decode": functools.partial(write_tiny_graph, options=CPU)}, EngineRecipe(graph=CPU), tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"onnxruntime"', '"tensorrt_rtx"'))
    with pytest.raises(ManifestError, match=r"is damaged .graph decode has no engine, for tensorrt_rtx"):
        open_manifest(tmp_path)
