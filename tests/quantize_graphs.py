"""Graphs and activations that the tests of quantization share: each export is made once in a run."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from tests.fixtures.exports import random_graph
from trt_sam.graph.parity import random_feed
from trt_sam.quantize.mixing import mix_channels
from trt_sam.quantize.share import Product
from trt_sam.recipe import GraphOptions

Array = npt.NDArray[Any]

GROUPS = {
    "A": ["block0.image", "block0.image_out", "block1.image", "block1.image_out", "final.image"],
    "B": ["upscale0", "upscale1"],
    "C": [
        *("tokens.positions", "block0.self_out", "block0.query", "block0.query_out", "block0.mlp_in", "block0.mlp_out"),
        *("block0.tokens", "block1.self", "block1.self_out", "block1.query", "block1.query_out", "block1.mlp_in"),
        *("block1.mlp_out", "block1.tokens", "final.query_out"),
    ],
}
"""The groups of each tier."""


@dataclass(frozen=True)
class Stats:
    """`ChannelStats` of a tensor [..., channels]."""

    mean: Array
    amin: Array
    amax: Array
    mix: Array | None = None


@functools.cache
def gpu_graph(precision: str = "fp32", mask_input: bool = False, full_resolution: bool = False) -> onnx.ModelProto:
    """A `--target gpu` graph of a decoder with random weights, always the same; do not change it."""
    return onnx.load(random_graph(GraphOptions(precision=precision, mask_input=mask_input, full_resolution=full_resolution)))


@functools.cache
def feeds() -> tuple[dict[str, Array], ...]:
    """Two feeds of two prompts with three points each; their channels have means, as those of real embeddings have."""
    rng = np.random.default_rng(3)
    made = [random_feed(rng, 2, 3, GraphOptions(precision="fp32")) for _ in range(2)]
    means = rng.normal(0, 1, (1, 256, 1, 1)).astype(np.float32)
    for feed in made:
        feed["image_embeddings"] = feed["image_embeddings"] * np.abs(means) + means
    return tuple(made)


def run(model: onnx.ModelProto, feed: dict[str, Array], names: Iterable[str] = ()) -> dict[str, Array]:
    """The graph's outputs, and the tensors `names` inside it, in floating point."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in exposed.graph.output], session.run(None, feed), strict=True))


def collect(model: onnx.ModelProto, products: Sequence[Product], mixes: Mapping[str, Array] | None = None) -> dict[str, Stats]:
    """The statistics of what the products read, over `feeds()`, with the channels of those in `mixes` mixed."""
    mixes = mixes or {}
    names = list(dict.fromkeys(product.activation for product in products))
    seen: dict[str, list[Array]] = {name: [] for name in names}
    for feed in feeds():
        tensors = run(model, feed, names)
        for name in names:
            rows = tensors[name].reshape(-1, tensors[name].shape[-1]).astype(np.float64)
            seen[name].append(mix_channels(rows, mixes[name]) if name in mixes else rows)
    whole = {name: np.concatenate(arrays) for name, arrays in seen.items()}
    return {name: Stats(array.mean(0), array.min(0), array.max(0), mixes.get(name)) for name, array in whole.items()}


def ranges(stats: dict[str, Stats]) -> dict[str, float]:
    """Largest |x| of each tensor: what the "max" calibrator gives."""
    return {name: float(max(each.amax.max(), -each.amin.min())) for name, each in stats.items()}


def constant(model: onnx.ModelProto, name: str | None) -> Array:
    """The values of a constant of `model`."""
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))
