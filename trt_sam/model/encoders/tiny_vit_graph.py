"""TinyViT rewritten for graphs: the same outputs, by exact algebra, with less arithmetic and fewer rearrangements.

Attention is cut into windows after its projections here: they run on the picture's own tokens, not on those that fill up the
windows (8 to 20 % more), and one transposition takes queries, keys and values to windows and heads at once. That zeros can
fill up the windows after the projection is algebra. On one head of `softmax(q k^T) v W_o + b_o`, where `n` is a normalised
token before LayerNorm's own scale and shift, a token that fills up has `n = 0`, so its key and value are the projection's
bias alone. And

- the same vector added to all keys adds one number to all scores of a query, which a softmax does not see;
- the same vector added to all values passes through, because the weights of a softmax add up to 1: it moves into `b_o`.

So LayerNorm's scale and shift go into the projection, its bias stays with the queries alone, and a token that fills up is zero.
The softmax runs in float32, also in a float16 model; `1 / sqrt(d)` is part of the queries' weights.

On a CPU the MLPs' linear layers are convolutions over one pixel.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_sam.model.encoders.tiny_vit import Mlp, TinyViT, WindowAttention, fold_for_inference
from trt_sam.model.fused_parts import folded_linear

__all__ = ["graph_form", "to_half"]


def graph_form(model: TinyViT, *, fused: bool = True) -> TinyViT:
    """A rewritten copy of a float32 or float64 TinyViT, folded for inference already or not; no tensor is shared with it.

    Its input and output are those of `TinyViT`; `to_half` makes it float16. `fused` is the form for TensorRT, else for a CPU.
    """
    form = fold_for_inference(copy.deepcopy(model))
    for module in list(form.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, WindowAttention):
                setattr(module, name, GraphAttention(child, fused))
            elif isinstance(child, Mlp) and not fused:
                setattr(module, name, PointwiseMlp(child))
    return form.requires_grad_(False)


def to_half(form: TinyViT) -> TinyViT:
    """Make a graph form float16 in place, but for the biases, which are added to float32 scores, and return it."""
    biases = {module: module.bias for module in form.modules() if isinstance(module, GraphAttention)}
    form.half()
    for module, bias in biases.items():
        module.bias = bias
    return form


class GraphAttention(nn.Module):
    """`WindowAttention`, projected before it is cut into windows; [1, height, width, C] in and out."""

    bias: Tensor

    def __init__(self, attention: WindowAttention, fused: bool) -> None:
        super().__init__()
        channels, self.heads, self.window = attention.proj.in_features, attention.heads, attention.window
        self.dtype = attention.proj.weight.dtype
        self.epsilon, self.channels = attention.norm.eps, channels
        norm_scale, norm_shift = attention.norm.weight.detach().double(), attention.norm.bias.detach().double()
        # From q0 k0 v0 q1 ... to all queries, all keys, all values.
        weight = self._by_kind(attention.qkv.weight.detach().double())
        bias = self._by_kind(attention.qkv.bias.detach().double()) + weight @ norm_shift
        weight = weight * norm_scale
        to_queries = (channels // self.heads) ** -0.5
        weight[:channels] *= to_queries
        kept = torch.cat([bias[:channels] * to_queries, torch.zeros_like(bias[channels:])])
        out = attention.proj.weight.detach().double()
        # One product of all three is fewer kernels for TensorRT; on a CPU it costs a copy to take them apart.
        parts = ((weight, kept),) if fused else zip(weight.chunk(3), kept.chunk(3), strict=True)
        self.projections = nn.ModuleList(folded_linear(rows, bias, self.dtype) for rows, bias in parts)
        self.proj = folded_linear(out, attention.proj.bias.detach().double() + out @ bias[2 * channels :], self.dtype)
        attention.tabulate()
        assert attention.bias is not None
        self.register_buffer("bias", attention.bias.detach().clone()[None], persistent=False)

    def _by_kind(self, rows: Tensor) -> Tensor:
        """Rows [heads * 3 * d, ...], head by head, to rows with all queries first, then all keys, then all values."""
        return rows.unflatten(0, (self.heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        size, heads = self.window, self.heads
        rows, columns = -(-height // size), -(-width // size)
        below, beside = rows * size - height, columns * size - width
        normed = functional.layer_norm(x, (channels,), eps=self.epsilon)
        parts = []
        for projection in self.projections:
            y = functional.pad(projection(normed), (0, 0, 0, beside, 0, below))
            y = y.reshape(rows, size, columns, size, -1, heads, channels // heads).permute(4, 0, 2, 5, 1, 3, 6)
            parts.append(y.reshape(-1, rows * columns, heads, size * size, channels // heads))
        q, k, v = parts[0].unbind(0) if len(parts) == 1 else (part.squeeze(0) for part in parts)
        scores = (q @ k.transpose(-1, -2)).to(self.bias.dtype) + self.bias
        y = torch.softmax(scores, dim=-1).to(v.dtype) @ v
        y = y.reshape(rows, columns, heads, size, size, channels // heads).permute(0, 3, 1, 4, 2, 5)
        y = y.reshape(1, rows * size, columns * size, channels)[:, :height, :width]
        out: Tensor = self.proj(y)
        return out


class PointwiseMlp(nn.Module):
    """`Mlp` as ONNX Runtime's CPU kernels like it; [1, height, width, C] in and out.

    They compute a convolution over one pixel in blocks of channels, with its bias and the sum that follows. As products, the
    two layers at 16384 x 128 take 41 and 29 ms instead of 24 and 25: the bias is written to the whole result, and read again.
    """

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = mlp.norm, _pointwise(mlp.fc1), _pointwise(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(functional.gelu(self.fc1(self.norm(x).permute(0, 3, 1, 2))))
        return y.permute(0, 2, 3, 1)


def _pointwise(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, kernel_size=1, device="meta")
    conv.weight, conv.bias = nn.Parameter(linear.weight.detach()[:, :, None, None]), nn.Parameter(linear.bias.detach())
    return conv
