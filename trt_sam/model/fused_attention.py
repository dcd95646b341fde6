"""Attention with its constants folded, in two exact forms: projected and absorbed.

Both use the same algebra on one head of `softmax((x W_q + b_q)(y W_k + b_k)^T / sqrt(d)) (z W_v + b_v) W_o + b_o`:

- `b_k` adds the same number to all scores of a query, and a softmax does not see that: it is dropped.
- The weights of a softmax add up to 1, so `b_v` passes through it: it moves into the output bias as `b_v W_o`.
- `1 / sqrt(d)` is folded into `W_q` and `b_q`, so queries are scaled before the product.
- Image positions are constant: `(image + pe) W = image W + pe W`, and `pe W` is computed once, here.
- Likewise for a constant shift of the image (the no-mask embedding): it drops out of keys and passes through values.

**Projected** keeps Meta's products, with static weights; what reads one tensor is one product. **Absorbed** applies the
weights of the image side to the few tokens instead of the 4096 positions: `q (x W_k)^T = (q W_k^T) x^T` and
`a (x W_v) = (a x) W_v`, which is less arithmetic while heads * tokens < 128.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trt_sam.model.fused_parts import folded_linear
from trt_sam.model.transformer import Attention

__all__ = ["AbsorbedImageSide", "Folded", "ProjectedImageSide", "attend"]


class Folded:
    """The float64 weights of one attention, folded: w_q [I, C] and b_q [I] scaled, w_k and w_v [I, C], w_o [C, I], b_o [C].

    `shift` [C] is what the input of the values lacks.
    """

    def __init__(self, attention: Attention, shift: Tensor | None = None) -> None:
        q, k, v, out = attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
        scale = 1.0 / math.sqrt(attention.head_dim)
        self.num_heads, self.dtype = attention.num_heads, q.weight.dtype
        self.w_q, self.b_q = q.weight.detach().double() * scale, q.bias.detach().double() * scale
        self.w_k, self.w_v, self.w_o = (linear.weight.detach().double() for linear in (k, v, out))
        b_v = v.bias.detach().double()
        if shift is not None:
            b_v = b_v + self.w_v @ shift.double()
        self.b_o = out.bias.detach().double() + self.w_o @ b_v

    def out(self, shift: Tensor | None = None) -> nn.Linear:
        """The output product; its bias holds the value bias and, where the residual lacks it, `shift` [C]."""
        bias = self.b_o if shift is None else self.b_o + shift.double()
        return folded_linear(self.w_o, bias, self.dtype)

    def per_head(self, weight: Tensor) -> Tensor:
        """Split weight [I, ...] to [heads, I / heads, ...], rounded to the model's dtype."""
        return weight.unflatten(0, (self.num_heads, -1)).to(self.dtype)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[n, length, I] to [n, heads, length, I / heads]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[n, heads, length, d] to [n, length, heads * d]."""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, key_bias: Tensor | None = None) -> Tensor:
    """Attention of scaled q [n, queries, I] over k, v [n or 1, keys, I]; softmax in at least float32. [n, queries, I]."""
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    scores = widen(q @ k.transpose(-1, -2))
    if key_bias is not None:
        scores = scores + key_bias
    return merge_heads(torch.softmax(scores, dim=-1).to(v.dtype) @ v)


def widen(x: Tensor) -> Tensor:
    """To float32, unless it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ProjectedImageSide(nn.Module):
    """One block's image side, projected: keys, values and queries of all positions from one product with static weights."""

    constant: Tensor
    positions: Tensor | None

    def __init__(
        self, to_image: Folded, to_tokens: Folded | None, positions: Tensor, shift: Tensor | None, *, fold_positions: bool
    ) -> None:
        """`to_image` serves the tokens' queries, `to_tokens` the image's own (None in the last attention).

        positions [P, C] is the image's position encoding; shift [C] is what the image lacks, in the residual too.
        """
        super().__init__()
        self.num_heads = to_image.num_heads
        weights = [to_image.w_k] if to_tokens is None else [to_image.w_k, to_tokens.w_q]
        self.width = to_image.w_k.shape[0]
        constant = positions.double() if fold_positions else torch.zeros_like(positions[:1]).double()
        if shift is not None:
            constant = constant + shift.double()
        constant = constant @ torch.cat(weights).T
        self.out_tokens = to_image.out()
        if to_tokens is not None:
            constant[:, self.width :] += to_tokens.b_q
            self.out_image = to_tokens.out(shift)
        dtype = to_image.dtype
        self.register_buffer("positions", None if fold_positions else positions.detach().clone())
        self.register_buffer("constant", constant.to(dtype))
        if fold_positions:
            self.product = folded_linear(torch.cat([*weights, to_image.w_v]), None, dtype)
        else:
            self.product = folded_linear(torch.cat(weights), None, dtype)
            self.value = folded_linear(to_image.w_v, None, dtype)

    def project(self, image: Tensor) -> tuple[Tensor, ...]:
        """From image [n or 1, P, C] to what the two attentions read: (keys, values) or (keys, values, queries, image)."""
        if self.positions is None:
            products = self.product(image)
            positional, values = products[..., : -self.width], products[..., -self.width :]
        else:
            positional, values = self.product(image + self.positions), self.value(image)
        positional = positional + self.constant
        if positional.shape[-1] == self.width:
            return positional, values
        return positional[..., : self.width], values, positional[..., self.width :], image

    def attend_to_image(self, q: Tensor, projected: tuple[Tensor, ...]) -> Tensor:
        """What scaled token queries [n, T, I] read from the image: [n, T, C]."""
        keys, values = projected[:2]
        return self.out_tokens(attend(q, keys, values, self.num_heads))

    def attend_to_tokens(self, k: Tensor, v: Tensor, projected: tuple[Tensor, ...], token_bias: Tensor) -> Tensor:
        """The image plus what it reads from the tokens: [n, P, C]; k, v [n, T, I], token_bias float32 [n, 1, 1, T]."""
        _, _, queries, image = projected
        return image + self.out_image(attend(queries, k, v, self.num_heads, token_bias))


class AbsorbedImageSide(nn.Module):
    """One block's image side, absorbed: the positions are never projected.

    Scores are laid out [n, heads, T, P] in both directions, so the long axis is innermost, and with a shared image the
    products of all prompts are one.
    """

    positions: Tensor | None
    key_weight: Tensor
    key_constant: Tensor | None
    value_weight: Tensor
    query_weight: Tensor
    query_constant: Tensor
    out_weight: Tensor
    out_bias: Tensor

    def __init__(
        self, to_image: Folded, to_tokens: Folded | None, positions: Tensor, shift: Tensor | None, *, fold_positions: bool
    ) -> None:
        """Arguments as in `ProjectedImageSide`."""
        super().__init__()
        self.num_heads = to_image.num_heads
        constant = positions.double() if fold_positions else torch.zeros_like(positions[:1]).double()
        self.register_buffer("positions", None if fold_positions else positions.detach().T.clone())
        self.register_buffer("key_weight", to_image.per_head(to_image.w_k))
        # A shift adds the same to all keys and drops out; the positions do not.
        key_constant = to_image.per_head(to_image.w_k @ constant.T) if fold_positions else None
        self.register_buffer("key_constant", key_constant)
        self.register_buffer("value_weight", to_image.per_head(to_image.w_v).transpose(1, 2).contiguous())
        self.out_tokens = to_image.out()
        if to_tokens is None:
            return
        if shift is not None:
            constant = constant + shift.double()
        query_constant = to_tokens.w_q @ constant.T + to_tokens.b_q[:, None]
        self.register_buffer("query_weight", to_tokens.per_head(to_tokens.w_q))
        self.register_buffer("query_constant", to_tokens.per_head(query_constant))
        self.register_buffer("out_weight", to_tokens.per_head(to_tokens.w_o.T))
        self.register_buffer("out_bias", to_tokens.out(shift).bias.detach())

    def project(self, image: Tensor) -> tuple[Tensor, ...]:
        """From image [n or 1, P, C] to (image with positions, channels first, for the scores; image)."""
        transposed = image.transpose(1, 2)
        return (transposed if self.positions is None else transposed + self.positions), image

    def attend_to_image(self, q: Tensor, projected: tuple[Tensor, ...]) -> Tensor:
        """What scaled token queries [n, T, I] read from the image: [n, T, C]."""
        positional, image = projected
        q = split_heads(q, self.num_heads)
        scores = widen(_times_shared(q @ self.key_weight, positional))
        if self.key_constant is not None:
            scores = scores + q @ self.key_constant
        weights = torch.softmax(scores, dim=-1).to(q.dtype)
        return self.out_tokens(merge_heads(_times_shared(weights, image) @ self.value_weight))

    def attend_to_tokens(self, k: Tensor, v: Tensor, projected: tuple[Tensor, ...], token_bias: Tensor) -> Tensor:
        """The image plus what it reads from the tokens: [n, P, C]; k, v [n, T, I], token_bias float32 [n, 1, 1, T]."""
        positional, image = projected
        k, v = split_heads(k, self.num_heads), split_heads(v, self.num_heads)
        scores = widen(_times_shared(k @ self.query_weight, positional)) + k @ self.query_constant
        scores = scores + token_bias.transpose(-1, -2)
        # A softmax over the short axis by hand: runtimes would transpose to make it the innermost one.
        powers = torch.exp(scores - scores.amax(dim=2, keepdim=True))
        weights = (powers / powers.sum(dim=2, keepdim=True)).to(v.dtype)
        attended = weights.flatten(1, 2).transpose(1, 2) @ (v @ self.out_weight).flatten(1, 2)
        return image + (attended + self.out_bias)


def _times_shared(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply x [n, heads, T, inner] by matrix [n or 1, inner, outer]; all prompts at once where the matrix is shared."""
    shape = [*x.shape[:3], matrix.shape[-1]]
    if matrix.shape[0] == 1:
        return (x.reshape(-1, x.shape[-1]) @ matrix[0]).reshape(shape)
    return (x.flatten(1, 2) @ matrix).reshape(shape)
