"""The mixed part of an image: rows that prompts make, for each attention and for each constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trt_sam.model.fused_attention import Folded
from trt_sam.model.transformer import TwoWayAttentionBlock, TwoWayTransformer

__all__ = ["BlockRows", "MixedRows", "as_rows", "blocks_of", "centred", "column_sums", "rows_of_blocks"]


@dataclass(frozen=True)
class BlockRows:
    """The float64 weights of the rows N around one block's last LayerNorm.

    Those of an attention are [I, C]: its values [n, H, T, I / H] times them are rows. Those of a constant are [C].
    """

    before: tuple[Tensor, ...]
    """What it sees, centred."""
    after: tuple[Tensor, ...]
    """What it gives: a constant more, its bias."""


def blocks_of(transformer: TwoWayTransformer) -> list[TwoWayAttentionBlock]:
    """Its two-way blocks."""
    return [block for block in transformer.layers if isinstance(block, TwoWayAttentionBlock)]


def rows_of_blocks(transformer: TwoWayTransformer) -> list[BlockRows]:
    """The rows of each block. The first one's output bias is the image's: no position has other rows yet."""
    found: list[BlockRows] = []
    rows: list[Tensor] = []
    for block in blocks_of(transformer):
        attention = Folded(block.cross_attn_image_to_token)
        if rows:
            rows[-1] = rows[-1] + attention.b_o
        rows = [centred(row) for row in (*rows, attention.w_o.T)]
        scale, bias = (each.detach().double() for each in (block.norm4.weight, block.norm4.bias))
        found.append(BlockRows(tuple(rows), (*(row * scale for row in rows), bias)))
        rows = list(found[-1].after)
    return found


def centred(x: Tensor) -> Tensor:
    """Less its mean over the last axis."""
    return x - x.mean(-1, keepdim=True)


def as_rows(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The rows [n, J, D] of values [n, H, T, d]: times [H, d, D] for each attention, in order; a constant [1, D] as it is."""
    attentions = iter(values)
    count = values[0].shape[0]
    parts = [
        (next(attentions) @ weight).flatten(1, 2) if weight.dim() == 3 else weight.expand(count, 1, -1) for weight in weights
    ]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class MixedRows(nn.Module):
    """The rows N W, whose weights times W are constants."""

    def __init__(self, rows: Sequence[Tensor], weight: Tensor | None, num_heads: int, dtype: torch.dtype) -> None:
        """Rows as in `BlockRows`; weight [D, C] is W^T, None for none."""
        super().__init__()
        products = [row if weight is None else row @ weight.T for row in rows]
        per_head = [each.unflatten(0, (num_heads, -1)) if each.dim() == 2 else each[None] for each in products]
        self.weights = nn.ParameterList([nn.Parameter(each.to(dtype), requires_grad=False) for each in per_head])

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """As `as_rows`."""
        return as_rows(values, list(self.weights))


def column_sums(x: Tensor) -> Tensor:
    """Sums over the last axis but one, [..., J, P] to [..., 1, P], as a product: ONNX Runtime's ReduceSum is slow on that axis.

    Seen with 1.32: 1.5 ms for 113 x 4096 numbers, where the product takes less than 0.1 ms.
    """
    return x.new_ones(1, x.shape[-2]) @ x
