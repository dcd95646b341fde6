"""Which products the tiers name, and their share of the work."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantize_graphs import GROUPS, constant, gpu_graph

from trt_sam.errors import GraphError, RecipeError
from trt_sam.graph.arithmetic import count_graph
from trt_sam.quantize.share import Product, find_products, insert_qdq, product_groups, quantization_share
from trt_sam.recipe import TIERS


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return gpu_graph()


@pytest.mark.parametrize("tier", TIERS)
def test_tiers_are_these_groups(tier: str, model: onnx.ModelProto) -> None:
    products = find_products(model, [tier])
    assert list(product_groups(products)) == GROUPS[tier]
    assert {product.tier for product in products} == {tier}
    for product in products:
        weight = constant(model, product.weight)
        assert weight.ndim == 2
        assert product.bias is None or constant(model, product.bias).shape[-1] == weight.shape[1]


def test_float16_graphs_have_the_same_products(model: onnx.ModelProto) -> None:
    def stable(product: Product) -> tuple[str, str, str, int]:
        return product.name, product.tier, product.group, product.multiply_adds

    half = find_products(gpu_graph("fp16"), TIERS)
    assert [stable(product) for product in half] == [stable(product) for product in find_products(model, TIERS)]


def test_kept_groups_are_left_out(model: onnx.ModelProto) -> None:
    kept = find_products(model, ("A", "B"), keep_fp16=("final.image", "upscale1", "block0.mlp_in"))
    assert [product.group for product in kept] == [*GROUPS["A"][:4], "upscale0"]


def test_multiply_adds_are_those_of_the_nodes(model: onnx.ModelProto) -> None:
    """Counted from the shapes with all other products taken out: what remains is what the products say."""
    products = find_products(model, TIERS)
    for chosen in (products[:1], find_products(model, ("B",)), products):
        without = onnx.ModelProto()
        without.CopyFrom(model)
        names = {product.name for product in chosen}
        for node in without.graph.node:
            if node.name in names:  # one channel in place of all of them
                product = next(product for product in chosen if product.name == node.name)
                weight = constant(model, product.weight)
                without.graph.initializer.append(numpy_helper.from_array(weight[:1], f"{node.name} row"))
                node.input[1] = f"{node.name} row"
                first = onnx.helper.make_node("Slice", [node.input[0], "zero", "one", "last"], [f"{node.name} first"])
                without.graph.node.append(first)
                node.input[0] = first.output[0]
        _sort(without)
        for name, value in (("zero", 0), ("one", 1), ("last", -1)):
            without.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
        dims = {"num_prompts": 1, "num_points": 2}
        rows = sum(product.multiply_adds // len(constant(model, product.weight)) for product in chosen)
        full = count_graph(model, dims).multiply_adds
        assert full - count_graph(without, dims).multiply_adds == sum(p.multiply_adds for p in chosen) - rows
        assert quantization_share(model, chosen) == pytest.approx(sum(p.multiply_adds for p in chosen) / full)


def _sort(model: onnx.ModelProto) -> None:
    """Put the appended Slice nodes before the products that read them."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    slices = {node.output[0]: node for node in nodes if node.output[0].endswith(" first")}
    del model.graph.node[:]
    for node in nodes:
        if node.output[0] not in slices:
            model.graph.node.extend([slices[node.input[0]]] if node.input and node.input[0] in slices else [])
            model.graph.node.append(node)


def test_the_share_of_the_image_side(model: onnx.ModelProto) -> None:
    """74 % in Meta's form too (design notes): the rewrite for the GPU keeps the image side's products."""
    assert quantization_share(model, find_products(model, ("A",))) == pytest.approx(0.739, abs=0.001)
    assert quantization_share(model, find_products(model, ("A", "B"))) == pytest.approx(0.961, abs=0.001)


def test_unknown_names_are_listed(model: onnx.ModelProto) -> None:
    with pytest.raises(RecipeError, match=r"tier is 'D', must be one of A, B, C"):
        find_products(model, ("A", "D"))
    with pytest.raises(RecipeError, match=r"'upscale2', which is no group .* upscale0, upscale1$"):
        find_products(model, ("A",), keep_fp16=("upscale2",))
    with pytest.raises(RecipeError, match=r"no product is left"):
        find_products(model, ("B",), keep_fp16=("upscale0", "upscale1"))


def test_other_graphs_are_refused(model: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    options = next(entry for entry in other.metadata_props if entry.key == "trt_sam.options")
    options.value = json.dumps({**json.loads(options.value), "target": "cpu"})
    with pytest.raises(GraphError, match="target 'cpu'"):
        find_products(other)
    options.value = "{"
    with pytest.raises(GraphError, match="not JSON"):
        find_products(other)
    del other.metadata_props[:]
    with pytest.raises(GraphError, match=r"no trt_sam\.options"):
        find_products(other)
    other.CopyFrom(model)
    next(node for node in other.graph.node if node.name == "upscaling.first/MatMul").name = "upscaling.zeroth/MatMul"
    with pytest.raises(GraphError, match=r"seen: upscaling\.zeroth/MatMul"):
        find_products(other)
    products = find_products(model)
    quantized = insert_qdq(model, products, {product.activation: 1.0 for product in products}, "int8")
    with pytest.raises(GraphError, match="quantized already"):
        find_products(quantized)
    with pytest.raises(GraphError, match="not that of this graph"):
        insert_qdq(model, [dataclasses.replace(products[0], weight="other")], {products[0].activation: 1.0}, "int8")
