"""Which matrix products of a graph may be quantized, by the module names that the exporter gives nodes: a table for each model.

**Decoder.** Where a product keeps one side of a block in step, it is one product in the graph, and so one group: the image's
keys, values and queries of a block read one tensor. Never quantized are the hypernetworks, the IoU head and the mask product.

**Image encoders.** The linear layers of attentions and MLPs: two thirds of TinyViT's multiply-adds. An MLP's second layer, a
third of these, is a tier of its own: it reads what GELU gives, -0.17 nearly everywhere and 17 at a few places, for which one
scale is too coarse; it alone costs more than all the others (benchmarks/results/encoder_int8.md). TinyViT's convolutions are
not in the table: of a float16 convolution between Q/DQ pairs TensorRT-RTX 1.7 makes a float16 one, with the weights dequantized
at every call and kernels for the rounding (seen in its layer list), so that they would only cost accuracy.

Attention's own products are never quantized, neither are softmax and LayerNorm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DECODER", "ENCODER", "LAYERS_OF_A_BLOCK", "Row", "Table"]

_POSITIONS = 4096
_TOKENS = 7
"""Five output tokens and two points: what multiply-adds are counted for."""


@dataclass(frozen=True)
class Row:
    """Products of one kind."""

    module: str
    """A regular expression of their modules' names."""
    tier: str
    group: str
    """What they are called, with the groups of `module`: `block\\1.image`."""
    rows: int
    """Of the left operand, of one prompt or one picture."""


@dataclass(frozen=True)
class Table:
    """The products of one model."""

    rows: tuple[Row, ...]
    never: re.Pattern[str]
    """Modules whose own products stay float16."""
    required: Mapping[str, int]
    """How many products each tier has; empty where that depends on the model's depth."""
    prefix: str = ""
    """Of all modules' names."""

    def row_of(self, module: str) -> Row | None:
        """The row that a module's product belongs to."""
        name = module.removeprefix(self.prefix)
        return next((row for row in self.rows if re.fullmatch(row.module, name)), None)

    def group_of(self, row: Row, module: str) -> str:
        return re.sub(row.module, row.group, module.removeprefix(self.prefix))


DECODER = Table(
    rows=(
        Row(r"transformer\.image_layers\.(\d+)\.product", "A", r"block\1.image", _POSITIONS),
        Row(r"transformer\.image_layers\.(\d+)\.out_image", "A", r"block\1.image_out", _POSITIONS),
        Row(r"transformer\.final_image\.product", "A", "final.image", _POSITIONS),
        Row(r"upscaling\.first", "B", "upscale0", _POSITIONS),
        Row(r"upscaling\.second", "B", "upscale1", 4 * _POSITIONS),
        Row(r"transformer\.terms", "C", "tokens.positions", _TOKENS),
        Row(r"transformer\.token_layers\.(\d+)\.own", "C", r"block\1.self", _TOKENS),
        Row(r"transformer\.token_layers\.(\d+)\.own_out", "C", r"block\1.self_out", _TOKENS),
        Row(r"transformer\.token_layers\.(\d+)\.query", "C", r"block\1.query", _TOKENS),
        Row(r"transformer\.image_layers\.(\d+)\.out_tokens", "C", r"block\1.query_out", _TOKENS),
        Row(r"transformer\.token_layers\.(\d+)\.mlp\.lin1", "C", r"block\1.mlp_in", _TOKENS),
        Row(r"transformer\.token_layers\.(\d+)\.mlp\.lin2", "C", r"block\1.mlp_out", _TOKENS),
        Row(r"transformer\.token_layers\.(\d+)\.product", "C", r"block\1.tokens", _TOKENS),
        Row(r"transformer\.final_image\.out_tokens", "C", "final.query_out", _TOKENS),
    ),
    never=re.compile(r"heads(\..*)?|upscaling|transformer"),
    required={"A": 5, "B": 2, "C": 15},
)


def _linear_layers(block: str, group: str, layers: tuple[str, str, str, str], positions: int) -> tuple[Row, ...]:
    """A block's four linear layers, in its order: the input and the output of its attention and of its MLP."""
    kinds = ("qkv", "attn_out", "mlp_in", "mlp_out")
    named = zip(layers, kinds, strict=True)
    return tuple(Row(block + layer, _TIERS.get(kind, "A"), f"{group}.{kind}", positions) for layer, kind in named)


_TIERS = {"mlp_out": "B"}
_TINY_VIT = (r"attn\.projections\.0", r"attn\.proj", r"mlp\.fc1", r"mlp\.fc2")
_VIT = (r"attn\.qkv", r"attn\.proj", "lin1", "lin2")

ENCODER = Table(
    rows=(
        *_linear_layers(r"layers\.1\.blocks\.(\d+)\.", r"stage1.block\1", _TINY_VIT, 4 * _POSITIONS),
        *_linear_layers(r"layers\.([23])\.blocks\.(\d+)\.", r"stage\1.block\2", _TINY_VIT, _POSITIONS),
        *_linear_layers(r"blocks\.(\d+)\.", r"block\1", _VIT, _POSITIONS),
    ),
    never=re.compile(r"encoder\.(layers\.\d+\.)?blocks\.\d+\.attn|encoder\.narrow"),
    required={},
    prefix="encoder.",
)
LAYERS_OF_A_BLOCK = {"A": 3, "B": 1}
"""Of an encoder: so many products of each tier it has for each softmax."""
