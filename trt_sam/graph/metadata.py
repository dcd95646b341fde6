"""What an ONNX decoder graph says about itself: tensors, options, nodes. Weights are not looked at; imports no torch."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trt_sam._files import existing_file
from trt_sam._lazy import require
from trt_sam.contract import TensorSpec, encoder_input_specs, encoder_output_specs, input_specs, output_specs
from trt_sam.errors import GraphError, RecipeError
from trt_sam.graph.advice import EXPORT_DECODER, EXPORT_FOR_GPU, EXPORT_SET
from trt_sam.recipe import PRECISIONS, QUANTIZED_PRECISIONS, GraphOptions

__all__ = [
    "INTERFACE_KEY",
    "PREPARED_ROLES",
    "GraphInfo",
    "check_decoder",
    "check_encoder",
    "check_is_whole",
    "encoder_entry",
    "encoder_precision",
    "is_encoder",
    "options_entry",
    "read_graph",
    "recorded_options",
]

_OPTIONS_KEY = "trt_sam.options"
_ENCODER_KEY = "trt_sam.encoder"
"""Names the metadata entry in which `trt-sam export` records what it made."""
PREPARED_ROLES = ("prepare", "decode_prepared")
"""Of the two graphs of `graph.prepared`."""
INTERFACE_KEY = "trt_sam.interface"
"""Names the entry that a graph with Meta's interface has instead."""


@dataclass(frozen=True)
class GraphInfo:
    """An ONNX graph without its weights."""

    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    metadata: Mapping[str, str]
    nodes: Mapping[str, int]
    """How many nodes of each operation, most frequent first."""
    options: GraphOptions | None
    """What `trt-sam export` recorded; None for a graph of another origin."""
    checkpoint_sha256: str
    constant_bytes: Mapping[str, int] = field(default_factory=dict)
    """How many bytes its constants have in each type, most first."""

    @property
    def quantized(self) -> bool:
        """Whether it says so or has Q/DQ pairs: another tool may have put them into a graph that still says it is float16."""
        says = self.options is not None and self.options.precision in QUANTIZED_PRECISIONS
        return says or any(name in self.nodes for name in ("QuantizeLinear", "DequantizeLinear"))

    @property
    def calibration(self) -> str | None:
        """Fingerprint of the feeds that a quantized graph was calibrated on; None for any other graph."""
        try:
            return str(json.loads(self.metadata["trt_sam.calibration"])["fingerprint"])
        except (KeyError, ValueError, TypeError):
            return None

    @property
    def calibrated(self) -> dict[str, Any] | None:
        """What a quantized graph was calibrated on and how: its record, see `calibrators.pipeline`; None where it has none."""
        try:
            return dict(json.loads(self.metadata["trt_sam.calibration"]))
        except (KeyError, ValueError, TypeError):
            return None


def read_graph(path: str | os.PathLike[str]) -> GraphInfo:
    """Read any ONNX graph.

    Raises:
        GraphError: it is not ONNX, was written with `--interface meta`, or its `trt_sam.options` are not understood.
        InputError: the file is missing, empty or unreadable.
        MissingDependencyError: the onnx package is not installed.
    """
    path = existing_file(path, "ONNX graph")
    onnx = require("onnx", "to read ONNX graphs")
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load(path, load_external_data=False)
    except (decode_error, ValueError) as error:
        raise GraphError(
            f"{path} is not an ONNX file or is cut short ({error}); export it again with {EXPORT_DECODER}"
        ) from error
    if not model.graph.output:
        raise GraphError(
            f"{path} is not an ONNX file or is cut short (it declares no outputs); export it again with {EXPORT_DECODER}"
        )
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    weights = {tensor.name for tensor in model.graph.initializer}
    return GraphInfo(
        path=str(path),
        inputs=tuple(_spec(onnx, value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(_spec(onnx, value) for value in model.graph.output),
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        metadata=metadata,
        nodes=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        options=recorded_options(metadata, str(path)),
        checkpoint_sha256=metadata.get("trt_sam.checkpoint_sha256", ""),
        constant_bytes=_constant_bytes(onnx, model),
    )


def check_decoder(graph: GraphInfo) -> GraphOptions:
    """Return the options of a graph that `trt-sam export` wrote and whose tensors are the contract's.

    Raises:
        GraphError: it is another graph, one for the CPU, or its tensors were changed.
    """
    check_is_whole(graph.path, graph.metadata)
    options = graph.options
    if options is None:
        raise GraphError(
            f"{graph.path} is not a decoder that trt-sam exported (it has no trt_sam.options); export one with {EXPORT_FOR_GPU}"
        )
    dtype = "float32" if options.precision == "fp32" else "float16"
    inputs = input_specs(mask_input=options.mask_input, full_resolution=options.full_resolution, images=options.images)
    outputs = output_specs(
        full_resolution=options.full_resolution, best_mask=options.best_mask, mask_bits=options.mask_bits, dtype=dtype
    )
    for expected, seen in ((inputs, graph.inputs), (outputs, graph.outputs)):
        if expected != seen:
            raise GraphError(
                f"{graph.path} has the tensors {'; '.join(map(str, seen))} but its options promise "
                f"{'; '.join(map(str, expected))}; export it again with {EXPORT_DECODER}"
            )
    return options


def check_is_whole(graph: object, metadata: Mapping[str, str]) -> None:
    """Raise GraphError where metadata are those of a half of a decoder, "prepare" or "decode_prepared"; `graph` names it."""
    role = metadata.get("trt_sam.role")
    if role in PREPARED_ROLES:
        raise GraphError(
            f"{graph} is a half of a set's decoder ({role}), of no use alone; give the folder of the set, or its decoder.onnx"
        )


def is_encoder(metadata: Mapping[str, str]) -> bool:
    """Whether a graph with these metadata is an image encoder that `trt-sam export --encoder` wrote."""
    return metadata.get("trt_sam.role") == "encode"


def check_encoder(graph: GraphInfo) -> str:
    """Return the precision, "fp32", "fp16" or "int8", of an image encoder that `export` or `calibrate --encoder` wrote.

    Raises:
        GraphError: it is another graph, or its tensors were changed.
    """
    if is_encoder(graph.metadata) and graph.inputs == encoder_input_specs():
        if graph.outputs == encoder_output_specs(dtype="float16"):  # as trt_sam wrote them before the output was float32
            return "fp16"
        if graph.outputs == encoder_output_specs():
            return encoder_precision(graph.metadata)
    seen = "; ".join(map(str, (*graph.inputs[:4], *graph.outputs[:2])))
    raise GraphError(f"{graph.path} is not an image encoder ({seen}); write one with {EXPORT_SET}")


def encoder_entry(precision: str) -> dict[str, str]:
    """The metadata entry that `encoder_precision` reads."""
    return {_ENCODER_KEY: json.dumps({"precision": precision})}


def encoder_precision(metadata: Mapping[str, str]) -> str:
    """What an image encoder's metadata say that it was written in; "fp32" where they say nothing that is known."""
    try:
        precision = json.loads(metadata[_ENCODER_KEY])["precision"]
    except (KeyError, TypeError, ValueError):
        return "fp32"
    return str(precision) if precision in PRECISIONS else "fp32"


def recorded_options(metadata: Mapping[str, str], graph: object) -> GraphOptions | None:
    """The options in a graph's metadata; None for a graph of another origin. `graph` names it in an error.

    Raises:
        GraphError: they are not JSON, or have a field or value that is unknown here, or the graph was made for others.
    """
    if INTERFACE_KEY in metadata:
        raise GraphError(f"{graph} was written with --interface meta, for other programs; export it without")
    text = metadata.get(_OPTIONS_KEY)
    if text is None:
        return None
    version = metadata.get("trt_sam.version", "unknown")
    try:
        return GraphOptions(**json.loads(text))
    except (ValueError, TypeError, RecipeError) as error:
        why = "are not JSON" if isinstance(error, ValueError) else "hold options unknown here"
        raise GraphError(
            f"{graph} was written by trt-sam {version} and its trt_sam.options {why} ({error}); "
            f"export it again with {EXPORT_DECODER}"
        ) from error


def options_entry(options: GraphOptions) -> dict[str, str]:
    """The metadata entry that `recorded_options` reads."""
    entry = dataclasses.asdict(options)
    if options.images == 1:
        del entry["images"]  # versions before the option read the graph as well
    return {_OPTIONS_KEY: json.dumps(entry)}


def _constant_bytes(onnx: Any, model: Any) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        bits = 4 if name.endswith("int4") else 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        sizes[name] += math.prod(tensor.dims) * bits // 8
    return dict(sizes.most_common())


def _spec(onnx: Any, value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, ValueError, TypeError):
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dims = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim)
    return TensorSpec(value.name, dtype, dims)
