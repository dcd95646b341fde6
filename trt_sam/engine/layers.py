"""The layer list that the builder logs, as data, and what is worth counting in it.

With `ProfilingVerbosity.DETAILED` TensorRT-RTX logs one VERBOSE message that starts with "Layers:" and holds a line per kernel
launch. It needs no GPU, so fusions can be checked in tests. It is the compiler's plan for RTX; it proves nothing about the
kernels of TensorRT 10 and 11, which print no such list.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "KernelSummary",
    "Layer",
    "LayerTensor",
    "layer_file_of",
    "parse_layers",
    "product_types",
    "summarize_layers",
    "write_layers",
]

_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<type>\w+)(?:, (?P<rest>.*))?$")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,]*)\], .*?Datatype: (?P<dtype>\w+), Format: (?P<format>.*?) \}"
)
_SECTION = re.compile(
    r"(Inputs|Constants|Outputs): \[(.*?)\](?=, (?:Inputs|Constants|Outputs|TacticName|StreamId|Metadata):|$)"
)
_TACTIC = re.compile(r"TacticName: (.*?)(?:, StreamId:|, Metadata:|$)")
_SEPARATORS = "\x1e\x1f "
_PART = re.compile(r"_myl(\d+)_\d+$")
_PROFILE = re.compile(r"\[profile (\d+)\]")

_WAITING = ("signal", "wait")
_HOST = ("shape_call",)
_CONVOLUTIONS = ("correlation", "convolution", "conv", "deconv")
_PRODUCT_WORDS = {"Fc", "Gemm", "Bmm", "Matm"}
_MOVE_WORDS = {"Move", "Resh", "Tran", "Repl", "Conc", "Slic", "Copy", "Sque", "Unsq"}


@dataclass(frozen=True)
class LayerTensor:
    """An operand of a kernel; -1 is a dynamic dimension; dtype as TensorRT spells it: Half, Float, Int8, FP8."""

    name: str
    dims: tuple[int, ...]
    dtype: str
    format: str


@dataclass(frozen=True)
class Layer:
    """One line of the list: a kernel launch, a host computation of shapes, or a wait between streams."""

    name: str
    type: str
    inputs: tuple[LayerTensor, ...] = ()
    constants: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    tactic: str = ""
    onnx_nodes: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The operations that a generated kernel's name spells: "__myl_CastResh_myl0_10" gives ("Cast", "Resh")."""
        stem = _PART.sub("", self.name)
        return tuple(re.findall(r"[A-Z][a-z]+", stem.removeprefix("__myl_"))) if stem.startswith("__myl_") else ()

    @property
    def is_kernel(self) -> bool:
        return self.type not in _WAITING + _HOST

    @property
    def is_attention(self) -> bool:
        return "_gemm_mha" in self.name or "_gemm_mha" in self.tactic

    @property
    def is_matrix_product(self) -> bool:
        """A gemm, or a fusion around one; attention and matrix-vector sums that run as generated kernels are not."""
        return self.type == "gemm" or (self.type == "runtime_fusion" and not _PRODUCT_WORDS.isdisjoint(self.words))

    @property
    def is_convolution(self) -> bool:
        return self.type in _CONVOLUTIONS

    @property
    def is_layout_move(self) -> bool:
        """A generated kernel that computes nothing: it only rearranges, repeats or joins."""
        return self.type == "kgen" and bool(self.words) and set(self.words) <= _MOVE_WORDS

    @property
    def is_cast(self) -> bool:
        """A generated kernel that does nothing but change the type, with or without rearranging."""
        return self.type == "kgen" and "Cast" in self.words and set(self.words) <= _MOVE_WORDS | {"Cast"}

    @property
    def is_biased_move(self) -> bool:
        """A generated kernel that rearranges (a transposition at least) and otherwise adds or scales once each at most."""
        rest = [word for word in self.words if word not in _MOVE_WORDS | {"Cast"}]
        return self.type == "kgen" and "Tran" in self.words and rest in (["Add"], ["Mul"], ["Add", "Mul"], ["Mul", "Add"])

    def reads(self, dtype: str) -> bool:
        """Whether an activation (not a constant) of `dtype` goes in, so weight-only quantization does not count."""
        return any(tensor.dtype.lower().startswith(dtype.lower()) for tensor in self.inputs)


@dataclass(frozen=True)
class KernelSummary:
    """What one optimization profile launches per call."""

    kernels: int = 0
    matrix_products: int = 0
    convolutions: int = 0
    fused_attentions: int = 0
    int8_products: int = 0
    """Matrix products and convolutions whose activation is INT8; those of fused attentions are `int8_attentions`."""
    fp8_products: int = 0
    int8_attentions: int = 0
    casts: int = 0
    layout_moves: int = 0
    biased_moves: int = 0
    """Transpositions that also add a bias or a scale: the head rearrangements of attention."""
    waits: int = 0
    """Signals and waits between streams: no kernels."""
    host_calls: int = 0
    """Shape computations on the host: no kernels."""
    by_type: Mapping[str, int] = field(default_factory=dict)
    precisions: Mapping[str, int] = field(default_factory=dict)
    """Of products and fused attentions, by the type of the activation that they read: {"Half": 30, "Int8": 16}."""

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON-able data."""
        return {**dataclasses.asdict(self), "by_type": dict(self.by_type), "precisions": dict(self.precisions)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> KernelSummary:
        """The inverse of `to_dict`; raises TypeError or ValueError for anything else."""
        counts = {key: value for key, value in data.items() if key not in ("by_type", "precisions")}
        by_type, precisions = dict(data.get("by_type", {})), dict(data.get("precisions", {}))
        for key, value in {**counts, **by_type, **precisions}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{key} is {value!r}, must be a count")
        return KernelSummary(**counts, by_type=by_type, precisions=precisions)


def parse_layers(message: str) -> tuple[Layer, ...]:
    """Parse the log message that starts with "Layers:".

    Raises:
        ValueError: it is not such a message, or a line has another form; a count that silently misses lines would mislead.
    """
    lines = message.split("\n")
    if lines[0].strip() != "Layers:":
        raise ValueError(f"not a layer list: it starts with {lines[0][:60]!r}")
    layers = []
    for line in lines[1:]:
        if not line.strip() or line.startswith("I/O Tensors:"):
            break
        match = _LAYER.match(line)
        if match is None:
            raise ValueError(f"not a line of a layer list: {line[:80]!r}")
        layers.append(_layer(match["name"], match["type"], match["rest"] or ""))
    return tuple(layers)


def summarize_layers(layers: Sequence[Layer]) -> tuple[KernelSummary, ...]:
    """One summary per optimization profile, in order; the list of an engine with two profiles holds every kernel twice.

    The compiler numbers its parts ("_myl1_"), and marks the nodes that keep their ONNX names with "[profile 1]".
    """
    profile_of: dict[str, int] = {}
    for layer in layers:
        part, profile = _PART.search(layer.name), _PROFILE.search(layer.name)
        if part and profile:
            profile_of[part[1]] = int(profile[1])
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        part = _PART.search(layer.name)
        groups.setdefault(profile_of.get(part[1], 0) if part else 0, []).append(layer)
    return tuple(_summarize(groups[profile]) for profile in sorted(groups))


def product_types(layers: Iterable[Layer]) -> dict[str, tuple[str, ...]]:
    """What the product kernels of each ONNX node read, once per kernel: {"upscaling.first/MatMul": ("Int8",)}.

    Only of nodes that are in a matrix product or convolution; products that share a kernel have the same type. A kernel that
    only scales or adds to a product lists the product's node too, but is none.
    """
    types: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        if layer.is_kernel and (layer.is_matrix_product or layer.is_convolution) and layer.inputs:
            for node in dict.fromkeys(layer.onnx_nodes):
                types[node] = (*types.get(node, ()), layer.inputs[0].dtype)
    return types


def layer_file_of(engine: str) -> str:
    """The name of the list beside an engine of this name: "decoder.layers.json" beside "decoder.engine"."""
    return f"{engine.removesuffix('.engine')}.layers.json"


def write_layers(path: Path, layers: Sequence[Layer], title: str) -> None:
    """Write `layers` as `title`, the TensorRT that built them, told them: JSON, with a line for each, for people and `grep`."""
    rows = ",\n".join(json.dumps(dataclasses.asdict(layer)) for layer in layers)
    path.write_text(f'{{"tensorrt": {json.dumps(title)}, "layers": [\n{rows}\n]}}\n', encoding="utf-8")


def _summarize(layers: Iterable[Layer]) -> KernelSummary:
    layers = list(layers)
    kernels = [layer for layer in layers if layer.is_kernel]
    products = [layer for layer in kernels if layer.is_matrix_product or layer.is_convolution]
    attentions = [layer for layer in kernels if layer.is_attention]
    return KernelSummary(
        kernels=len(kernels),
        matrix_products=sum(layer.is_matrix_product for layer in kernels),
        convolutions=sum(layer.is_convolution for layer in kernels),
        fused_attentions=len(attentions),
        int8_products=sum(layer.reads("Int8") for layer in products),
        fp8_products=sum(layer.reads("FP8") for layer in products),
        int8_attentions=sum(layer.reads("Int8") for layer in attentions),
        casts=sum(layer.is_cast for layer in kernels),
        layout_moves=sum(layer.is_layout_move for layer in kernels),
        biased_moves=sum(layer.is_biased_move for layer in kernels),
        waits=sum(layer.type in _WAITING for layer in layers),
        host_calls=sum(layer.type in _HOST for layer in layers),
        by_type=dict(sorted(Counter(layer.type for layer in layers).items())),
        precisions=dict(sorted(Counter(layer.inputs[0].dtype for layer in (*products, *attentions) if layer.inputs).items())),
    )


def _layer(name: str, kind: str, rest: str) -> Layer:
    sections = {title: _tensors(body) for title, body in _SECTION.findall(rest)}
    tactic = _TACTIC.search(rest)
    return Layer(
        name=name,
        type=kind,
        inputs=sections.get("Inputs", ()),
        constants=sections.get("Constants", ()),
        outputs=sections.get("Outputs", ()),
        tactic=tactic[1] if tactic else "",
        onnx_nodes=tuple(part.strip(_SEPARATORS).removesuffix("]") for part in rest.split("[ONNX Layer: ")[1:]),
    )


def _tensors(body: str) -> tuple[LayerTensor, ...]:
    return tuple(
        LayerTensor(m["name"], tuple(int(d) for d in m["dims"].split(",") if d), m["dtype"], m["format"])
        for m in _TENSOR.finditer(body)
    )
