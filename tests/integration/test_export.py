"""Exported graphs against PyTorch, through ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import trt_sam.graph.export
from tests.helpers import make_decoder
from trt_sam.contract import input_specs
from trt_sam.errors import ExportError, GraphError, InputError
from trt_sam.graph.export import export_decoder, select_best
from trt_sam.graph.float16 import Float16Emulation, emulate_float16
from trt_sam.graph.parity import _check_bits, random_feed
from trt_sam.model import SamDecoder
from trt_sam.recipe import GraphOptions
from trt_sam.runtime.onnx_runner import OnnxRunner

EVERYTHING = GraphOptions(precision="fp32", target="cpu", mask_input=True, full_resolution=True, mask_bits=True)
HALF = GraphOptions(precision="fp16", target="gpu", mask_input=True, best_mask=True, full_resolution=True, mask_bits=True)


@pytest.fixture(scope="module")
def decoder() -> SamDecoder:
    torch.manual_seed(11)
    return SamDecoder().eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, decoder: SamDecoder) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    export_decoder(decoder, folder / "everything.onnx", EVERYTHING, checkpoint_sha256="ab" * 32)
    export_decoder(decoder, folder / "half.onnx", HALF)
    return folder


def reference(decoder: SamDecoder, feed: dict[str, np.ndarray], *, mask_input: bool) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return decoder(*(torch.from_numpy(feed[s.name]) for s in input_specs(mask_input=mask_input)))


def test_float32_graph_matches_pytorch_at_sizes_it_was_not_traced_at(folder: Path, decoder: SamDecoder) -> None:
    session = ort.InferenceSession(folder / "everything.onnx")
    rng = np.random.default_rng()
    for num_prompts, num_points in ((1, 3), (7, 1), (2, 9)):
        feed = random_feed(rng, num_prompts, num_points, EVERYTHING)
        masks, iou = reference(decoder, feed, mask_input=True)
        low_res, scores = session.run(["low_res_masks", "iou_predictions"], feed)
        # Float32 sums of 4096 terms in another order: some 1e-6 of the largest logit.
        assert np.abs(low_res - masks.numpy()).max() <= 1e-4 * masks.abs().max()
        np.testing.assert_allclose(scores, iou, atol=1e-4)


@pytest.mark.parametrize("size", [(150, 201), (333, 90), (1024, 1024), (700, 1500)])
def test_full_resolution_is_the_two_step_upsampling_of_meta(folder: Path, size: tuple[int, int]) -> None:
    session = ort.InferenceSession(folder / "everything.onnx")
    feed = random_feed(np.random.default_rng(3), 2, 2, EVERYTHING)
    feed["orig_im_size"] = np.array(size, np.int64)
    masks, low_res = session.run(["masks", "low_res_masks"], feed)
    scale = 1024 / max(size)
    rows, columns = (int(n * scale + 0.5) for n in size)
    expected = torch.nn.functional.interpolate(torch.from_numpy(low_res), (1024, 1024), mode="bilinear")
    expected = torch.nn.functional.interpolate(expected[..., :rows, :columns], size, mode="bilinear")
    assert masks.shape == (2, 4, *size)
    np.testing.assert_allclose(masks, expected, atol=1e-4 * float(np.abs(low_res).max()))


@pytest.mark.parametrize(("name", "options"), [("everything", EVERYTHING), ("half", HALF)])
def test_mask_bits_are_the_masks_of_the_same_graph(folder: Path, name: str, options: GraphOptions) -> None:
    feed = random_feed(np.random.default_rng(4), 3, 2, options)
    feed["orig_im_size"] = np.array([70, 93])
    with OnnxRunner(folder / f"{name}.onnx", threads=1) as runner:
        found = runner.run(feed)
    assert found["mask_bits"].dtype == np.uint8
    assert 0.05 < (found["masks"] > 0).mean() < 0.95
    np.testing.assert_array_equal(found["mask_bits"], np.packbits(found["masks"] > 0, axis=-1))


@pytest.mark.parametrize("changed", ["low_res_masks", "masks", "mask_bits"])
def test_the_parity_check_looks_at_the_bits(changed: str) -> None:
    logits = np.random.default_rng(0).normal(0, 1, (1, 1, 3, 9))
    found = {"low_res_masks": np.full((1, 1, 2, 8), np.nan), "masks": logits, "mask_bits": np.packbits(logits > 0, axis=-1)}
    _check_bits(found)
    found[changed] = -found[changed] if changed != "mask_bits" else found[changed] ^ 1
    if changed == "low_res_masks":  # bits are of the masks at full resolution
        _check_bits(found)
    else:
        with pytest.raises(ExportError, match="mask_bits of the graph are not its masks above 0"):
            _check_bits(found)


def test_float16_graph_keeps_its_islands_in_float32(folder: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(folder / "half.onnx")).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {i.name: i.data_type for i in graph.initializer}
    by_operator: dict[str, set[int]] = {}
    for node in graph.node:
        by_operator.setdefault(node.op_type, set()).add(types[node.input[0]])
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    assert by_operator["Softmax"] == {single}
    assert by_operator["Sin"] == by_operator["Cos"] == {single}
    assert half in by_operator["MatMul"]
    for node in graph.node:
        if node.op_type == "LayerNormalization":
            stash = [a.i for a in node.attribute if a.name == "stash_type"]
            assert stash in ([], [single]), "LayerNorm statistics must be float32"
    assert types["iou_predictions"] == single
    assert types["low_res_masks"] == types["masks"] == half


def test_graph_says_where_it_comes_from(folder: Path) -> None:
    model = onnx.load(folder / "everything.onnx")
    metadata = {p.key: p.value for p in model.metadata_props}
    assert json.loads(metadata["trt_sam.options"])["full_resolution"] is True
    assert metadata["trt_sam.checkpoint_sha256"] == "ab" * 32
    assert metadata["trt_sam.version"] == trt_sam.__version__
    assert str(Path(trt_sam.graph.export.__file__).parent).encode() not in model.SerializeToString()


def test_best_mask_follows_the_rule_of_sam_without_counting_absent_points() -> None:
    iou = torch.tensor([[0.9, 0.1, 0.5, 0.2]] * 4)
    masks = torch.arange(16.0).reshape(4, 4, 1, 1)
    labels = torch.tensor([[1, -1, -2.0], [1, 0, 1], [2, 3, -2], [2, 3, 1]])
    chosen, score = select_best(masks, iou, labels)
    assert chosen.flatten().tolist() == [2, 4, 10, 12]
    np.testing.assert_allclose(score.flatten(), [0.5, 0.9, 0.5, 0.9])


def test_a_graph_that_does_not_match_is_not_written(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(graphs["mask"])
    del model.metadata_props[:]
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            tensor.raw_data = (1.01 * onnx.numpy_helper.to_array(tensor)).tobytes()
    monkeypatch.setattr(trt_sam.graph.export, "_trace", lambda graph, options: model)
    options = GraphOptions(precision="fp32", target="cpu", mask_input=True)
    with pytest.raises(ExportError, match="does not match PyTorch"):
        export_decoder(make_decoder(), tmp_path / "wrong.onnx", options)
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_output_is_one_error(tmp_path: Path, decoder: SamDecoder) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        export_decoder(decoder, tmp_path / "file" / "graph.onnx", EVERYTHING)


def test_emulation_agrees_with_half_precision_pytorch(folder: Path, decoder: SamDecoder) -> None:
    import copy

    emulation = Float16Emulation(folder / "half.onnx")
    feed = random_feed(np.random.default_rng(5), 4, 3, HALF)
    # As most callers begin: no earlier mask, its place filled with zeros.
    without = {**feed, "mask_input": np.zeros_like(feed["mask_input"]), "has_mask_input": np.zeros(4, np.float32)}
    assert np.isfinite(emulation.run(without)["iou_predictions"]).all()
    emulated = emulation.run(feed)
    full, _ = reference(decoder, feed, mask_input=True)
    half, scores = reference(copy.deepcopy(decoder).to_half(), feed, mask_input=True)
    best, _ = select_best(half, scores, torch.from_numpy(feed["point_labels"]))
    scale = float(full.abs().max())
    # Both round some hundred tensors to 11 bits, in another order of operations.
    assert np.abs(emulated["low_res_masks"] - best.float().numpy()).max() < 1e-2 * scale
    np.testing.assert_array_equal(emulated["mask_bits"], np.packbits(emulated["masks"] > 0, axis=-1))
    assert all(np.isfinite(v) for v in emulation.largest.values())
    assert any(v > 1 for v in emulation.largest.values())


def test_emulation_finds_a_planted_overflow(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "half.onnx")
    name = next(n for n in model.graph.node if n.op_type == "Relu").input[0]
    producer = next(n for n in model.graph.node if name in n.output)
    weight = next(i for i in model.graph.initializer if i.name in producer.input and i.data_type == onnx.TensorProto.FLOAT16)
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[:] = 60000.0
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    feed = random_feed(np.random.default_rng(5), 2, 2, HALF)
    emulation = Float16Emulation(model)
    emulation.run(feed)
    assert not np.max(list(emulation.largest.values())) < 65504
    # What this guards against: ONNX Runtime alone shows nothing.
    plain = ort.InferenceSession(model.SerializeToString()).run(["iou_predictions"], feed)[0]
    assert np.isfinite(plain).all()


def test_emulating_a_float32_graph_is_an_error(folder: Path) -> None:
    with pytest.raises(GraphError, match="no float16 tensor"):
        emulate_float16(onnx.load(folder / "everything.onnx"))
