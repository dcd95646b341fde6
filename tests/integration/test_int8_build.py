"""Quantized graphs in the real TensorRT-RTX builder: which kernels are INT8 or FP8, and what quantization costs in kernels.

The counts are those of TensorRT-RTX 1.7.1.116 for one prompt of two points; another version may fuse in another way, so limits
are asserted rather than the counts seen (float16: 53; INT8: tiers A and A+B 57, with C 64; FP8 for 8.9: 55, 55, 57).
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantize_graphs import collect, feeds, gpu_graph, ranges, run

from calibrators.mixing import MIXED
from trt_sam.engine.builder import BuildResult, build_engine
from trt_sam.engine.flavour import load_flavour
from trt_sam.engine.layers import product_types
from trt_sam.errors import BuildError
from trt_sam.graph.mask_bits import append_mask_bits
from trt_sam.quantize.mixing import HEADS
from trt_sam.quantize.share import Product, find_products, insert_qdq, precondition, quantization_share
from trt_sam.recipe import TIERS, EngineRecipe, ShapeProfile

TWINS = (
    {"transformer.final_image.product/MatMul", "upscaling.first/MatMul"},
    {"transformer.token_layers.0.product/MatMul", "transformer.token_layers.1.own/MatMul"},
)
"""Products that read one quantized tensor, and so become one kernel where both are quantized."""

ONE_PROMPT = ShapeProfile(num_prompts=(1, 1, 1), num_points=(2, 2, 2), height=(1080, 1080, 1080), width=(1920, 1920, 1920))


@functools.cache
def quantized(
    tiers: str, precision: str, shift: bool = True, alpha: float | None = 0.5
) -> tuple[onnx.ModelProto, tuple[Product, ...]]:
    """The float16 graph with these tiers quantized, ranges and weights from the float32 one; and its products."""
    wide, half = gpu_graph("fp32"), gpu_graph("fp16")
    stats = _statistics()
    shifted, products = precondition(wide, find_products(wide, tiers), stats, shift=shift, smooth_alpha=alpha)
    amax = ranges(collect(shifted, products))
    changed, products = precondition(
        half, find_products(half, tiers), stats, shift=shift, smooth_alpha=alpha, weights_from=wide
    )
    return insert_qdq(changed, products, amax, precision), products


@functools.cache
def _statistics():  # type: ignore[no-untyped-def]
    return collect(gpu_graph("fp32"), find_products(gpu_graph("fp32"), TIERS))


def build(model: onnx.ModelProto, folder: Path, gpu: str = "8.9", profile: ShapeProfile = ONE_PROMPT) -> BuildResult:
    onnx.save(model, folder / "decoder.onnx")
    recipe = EngineRecipe(profiles=(profile,), compute_capabilities=(gpu,))
    return build_engine(folder / "decoder.onnx", recipe, flavour=load_flavour("rtx"))


@pytest.fixture(scope="module")
def float16(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return build(gpu_graph("fp16"), tmp_path_factory.mktemp("fp16"))


@pytest.mark.parametrize(("tiers", "allowed"), [("A", 10), ("AB", 10), ("ABC", 15)])
@pytest.mark.parametrize(
    ("precision", "dtype", "gpu"), [("int8", "Int8", "8.9"), ("fp8", "FP8", "8.9"), ("fp8", "FP8", "12.0")]
)
def test_every_product_is_quantized_and_few_kernels_are_added(
    tiers: str, allowed: int, precision: str, dtype: str, gpu: str, float16: BuildResult, tmp_path: Path
) -> None:
    model, products = quantized(tiers, precision)
    result = build(model, tmp_path, gpu)
    (summary,), (before,) = result.kernels, float16.kernels
    types = product_types(result.layers)
    assert {product.name: types.get(product.name) for product in products} == {product.name: (dtype,) for product in products}
    names = {product.name for product in products}
    kernels = [set(layer.onnx_nodes) & names for layer in result.layers if layer.is_matrix_product and layer.reads(dtype)]
    joined = [pair for pair in TWINS if pair in kernels]
    # Blackwell's FP8 kernels are not joined.
    assert joined == [pair for pair in TWINS if pair <= names and gpu != "12.0"]
    assert len(kernels) == summary.int8_products + summary.fp8_products == len(products) - len(joined)
    others = {name for name in types if name.endswith("/MatMul")} - names
    assert {types[name] for name in others} <= {("Half",)}
    assert summary.kernels <= before.kernels + allowed
    assert summary.fused_attentions == before.fused_attentions == 7
    assert summary.waits == summary.convolutions == 0
    assert result.warnings == ()


@pytest.mark.parametrize(("tiers", "kept"), [("A", ()), ("AB", ("upscale1",))])
def test_the_default_with_mixed_heads_is_int8_as_chosen(
    tiers: str, kept: tuple[str, ...], float16: BuildResult, tmp_path: Path
) -> None:
    """As `auto` delivers it for SAM's decoder: the middle of the range taken off, the whole scale, and heads mixed."""
    wide, half = gpu_graph("fp32"), gpu_graph("fp16")
    found = find_products(wide, tiers, kept)
    mix = np.linalg.qr(np.random.default_rng(0).normal(size=(HEADS, 16, 16)))[0] * np.geomspace(0.5, 2, 16)
    stats = collect(wide, found, {product.activation: mix for product in found if product.group in MIXED})
    assert sum(each.mix is not None for each in stats.values()) == 2
    shifted, products = precondition(wide, found, stats, shift="middle", smooth_alpha=1.0)
    amax = ranges(collect(shifted, products))
    changed, products = precondition(
        half, find_products(half, tiers, kept), stats, shift="middle", smooth_alpha=1.0, weights_from=wide
    )
    result = build(insert_qdq(changed, products, amax, "int8"), tmp_path)
    types = product_types(result.layers)
    chosen = {product.name for product in products}
    assert {name for name, dtypes in types.items() if name.endswith("/MatMul") and "Int8" in dtypes} == chosen
    assert {types[name] for name in types.keys() - chosen if name.endswith("/MatMul")} <= {("Half",)}
    (summary,), (before,) = result.kernels, float16.kernels
    assert summary.int8_products == len(products) - any(pair <= chosen for pair in TWINS)
    assert summary.fused_attentions == before.fused_attentions == 7
    assert summary.kernels <= before.kernels + 10
    assert summary.waits == summary.convolutions == 0
    assert result.warnings == ()


def test_shift_and_scale_cost_no_kernel(tmp_path: Path) -> None:
    bare, changed = (build(quantized("AB", "int8", *switches)[0], tmp_path) for switches in ((False, None), (True, 0.5)))
    assert changed.kernels[0].kernels <= bare.kernels[0].kernels


def test_sums_are_scaled_in_float32_before_they_are_float16(tmp_path: Path) -> None:
    """The engine holds scale * power of each product as a float32 number, which its kernel applies: no bare integer sums.

    With a vector of float16 weight scales it holds none of them; see `trt_sam/_qdq.py`.
    """
    model, products = quantized("AB", "int8")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    engine = build(model, tmp_path).engine
    for product in products:
        scale, power = (
            onnx.numpy_helper.to_array(stored[name]).astype(np.float32)
            for name in (f"{product.activation} scale", f"{product.name} power")
        )
        assert (scale * power).tobytes() in engine, product.group


def test_a_group_that_is_kept_stays_float16(tmp_path: Path) -> None:
    half = gpu_graph("fp16")
    products = find_products(half, ("A",), keep_fp16=("block1.image", "final.image"))
    model = insert_qdq(half, products, {product.activation: 4.0 for product in products}, "int8")
    types = product_types(build(model, tmp_path).layers)
    assert {name for name, dtypes in types.items() if name.endswith("/MatMul") and "Int8" in dtypes} == {
        product.name for product in products
    }
    assert types["transformer.image_layers.1.product/MatMul"] == ("Half",)


def test_bits_survive_quantization(tmp_path: Path) -> None:
    half = onnx.ModelProto()
    half.CopyFrom(gpu_graph("fp16"))
    append_mask_bits(half)
    products = find_products(half, ("A",))
    model = insert_qdq(half, products, {product.activation: 4.0 for product in products}, "int8")
    found = run(model, feeds()[0])
    assert 0.05 < (found["low_res_masks"] > 0).mean() < 0.95
    np.testing.assert_array_equal(found["mask_bits"], np.packbits(found["low_res_masks"] > 0, axis=-1))
    assert quantization_share(half, products) == quantization_share(gpu_graph("fp16"), products)
    result = build(model, tmp_path)
    (writer,) = (layer for layer in result.layers for tensor in layer.outputs if tensor.name == "mask_bits")
    assert {tensor.name for tensor in writer.outputs} == {"mask_bits", "low_res_masks"}


def test_fp8_needs_a_gpu_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"8\.6.*leave those compute capabilities out"):
        build(quantized("A", "fp8")[0], tmp_path, "8.6")


@pytest.mark.slow
def test_mask_input_full_resolution_and_many_prompts(tmp_path: Path) -> None:
    """Every input that a graph can take, and shapes left open."""
    half = gpu_graph("fp16", mask_input=True, full_resolution=True)
    products = find_products(half, TIERS)
    model = insert_qdq(half, products, {product.activation: 4.0 for product in products}, "int8")
    result = build(model, tmp_path, profile=ShapeProfile())
    types = product_types(result.layers)
    assert {types.get(product.name) for product in products} == {("Int8",)}
    assert result.kernels[0].fused_attentions == 7
