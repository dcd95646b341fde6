"""SAM's ViT rewritten for graphs: the same outputs, by exact algebra, with a plain attention in each block.

**Relative positions.** Meta's score of a query at row i and column j for a key at row r and column s is
`q k + q R_rows[i, r] + q R_columns[j, s]`, the last two with the query before it is scaled. That is one product of wider heads,

    [q, q R_rows[i, :], q R_columns[j, :]] [k, e_r, e_s]

where e_r is 1 at place r and 0 elsewhere: the bias, as many numbers as there are scores, is never in memory, and what is left
is an attention that TensorRT runs in one kernel, where the values are filled up with zeros to the same width. (With the bias
added to the scores it runs in one kernel as well, which reads 800 MB of bias in each of ViT-B's global blocks.) The two small
products per block take the query's own row or column of a table that is laid out once. On a CPU the values stay as they are,
and heads come in turns, so that their scores are not all in memory.

**Windows** are cut after the projection, as in `tiny_vit_graph`, which explains why zeros can fill up keys and values there:
what is the same in all keys drops out of the softmax, and what is the same in all values moves into the output's bias. SAM
fills up after LayerNorm, so LayerNorm's shift is in the picture's own tokens alone, and stays with them.

LayerNorm's scale goes into the weights after it. In a float16 model softmax and LayerNorm's statistics are float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_sam.model.encoders.vit import Attention, Block, Vit
from trt_sam.model.fused_parts import folded_linear
from trt_sam.model.prompt_encoder import LayerNorm2d

__all__ = ["VitGraph"]

_ALIGNED = 16
"""Of the width of a fused head: TensorRT's products of float16 take 16 at a time."""
_SCORES_AT_ONCE = 2**26
"""How many there may be on a CPU: four of ViT-B's twelve global heads."""


class VitGraph(nn.Module):
    """A `Vit` in graph form, for one picture; weights of its own, in float32 (or the model's wider type) or float16."""

    def __init__(self, model: Vit, *, half: bool = False, fused: bool = True) -> None:
        """`fused` is the form for TensorRT, else it is that for a CPU."""
        super().__init__()
        dtype = torch.float16 if half else model.patch_embed.proj.weight.dtype
        self.patch_embed = copy.deepcopy(model.patch_embed).to(dtype)
        positions = None if model.pos_embed is None else model.pos_embed.detach().to(dtype, copy=True)
        self.register_buffer("positions", positions)
        # Block by block, so that not all weights are there twice in float64.
        self.blocks = nn.ModuleList(GraphBlock(block, dtype, fused) for block in model.blocks if isinstance(block, Block))
        narrow, norm, *rest = copy.deepcopy(model.neck).to(dtype)
        assert isinstance(narrow, nn.Conv2d)
        assert isinstance(norm, LayerNorm2d)
        # The first convolution is a product, and the first LayerNorm goes over the channels where they lie.
        self.narrow = folded_linear(narrow.weight.detach().flatten(1), None, dtype)
        self.norm = nn.LayerNorm(norm.weight.shape[0], eps=norm.eps)
        self.norm.weight, self.norm.bias = norm.weight, norm.bias
        self.neck = nn.Sequential(*rest)
        self.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """As `Vit.forward`, of one picture [1, 3, height, width]."""
        x = self.patch_embed(pixels)
        if self.positions is not None:
            x = x + self.positions
        for block in self.blocks:
            x = block(x)
        embedding: Tensor = self.neck(self.norm(self.narrow(x)).permute(0, 3, 1, 2))
        return embedding


class GraphBlock(nn.Module):
    """`Block` with both LayerNorms' scales in the weights after them; [1, height, width, C] in and out."""

    def __init__(self, block: Block, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        self.epsilon = block.norm1.eps
        self.attn = GraphAttention(block, dtype, fused)
        lin1, lin2, norm = block.mlp.lin1, block.mlp.lin2, block.norm2
        weight = lin1.weight.detach().double()
        bias = lin1.bias.detach().double() + weight @ norm.bias.detach().double()
        self.lin1 = folded_linear(weight * norm.weight.detach().double(), bias, dtype)
        self.lin2 = folded_linear(lin2.weight.detach(), lin2.bias.detach(), dtype)

    def forward(self, x: Tensor) -> Tensor:
        channels = (x.shape[-1],)
        x = x + self.attn(functional.layer_norm(x, channels, eps=self.epsilon))
        hidden = functional.gelu(self.lin1(functional.layer_norm(x, channels, eps=self.epsilon)))
        added: Tensor = x + self.lin2(hidden)
        return added


class GraphAttention(nn.Module):
    """A block's attention, of tokens normalised without LayerNorm's scale and shift; [1, height, width, C] in and out."""

    by_rows: Tensor
    by_columns: Tensor
    places: Tensor

    def __init__(self, block: Block, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        attention, norm = block.attn, block.norm1
        self.heads, self.size, self.fused = attention.heads, attention.size, fused
        channels = attention.proj.in_features
        self.width = channels // self.heads
        to_queries = self.width**-0.5
        weight, out = attention.qkv.weight.detach().double(), attention.proj.weight.detach().double()
        given = torch.zeros(3 * channels) if attention.qkv.bias is None else attention.qkv.bias.detach()
        # The keys' bias drops out; the values' goes with the output's.
        bias = weight @ norm.bias.detach().double()
        bias[:channels] += given[:channels].double()
        weight *= norm.weight.detach().double()
        weight[:channels] *= to_queries
        bias[:channels] *= to_queries
        self.qkv = folded_linear(weight, bias, dtype)
        out_bias = attention.proj.bias.detach().double() + out @ given[2 * channels :].double()
        self.proj = folded_linear(out, out_bias, dtype)
        self.relative = attention.rel_pos_h is not None
        if attention.rel_pos_h is None or attention.rel_pos_w is None:
            return
        self.filling = -(self.width + 2 * self.size) % _ALIGNED if fused else 0
        self.register_buffer("by_rows", _table(attention, attention.rel_pos_h).to(dtype))
        # The zeros that fill up the queries come out of this product.
        by_columns = functional.pad(_table(attention, attention.rel_pos_w), (0, self.filling))
        self.register_buffer("by_columns", by_columns.to(dtype))
        one_hot = torch.eye(self.size, dtype=dtype)
        rows, columns = one_hot[:, None].expand(-1, self.size, -1), one_hot[None].expand(self.size, -1, -1)
        places = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        self.register_buffer("places", functional.pad(places, (0, self.filling)))

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        size, heads = self.size, self.heads
        rows, columns = -(-height // size), -(-width // size)
        below, beside = rows * size - height, columns * size - width
        y = self.qkv(x)
        if below or beside:
            y = functional.pad(y, (0, 0, 0, beside, 0, below))
        y = y.reshape(rows, size, columns, size, 3, heads, self.width).permute(4, 0, 2, 5, 1, 3, 6)
        q, k, v = y.reshape(3, rows * columns, heads, size, size, self.width).unbind(0)
        k, v = k.flatten(2, 3), v.flatten(2, 3)
        if self.relative:
            q, k = self._widened(q, k)
            if self.fused:
                v = functional.pad(v, (0, 2 * size + self.filling))
        y = self._attend(q.flatten(2, 3), k, v)[..., : self.width]
        y = y.reshape(rows, columns, heads, size, size, self.width)
        y = y.permute(0, 3, 1, 4, 2, 5).reshape(1, rows * size, columns * size, channels)
        out: Tensor = self.proj(y[:, :height, :width])
        return out

    def _widened(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Add what makes the biases to q [n, heads, size, size, d] and k [n, heads, tokens, d]."""
        count, heads, size = q.shape[:3]
        # One product for each row, and for each column, of all windows and heads: the table is not repeated for them.
        of_rows = q.permute(2, 0, 1, 3, 4).reshape(size, -1, self.width) @ self.by_rows
        of_columns = q.permute(3, 0, 1, 2, 4).reshape(size, -1, self.width) @ self.by_columns
        parts = [
            q,
            of_rows.reshape(size, count, heads, size, size).permute(1, 2, 0, 3, 4),
            of_columns.reshape(size, count, heads, size, -1).permute(1, 2, 3, 0, 4),
        ]
        return torch.cat(parts, dim=-1), torch.cat([k, self.places.expand(count, heads, -1, -1)], dim=-1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax of q k over the keys, times v; all [n, heads, tokens, width], q scaled."""
        step = self.heads if self.fused else max(1, _SCORES_AT_ONCE // (q.shape[0] * q.shape[2] ** 2))
        parts = []
        for first in range(0, self.heads, step):
            some_q, some_k, some_v = (x[:, first : first + step] if step < self.heads else x for x in (q, k, v))
            scores = some_q @ some_k.transpose(-1, -2)
            weights = torch.softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)
            parts.append(weights.to(v.dtype) @ some_v)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _table(attention: Attention, distances: Tensor) -> Tensor:
    """[distances, d] to [query, d, key], for queries that are scaled."""
    places = torch.arange(attention.size)
    by_places = distances.detach().double()[places[:, None] - places + attention.size - 1]
    return by_places.transpose(1, 2) * distances.shape[1] ** 0.5
