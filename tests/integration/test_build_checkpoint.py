"""Engine sets from a checkpoint on the command line, one graph and two; built with TensorRT-RTX, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.engine_sets import FILES, names
from trt_sam.cli import main
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.engine.manifest import open_manifest
from trt_sam.recipe import GraphOptions
from trt_sam.runtime.onnx_runner import OnnxRunner


def test_build_a_graph_that_refines_a_mask_beside_the_plain_one_and_inspect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((1, 2),))
    arguments = ["--checkpoint", "standin", "--decode-mask", "--compute-capability", "8.9,12.0"]
    assert main(["build", *arguments, "--output", str(tmp_path / "set")]) == 0
    out = capsys.readouterr().out
    assert "built in" in out
    assert "decode: profile 1: " in out
    assert "decode_mask: profile 1: " in out
    assert names(tmp_path / "set") == sorted(
        [*FILES, "decoder.layers.json", *(f"decoder_mask.{end}" for end in ("engine", "layers.json", "onnx"))]
    )
    manifest = open_manifest(tmp_path / "set")
    assert manifest.compute_capabilities == ("8.9", "12.0")
    assert manifest.recipe.decode_mask
    plain, masked = manifest.graph("decode"), manifest.graph("decode_mask")
    assert (plain.options, masked.options) == (GraphOptions(), GraphOptions(mask_input=True))
    assert plain.checkpoint_sha256 == masked.checkpoint_sha256
    assert len(plain.checkpoint_sha256) == 64
    for graph in (plain, masked):
        assert graph.kernels[0].fused_attentions == 7
        assert graph.engine.size > 5_000_000
    assert masked.engine.sha256 != plain.engine.sha256
    assert main(["inspect", str(tmp_path / "set" / "decoder.engine"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "engine"
    assert report["graphs"][0]["kernels"][0]["fused_attentions"] == 7
    assert main(["inspect", str(tmp_path / "set")]) == 0
    assert "for compute capability 8.9, 12.0" in capsys.readouterr().out
    # Both are the one decoder: without a mask they give the same, and a mask changes something.
    rng = np.random.default_rng(0)
    feed = {
        "image_embeddings": rng.normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32),
        "point_coords": np.array([[[400, 300], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
    }
    with OnnxRunner(tmp_path / "set" / plain.onnx.name) as runner:
        first = runner.run(feed)["low_res_masks"]
    with OnnxRunner(tmp_path / "set" / masked.onnx.name) as runner:
        feed |= {"mask_input": first[:, :1], "has_mask_input": np.zeros(1, np.float32)}
        without = runner.run(feed)["low_res_masks"]
        refined = runner.run({**feed, "has_mask_input": np.ones(1, np.float32)})["low_res_masks"]
    scale = np.abs(first).max()
    # ONNX Runtime computes FP16 graphs in FP32 and rounds where tensors are FP16: two roundings of the same sums.
    assert np.abs(without - first).max() <= 1e-2 * scale
    assert np.abs(refined - first).max() > 1e-2 * scale
