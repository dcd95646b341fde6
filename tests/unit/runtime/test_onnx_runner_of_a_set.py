"""`OnnxRunner` on a set of two decoders: each prompt runs in the graph that it needs, and the two are of one checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.engine_sets import PLAIN
from tests.fixtures.toy_set import build_toy_set, write_toy
from trt_sam._files import sha256_of
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.errors import GraphError
from trt_sam.runtime.onnx_runner import OnnxRunner

POINTS, LABELS = np.array([[[100.0, 200.0]], [[300.0, 40.0]]]), np.ones((2, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_toy_set(tmp_path / "set")


def embedding() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32)


def test_prompts_without_a_mask_run_in_the_graph_without(folder: Path) -> None:
    mask = np.ones((2, 1, 256, 256), np.float32)
    with (
        OnnxRunner(folder) as both,
        OnnxRunner(folder / "decoder.onnx") as plain,
        OnnxRunner(folder / "decoder_mask.onnx") as masked,
    ):
        for runner in (both, plain, masked):
            runner.set_image(embedding())
        for given, alone in (((), plain), ((None, mask), masked)):
            found, expected = both.decode(POINTS, LABELS, *given), alone.decode(POINTS, LABELS, *given)
            np.testing.assert_array_equal(found.masks, expected.masks)
            np.testing.assert_array_equal(found.iou_predictions, expected.iou_predictions)
        # The toy's two graphs differ for the same prompts, or nothing of this would be seen.
        assert not np.array_equal(both.decode(POINTS, LABELS).masks, masked.decode(POINTS, LABELS).masks)
        np.testing.assert_array_equal(both.submit(POINTS, LABELS).result().masks, plain.decode(POINTS, LABELS).masks)

        feed = {"point_coords": POINTS.astype(np.float32), "point_labels": LABELS.astype(np.float32)}
        for has_mask in ([0, 0], [1, 0]):
            asked = {**feed, "mask_input": mask, "has_mask_input": np.array(has_mask, np.float32)}
            alone, given_feed = (masked, asked) if any(has_mask) else (plain, feed)
            np.testing.assert_array_equal(both.run(asked)["low_res_masks"], alone.run(given_feed)["low_res_masks"])
        # Whoever brings no mask need not know that the set could take one.
        np.testing.assert_array_equal(both.run(feed)["low_res_masks"], plain.run(feed)["low_res_masks"])
        assert "mask_input" in {spec.name for spec in both.inputs}


def test_decoders_of_two_checkpoints_are_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(graph for graph in manifest["graphs"] if graph["role"] == "decode")
    write_toy(folder / "decoder.onnx", PLAIN, sha256="ab" * 32)
    entry["onnx"]["sha256"] = sha256_of(folder / "decoder.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GraphError, match=r"the decoders of the set .* are of two checkpoints"):
        OnnxRunner(folder)
