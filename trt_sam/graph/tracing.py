"""From a PyTorch module to an ONNX model: how every graph of this package is traced and its nodes are named."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from torch import nn

__all__ = ["COMPARING", "OPSET", "TRACING", "name_nodes", "quiet_export", "trace"]

TRACING, COMPARING = "tracing", "comparing with PyTorch"
"""What an export tells that it is at."""
OPSET = 20
"""The first with Gelu; at least 19 is needed for float16 scales of QuantizeLinear."""


def trace(
    module: nn.Module,
    arguments: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    """The model of a module's forward, called with `arguments`: tensors, or tuples of them.

    Args:
        module: what is traced, in evaluation mode.
        arguments: examples.
        inputs: a name for each tensor of the arguments, in order.
        outputs: a name for each tensor that comes back.
        dynamic_shapes: as `torch.export.export` takes them, by the names of forward's parameters; None where all are fixed.
    """
    with quiet_export():
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic_shapes,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes after their module, and drop the exporter's notes, which hold file paths of this machine."""
    seen: dict[str, int] = {}
    for node in model.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = [s for s in json.loads(notes.get("pkg.torch.onnx.name_scopes", "[]").replace("'", '"')) if s]
        scope = scopes[-2].removeprefix("decoder").lstrip(".") if len(scopes) > 1 else ""
        name = f"{scope}/{node.op_type}".lstrip("/")
        seen[name] = seen.get(name, 0) + 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Silence the exporter's log and warnings about itself; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
