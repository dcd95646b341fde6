"""The list of an engine's layers in a file of its set: what runs, in which precision, by which kernel.

`decoder.layers.json` of `decoder.engine`; its hash is in the manifest. One object a kernel, in the order of execution:
`name` (of a fusion it spells the operations), `type`, `inputs`, `constants` and `outputs` with name, dims, dtype and format as
TensorRT spells them, `tactic`, `onnx_nodes` that went into it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from trt_sam.engine.layers import Layer

__all__ = ["layer_file_of", "write_layers"]


def layer_file_of(engine: str) -> str:
    """The name of the list beside an engine of this name: "decoder.layers.json" beside "decoder.engine"."""
    return f"{engine.removesuffix('.engine')}.layers.json"


def write_layers(path: Path, layers: Sequence[Layer], title: str) -> None:
    """Write `layers` as `title`, the TensorRT that built them, told them; one layer a line, for people and `grep`."""
    rows = ",\n".join(json.dumps(dataclasses.asdict(layer)) for layer in layers)
    path.write_text(f'{{"tensorrt": {json.dumps(title)}, "layers": [\n{rows}\n]}}\n', encoding="utf-8")
