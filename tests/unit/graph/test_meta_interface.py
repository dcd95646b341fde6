"""Graphs with Meta's interface beside Meta's own `SamOnnxModel` with the same weights, fed as Meta's notebook feeds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from helpers import MLP_DIM, make_decoder, make_embedding

from tests.metas_sam import metas_onnx_model
from trt_sam.cli import main
from trt_sam.errors import GraphError, InputError
from trt_sam.graph.full_resolution import append_full_resolution
from trt_sam.graph.meta_interface import check_for_meta, to_metas_interface
from trt_sam.recipe import GraphOptions
from trt_sam.runtime.onnx_runner import OnnxRunner

pytestmark = pytest.mark.usefixtures("one_torch_thread")

INPUTS = [
    ("image_embeddings", [1, 256, 64, 64]),
    ("point_coords", [1, "num_points", 2]),
    ("point_labels", [1, "num_points"]),
    ("mask_input", [1, 1, 256, 256]),
    ("has_mask_input", [1]),
    ("orig_im_size", [2]),
]
"""As in the export of SAM ViT-H that public packages ship."""


@pytest.fixture(scope="module")
def graph(graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = onnx.load(graphs["mask"])
    append_full_resolution(model)
    to_metas_interface(model)
    onnx.checker.check_model(model)
    path = tmp_path_factory.mktemp("meta") / "sam_decoder.onnx"
    onnx.save(model, path)
    return path


def test_names_order_and_types_are_metas(graph: Path) -> None:
    session = ort.InferenceSession(graph)
    assert [(value.name, value.shape) for value in session.get_inputs()] == INPUTS
    assert [value.name for value in session.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    assert {value.type for value in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}


@pytest.mark.parametrize(
    ("labels", "size", "with_mask"),
    [
        ([1, -1], (600, 901), False),
        ([1, 0, 1, -1], (1024, 1024), True),
        ([2, 3], (61, 1023), False),
        ([1, 2, 3], (301, 450), True),
    ],
)
def test_metas_lines_give_metas_masks(graph: Path, labels: list[int], size: tuple[int, int], with_mask: bool) -> None:
    rng = np.random.default_rng(len(labels))
    feed: dict[str, Any] = {
        "image_embeddings": make_embedding(),
        "point_coords": rng.uniform(0, 1024, (1, len(labels), 2)).astype(np.float32),
        "point_labels": np.array(labels)[None, :].astype(np.float32),
        "mask_input": rng.normal(0, 4, (1, 1, 256, 256)).astype(np.float32) * with_mask,
        "has_mask_input": np.array([with_mask], np.float32),
        "orig_im_size": np.array(size, dtype=np.float32),
    }
    masks, scores, low_res_logits = ort.InferenceSession(graph).run(None, feed)
    assert masks.shape == (1, 4, *size)
    with torch.no_grad():
        expected = metas_onnx_model(make_decoder(), MLP_DIM)(**{name: torch.from_numpy(value) for name, value in feed.items()})
    for ours, metas in zip((masks, scores, low_res_logits), expected, strict=True):
        assert np.abs(ours - metas.numpy()).max() < 1e-4 * np.abs(ours).max()


def test_our_runner_says_whose_interface_it_is(graph: Path) -> None:
    with pytest.raises(GraphError, match="written with --interface meta, for other programs; export it without"):
        OnnxRunner(graph)


def test_what_metas_interface_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = {"mask_input": True, "full_resolution": True, "target": "cpu"}
    for change, message in (
        ({"precision": "fp16"}, "float32 throughout, precision is fp16"),
        ({"mask_bits": True}, "no mask_bits"),
        ({"images": 2}, "takes one image; leave --images out"),
        ({"mask_input": False}, "has mask_input and orig_im_size"),
    ):
        with pytest.raises(InputError, match=message):
            check_for_meta(GraphOptions(**{"precision": "fp32"} | full | change))  # type: ignore[arg-type]
    arguments = ["export", "--checkpoint", "standin", "--interface", "meta", "--output", str(tmp_path / "a.onnx")]
    assert main([*arguments, "--precision", "fp16"]) == 2
    assert "float32 throughout" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
