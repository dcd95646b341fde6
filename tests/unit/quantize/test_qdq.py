"""Finding products, shifting and scaling what they read, and Q/DQ pairs, against float64 numpy."""

from __future__ import annotations

import dataclasses
import json

import ml_dtypes
import numpy as np
import onnx
import pytest
from quantize_graphs import GROUPS, Array, Stats, collect, constant, feeds, gpu_graph, ranges, run

from trt_sam.errors import CalibrationError, GraphError, RecipeError
from trt_sam.graph.float16 import Float16Emulation
from trt_sam.quantize.mixing import HEADS
from trt_sam.quantize.share import find_products, insert_qdq, precondition
from trt_sam.recipe import TIERS


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return gpu_graph()


@pytest.fixture(scope="module")
def stats(model: onnx.ModelProto) -> dict[str, Stats]:
    return collect(model, find_products(model, TIERS))


@pytest.fixture(scope="module")
def plain(model: onnx.ModelProto) -> dict[str, Array]:
    return run(model, feeds()[0])


def error(result: dict[str, Array], expected: dict[str, Array]) -> float:
    """Largest |difference| of masks and of scores, relative to the largest value of each."""
    return max(
        float(np.abs(result[name].astype(np.float64) - array).max() / np.abs(array).max()) for name, array in expected.items()
    )


@pytest.mark.parametrize(
    ("tiers", "shift", "alpha"),
    [("A", True, 0.5), ("AB", True, 0.5), ("ABC", True, 0.5), ("ABC", True, None), ("ABC", False, 1.0)],
)
def test_shift_and_scale_change_nothing(
    tiers: str,
    shift: bool,
    alpha: float | None,
    model: onnx.ModelProto,
    stats: dict[str, Stats],
    plain: dict[str, Array],
) -> None:
    """Exact but for rounding: some 10 products of float32 (6e-8) between them and the masks, whose errors add; seen 1e-6."""
    changed, products = precondition(model, find_products(model, tiers), stats, shift=shift, smooth_alpha=alpha)
    assert [product.activation for product in products] != [p.activation for p in find_products(model, tiers)]
    assert error(run(changed, feeds()[0]), plain) < 1e-5
    seen = collect(changed, products)
    for product in products:
        after = seen[product.activation]
        spread = np.maximum(after.amax, -after.amin)
        if shift:
            assert np.abs(after.mean).max() < 1e-4 * spread.max()
        if alpha == 1.0:  # all channels reach as far, but for those whose scale was bounded
            low, high = np.percentile(spread[spread > 0], [10, 90])
            assert high < 1.01 * low


def test_heads_mixed_before_an_output_product_change_nothing(
    model: onnx.ModelProto, stats: dict[str, Stats], plain: dict[str, Array]
) -> None:
    # As well-conditioned as what is learned: 4 on the real decoder.
    mix = np.linalg.qr(np.random.default_rng(0).normal(size=(HEADS, 16, 16)))[0] * np.geomspace(0.5, 2, 16)
    products = find_products(model)
    mixed = dict(stats)
    for product in products:
        if product.group.endswith("image_out"):
            mixed[product.activation] = dataclasses.replace(stats[product.activation], mix=mix)
    changed, _ = precondition(model, products, mixed, shift="middle", smooth_alpha=1.0)
    unmixed, _ = precondition(model, products, stats, shift="middle", smooth_alpha=1.0)
    assert [node.name for node in changed.graph.node] == [node.name for node in unmixed.graph.node]
    assert error(run(changed, feeds()[0]), plain) < 1e-5
    name = next(product.weight for product in find_products(changed) if product.group == "block0.image_out")
    assert not np.allclose(constant(changed, name), constant(unmixed, name), rtol=0.1)
    (tensor,) = (product.activation for product in products if product.group == "block1.image")
    wide = {**stats, tensor: dataclasses.replace(stats[tensor], mix=np.stack([np.eye(32)] * HEADS))}
    with pytest.raises(GraphError, match=r"'block1.image input' cannot be mixed: it is not the output of an attention"):
        precondition(model, products, wide, shift="middle", smooth_alpha=1.0)


def test_scale_is_that_of_the_paper(model: onnx.ModelProto, stats: dict[str, Stats]) -> None:
    """On products that share one tensor: s = amax^a / max|W|^(1 - a) over both weights, median 1."""
    products = [p for p in find_products(model, ("A", "B")) if p.group in ("final.image", "upscale0")]
    assert products[0].activation == products[1].activation
    changed, after = precondition(model, products, stats, shift=False, smooth_alpha=0.25)
    seen = stats[products[0].activation]
    largest = np.maximum(seen.amax, -seen.amin)
    weights = np.max([np.abs(constant(model, p.weight)).max(axis=1) for p in products], axis=0).astype(np.float64)
    scale = largest**0.25 / weights**0.75
    scale /= np.median(scale)
    for before, product in zip(products, after, strict=True):
        ratio = constant(changed, product.weight).astype(np.float64) / constant(model, before.weight)
        np.testing.assert_allclose(ratio, np.repeat(scale[:, None], ratio.shape[1], 1), rtol=1e-5)
    assert [product.activation for product in after] == ["final.image input"] * 2


def test_no_shift_and_no_scale_only_names(model: onnx.ModelProto, plain: dict[str, Array]) -> None:
    """Names are then the same in every export, which ranges are carried over by."""
    changed, products = precondition(model, find_products(model, TIERS), {}, shift=False, smooth_alpha=None)
    assert len(changed.graph.node) == len(model.graph.node)
    assert {p.activation for p in products} == {
        f"{group} input"
        for group in [g for groups in GROUPS.values() for g in groups]
        if group not in ("block1.self", "upscale0")
    }
    assert error(run(changed, feeds()[0]), plain) == 0


def test_layer_norms_and_attentions_take_the_change(model: onnx.ModelProto, stats: dict[str, Stats]) -> None:
    """Only two of tier A's five activations cost a Sub and a Mul; the last LayerNorm serves upscaling too, quantized or not."""
    changed, _ = precondition(model, find_products(model, ("A",)), stats, shift=True, smooth_alpha=0.5)
    added = sorted({node.name for node in changed.graph.node} - {node.name for node in model.graph.node})
    assert added == [
        *("block0.image input/Mul", "block0.image input/Sub", "block1.image input/Mul", "block1.image input/Sub"),
        *("transformer.token_layers.0.product/MatMul bias/Add", "transformer.token_layers.1.product/MatMul bias/Add"),
    ]


def test_float16_constants_come_from_float32_weights(
    model: onnx.ModelProto, stats: dict[str, Stats], plain: dict[str, Array]
) -> None:
    half = gpu_graph("fp16")
    single, wide = precondition(model, find_products(model, TIERS), stats, shift=True, smooth_alpha=0.5)
    changed, products = precondition(half, find_products(half, TIERS), stats, shift=True, smooth_alpha=0.5, weights_from=model)
    assert [product.activation for product in products] == [product.activation for product in wide]
    for product, other in zip(products, wide, strict=True):
        rounded = constant(single, other.weight).astype(np.float16)
        # Equal, but where float64 was rounded to float32 first here, and so lay on a float16 tie.
        assert np.mean(constant(changed, product.weight) == rounded) > 0.999
    # ONNX Runtime computes float16 graphs in float32: this is the rounding of weights, the same as without the change.
    assert error(run(changed, feeds()[0]), plain) < 2 * error(run(half, feeds()[0]), plain) + 1e-4


def test_precondition_refuses_bad_statistics(model: onnx.ModelProto, stats: dict[str, Stats]) -> None:
    products = find_products(model)
    with pytest.raises(CalibrationError, match="no statistics for"):
        precondition(model, products, {}, shift=True, smooth_alpha=None)
    name = products[0].activation
    for wrong in (Stats(*np.zeros((3, 255))), Stats(*np.full((3, 256), np.nan))):
        with pytest.raises(CalibrationError, match="three finite arrays of 256 channels"):
            precondition(model, products, {**stats, name: wrong}, shift=True, smooth_alpha=None)
    changed, after = precondition(model, products, stats, shift=True, smooth_alpha=None)
    again = {product.activation: stats[old.activation] for product, old in zip(after, products, strict=True)}
    found = find_products(changed)
    with pytest.raises(GraphError, match="shifted and scaled already"):
        precondition(changed, found, again, shift=True, smooth_alpha=None)


def test_constant_channels_do_not_break_the_scale(
    model: onnx.ModelProto, stats: dict[str, Stats], plain: dict[str, Array]
) -> None:
    """A channel that never varied where the ranges were seen gets a bounded scale, and stays exact where it does vary."""
    name = find_products(model)[0].activation
    dead = {field: getattr(stats[name], field).copy() for field in ("mean", "amin", "amax")}
    for array in dead.values():
        array[:7] = dead["mean"][:7]
    changed, _ = precondition(model, find_products(model), {**stats, name: Stats(**dead)}, shift=True, smooth_alpha=0.5)
    assert error(run(changed, feeds()[0]), plain) < 1e-5


def fake_quantized(x: Array, weight: Array, amax: float, scale_type: type, precision: str) -> Array:
    """x @ weight in float64 as per-tensor and per-column fake quantization says; scales rounded as the graph stores them."""
    largest = {"int8": 127.0, "fp8": 448.0}[precision]
    scale = float(scale_type(amax / largest))
    columns = np.abs(weight.astype(np.float64)).max(axis=0) / largest

    def levels(values: Array) -> Array:
        values = np.clip(values, -128 if precision == "int8" else -448, largest)
        if precision == "int8":
            return np.rint(values)
        return values.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)

    return (levels(x.astype(np.float64) / scale) * scale) @ (levels(weight.astype(np.float64) / columns) * columns)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("graph", ["fp32", "fp16"])
def test_products_agree_with_fake_quantization_in_numpy(precision: str, graph: str) -> None:
    """Each product with the input it has, clipped at 60 % of its range; the reference knows nothing of how scales are split.

    A weight falls to the other level where the split scale, rounded, moves it over a tie: few, one level each, of random sign.
    In float16 the result is rounded too, and ONNX Runtime leaves out roundings of x. Seen, as a part of the quantization error
    itself: up to 0.0016 in float32, 0.13 in float16; a scale that is 1 % off gives 1.
    """
    model = gpu_graph(graph)
    products = find_products(model, ("A", "B"))
    limits = {name: 0.6 * value for name, value in ranges(collect(model, products)).items()}
    quantized = insert_qdq(model, products, limits, precision)
    names = [product.activation for product in products]
    outputs = {
        node.name.removesuffix(" columns/Mul"): node.output[0] for node in quantized.graph.node if "columns" in node.name
    }
    tensors = run(quantized, feeds()[1], {*names, *outputs.values()})
    scale_type, allowed = (np.float32, 0.01) if graph == "fp32" else (np.float16, 0.2)
    for product in products:
        x, weight = tensors[product.activation], constant(model, product.weight)
        expected = fake_quantized(x, weight, limits[product.activation], scale_type, precision)
        exact = x.astype(np.float64) @ weight.astype(np.float64)
        result = tensors[outputs[product.name]].astype(np.float64)
        noise = np.sqrt(np.mean((expected - exact) ** 2))
        assert np.sqrt(np.mean((result - expected) ** 2)) < allowed * noise, product.group
        assert noise < 0.2 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_form_that_tensorrt_reads(precision: str, stats: dict[str, Stats]) -> None:
    model = gpu_graph("fp16")
    products = find_products(model, ("A", "B"))
    quantized = insert_qdq(model, products, {product.activation: 3.0 for product in products}, precision)
    kind = onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT8E4M3FN
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    pairs = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    weights = [node for node in quantized.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    # final.image and upscale0 read one tensor, so they share its pair.
    assert (len(pairs), len(weights)) == (6, 7)
    for node in (*pairs, *weights):
        assert stored[node.input[1]].data_type == onnx.TensorProto.FLOAT16
        assert list(stored[node.input[1]].dims) == []
        assert not any(stored[node.input[2]].raw_data)
        assert stored[node.input[2]].data_type == kind
    assert {stored[node.input[0]].data_type for node in weights} == {kind}
    assert not {product.weight for product in products} & set(stored)
    options = {entry.key: entry.value for entry in quantized.metadata_props}["trt_sam.options"]
    assert json.loads(options)["precision"] == precision
    assert quantized.opset_import[0].version >= 19


def test_a_float32_graph_stays_one(model: onnx.ModelProto) -> None:
    products = find_products(model)
    quantized = insert_qdq(model, products, {product.activation: 3.0 for product in products}, "int8")
    assert quantized.metadata_props == model.metadata_props


@pytest.mark.parametrize("amax", [1e-6, 3.0, 3e4], ids=["tiny", "usual", "huge"])
def test_sums_fit_float16_whatever_comes_in(amax: float) -> None:
    """The largest sum that a product can make, scaled as it is written to a float16 tensor, by any range."""
    model = gpu_graph("fp16")
    products = find_products(model, TIERS)
    quantized = insert_qdq(model, products, {product.activation: amax for product in products}, "int8")
    for product in products:
        levels = constant(quantized, f"{product.name} quantized").astype(np.float64)
        scale = float(constant(quantized, f"{product.activation} scale")) * float(constant(quantized, f"{product.name} power"))
        assert scale > 0
        assert 127 * np.abs(levels).sum(axis=0).max() * scale < np.finfo(np.float16).max


def test_a_quantized_float16_graph_neither_overflows_nor_falls_apart(
    model: onnx.ModelProto, stats: dict[str, Stats], plain: dict[str, Array]
) -> None:
    """In emulated float16, sums included; random weights make masks that int8 moves by some percent of the largest logit."""
    half = gpu_graph("fp16")
    _, wide = found = precondition(model, find_products(model, ("A", "B")), stats, shift=True, smooth_alpha=0.5)
    amax = ranges(collect(found[0], wide))
    changed, products = precondition(
        half, find_products(half, ("A", "B")), stats, shift=True, smooth_alpha=0.5, weights_from=model
    )
    emulation = Float16Emulation(insert_qdq(changed, products, amax, "int8"), threads=1)
    result = emulation.run(feeds()[0])
    assert error(result, plain) < 0.05
    assert max(emulation.largest.values()) < np.finfo(np.float16).max / 10


def test_insert_qdq_refuses_bad_ranges(model: onnx.ModelProto) -> None:
    products = find_products(model)
    amax = {product.activation: 1.0 for product in products}
    with pytest.raises(RecipeError, match="must be one of int8, fp8"):
        insert_qdq(model, products, amax, "int4")
    with pytest.raises(CalibrationError, match="no range for"):
        insert_qdq(model, products, {}, "int8")
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(CalibrationError, match="must be a positive number"):
            insert_qdq(model, products, {**amax, products[0].activation: wrong}, "int8")
