"""A modelled time of an engine on a GPU that is not there: the sum over its kernels of the largest of three bounds.

A kernel takes at least its launch, its bytes over the memory bandwidth, and its FLOP over the peak of its type:
`max(2 us, bytes / bandwidth, FLOP / peak)`. Kernels and their tensors are those of the builder's layer list, which needs fixed
shapes; FLOP come from the ONNX products that the list says a kernel contains. It judges one graph against another. It is
no measurement, and where it is wrong is known:

- every byte is charged to DRAM, although what one kernel writes the next often finds in the L2 cache: too slow;
- peaks are never reached, and elementwise work, softmax and LayerNorm statistics count no FLOP: too fast;
- of several kernels that name a product (an INT8 one and the kernel that scales its result) the tensor cores' is charged, of
  several such each with its share; a product that no kernel names is charged to none, and reported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trt_sam.engine.layers import Layer, LayerTensor

__all__ = ["GPUS", "LAUNCH_SECONDS", "Gpu", "KernelCost", "ModelledTime", "kernel_costs", "model_time", "unplaced_products"]

LAUNCH_SECONDS = 2e-6
"""A small kernel's share of a stream or CUDA graph: what it takes when it has next to nothing to do."""

_BITS = {"int4": 4, "fp4": 4, "fp4e2m1": 4, "int8": 8, "uint8": 8, "bool": 8, "fp8": 8, "half": 16, "bf16": 16, "bfloat16": 16}
_BITS |= {"float": 32, "int32": 32, "int64": 64}
_VECTOR = "vector"


@dataclass(frozen=True)
class Gpu:
    """Published peaks of one GPU."""

    name: str
    bandwidth: float
    """Bytes per second."""
    peaks: Mapping[str, float]
    """Dense FLOP per second by type of the products; "vector" is float32 without tensor cores."""
    compute_capability: str = ""


# H100 SXM5: NVIDIA H100 datasheet (3.35 TB/s; tensor peaks there are with sparsity, twice these) and the "H100 Tensor Core GPU
# Architecture" whitepaper's table of peak rates. RTX 4090: "NVIDIA Ada GPU Architecture" whitepaper, appendix A; float16
# and FP8 with float32 accumulation, which is half of the rate with float16 accumulation. TF32 is not assumed for float32.
GPUS = (
    Gpu("H100 SXM", 3.35e12, {"int8": 1978.9e12, "fp8": 1978.9e12, "half": 989.4e12, _VECTOR: 66.9e12}, "9.0"),
    Gpu("RTX 4090", 1.008e12, {"int8": 660.6e12, "fp8": 330.3e12, "half": 165.2e12, _VECTOR: 82.6e12}, "8.9"),
)


@dataclass(frozen=True)
class KernelCost:
    """What one kernel moves and computes."""

    name: str
    type: str
    unit: str
    """Which peak bounds it: "int8", "fp8", "half" or "vector"."""
    bytes: int
    """Of all inputs, constants and outputs, as the layer list gives their shapes and types."""
    flop: int

    def seconds(self, gpu: Gpu) -> float:
        """The modelled time on `gpu`."""
        return max(LAUNCH_SECONDS, self.bytes / gpu.bandwidth, self.flop / gpu.peaks[self.unit])


@dataclass(frozen=True)
class ModelledTime:
    """The modelled time of one call on one GPU, and what bounds its kernels."""

    gpu: str
    seconds: float
    launch_bound: int
    """Kernels at the launch's floor; the next two are the others."""
    bandwidth_bound: int
    arithmetic_bound: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, in microseconds."""
        counts = {name: getattr(self, name) for name in ("launch_bound", "bandwidth_bound", "arithmetic_bound")}
        return {"gpu": self.gpu, "microseconds": round(self.seconds * 1e6, 3), **counts}


def model_time(costs: Iterable[KernelCost], gpu: Gpu) -> ModelledTime:
    """Add up the kernels of one call on `gpu`, one after the other on one stream."""
    seconds, bounds = 0.0, Counter[str]()
    for cost in costs:
        took = cost.seconds(gpu)
        seconds += took
        is_launch = took == LAUNCH_SECONDS
        bounds["launch" if is_launch else "bandwidth" if took == cost.bytes / gpu.bandwidth else "arithmetic"] += 1
    return ModelledTime(gpu.name, seconds, bounds["launch"], bounds["bandwidth"], bounds["arithmetic"])


def kernel_costs(layers: Sequence[Layer], products: Mapping[str, int]) -> tuple[KernelCost, ...]:
    """The cost of every kernel of one optimization profile, built at fixed shapes.

    Args:
        layers: the builder's layer list (`BuildResult.layers`); signals, waits and shape calls cost nothing here.
        products: multiply-adds of every product at these shapes (`Arithmetic.products`).

    Raises:
        ValueError: a kernel has a dynamic dimension, or a type whose size is not known here.
    """
    kernels = [layer for layer in layers if layer.is_kernel]
    on_tensor_cores = {name for layer in kernels if _uses_tensor_cores(layer) for name in layer.onnx_nodes}
    computed = [
        {name for name in layer.onnx_nodes if name in products and (_uses_tensor_cores(layer) or name not in on_tensor_cores)}
        for layer in kernels
    ]
    shares = Counter(name for names in computed for name in names)
    costs = []
    for layer, names in zip(kernels, computed, strict=True):
        flop = sum(2 * products[name] / shares[name] for name in names)
        moved = {tensor.name: _bytes(layer, tensor) for tensor in layer.inputs + layer.constants}
        written = sum(_bytes(layer, tensor) for tensor in layer.outputs)
        costs.append(KernelCost(layer.name, layer.type, _unit(layer), sum(moved.values()) + written, round(flop)))
    return tuple(costs)


def unplaced_products(layers: Sequence[Layer], products: Mapping[str, int]) -> dict[str, int]:
    """The products of `products` that no kernel names: computed by the builder, or lost from its list."""
    named = {name for layer in layers if layer.is_kernel for name in layer.onnx_nodes}
    return {name: count for name, count in products.items() if name not in named}


def _uses_tensor_cores(layer: Layer) -> bool:
    """Attention, products and convolutions do; other generated kernels sum on the vector units."""
    return layer.is_attention or layer.is_matrix_product or layer.is_convolution


def _unit(layer: Layer) -> str:
    if not _uses_tensor_cores(layer):
        return _VECTOR
    for dtype, unit in (("Int8", "int8"), ("FP8", "fp8"), ("Half", "half"), ("BF", "half")):
        if layer.reads(dtype):
            return unit
    return _VECTOR


def _bytes(layer: Layer, tensor: LayerTensor) -> int:
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f"kernel {layer.name} has the dynamic shape {list(tensor.dims)}; build at fixed sizes")
    bits = _BITS.get(tensor.dtype.lower())
    if bits is None:
        raise ValueError(f"kernel {layer.name} has a tensor of type {tensor.dtype}, whose size is not known")
    return math.ceil(math.prod(tensor.dims) * bits / 8)
