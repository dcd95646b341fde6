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

__all__ = ["AbsorbedImageSide", "Folded", "ProjectedImageSide", "attend", "split_heads", "split_parts"]


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


def split_parts(x: Tensor, num_heads: int) -> list[Tensor]:
    """[n, parts * heads, length, d] to its parts [n, heads, length, d].

    Parts are cut after the heads were moved to the front: cut before, TensorRT arranges each in a kernel of its own.
    """
    return [x[:, start : start + num_heads] for start in range(0, x.shape[1], num_heads)]


def attend(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """Attention of scaled q [n, heads, queries, d] over k, v [n or 1, heads, keys, d]: [n, queries, heads * d].

    Softmax runs in at least float32. `key_bias` (float32 [n, 1, 1, keys]) is added to the scores.
    """
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
        self.width = to_image.w_k.shape[0]
        weights = [to_image.w_k] if to_tokens is None else [to_image.w_k, to_tokens.w_q]
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
        if fold_positions:
            # Zeros for the values too: one addition to the whole product leaves TensorRT one kernel to arrange all heads.
            constant = nn.functional.pad(constant, (0, self.width))
            self.product = folded_linear(torch.cat([*weights, to_image.w_v]), None, dtype)
        else:
            self.product = folded_linear(torch.cat(weights), None, dtype)
            self.value = folded_linear(to_image.w_v, None, dtype)
        self.register_buffer("constant", constant.to(dtype))

    def project(self, image: Tensor, image_index: Tensor | None = None) -> tuple[Tensor, ...]:
        """From image [n or 1, P, C] to (image, keys, values, queries), all but the first [n or 1, heads, P, d].

        With `image_index` [n] there are any number of images, each projected once, whatever the number of its prompts. The
        last attention's image side has no queries.
        """
        if self.positions is None:
            products = self.product(image) + self.constant
        else:
            products = torch.cat([self.product(image + self.positions) + self.constant, self.value(image)], dim=-1)
        if image_index is not None:
            image, products = image.index_select(0, image_index), products.index_select(0, image_index)
        heads = split_heads(products, products.shape[-1] // self.width * self.num_heads)
        keys, *queries, values = split_parts(heads, self.num_heads)
        return image, keys, values, *queries

    def attend_to_image(self, q: Tensor, projected: tuple[Tensor, ...]) -> Tensor:
        """What scaled token queries [n, heads, T, d] read from the image: [n, T, C]."""
        _, keys, values, *_ = projected
        return self.out_tokens(attend(q, keys, values))

    def attend_to_tokens(self, k: Tensor, v: Tensor, projected: tuple[Tensor, ...], token_bias: Tensor) -> Tensor:
        """The image plus what it reads from the tokens: [n, P, C]; k, v [n, heads, T, d], token_bias float32 [n, 1, 1, T]."""
        image, _, _, queries = projected
        return image + self.out_image(attend(queries, k, v, token_bias))


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
        # Weights of a softmax add up to 1 in each head, so the bias may join the few values instead of the 4096 positions.
        bias = to_tokens.b_o if shift is None else to_tokens.b_o + shift.double()
        self.register_buffer("out_bias", (bias / to_tokens.num_heads).to(to_tokens.dtype))

    def project(self, image: Tensor, image_index: Tensor | None = None) -> tuple[Tensor, ...]:
        """From image [n or 1, P, C] to (image with positions, channels first, for the scores; image).

        With `image_index` [n] of any number of images, each prompt gets its own.
        """
        if image_index is not None:
            image = image.index_select(0, image_index)
        transposed = image.transpose(1, 2)
        return (transposed if self.positions is None else transposed + self.positions), image

    def attend_to_image(self, q: Tensor, projected: tuple[Tensor, ...]) -> Tensor:
        """What scaled token queries [n, heads, T, d] read from the image: [n, T, C]."""
        positional, image = projected
        scores = widen(_times_shared(q @ self.key_weight, positional))
        if self.key_constant is not None:
            scores = scores + q @ self.key_constant
        weights = torch.softmax(scores, dim=-1).to(q.dtype)
        return self.out_tokens(merge_heads(_times_shared(weights, image) @ self.value_weight))

    def attend_to_tokens(self, k: Tensor, v: Tensor, projected: tuple[Tensor, ...], token_bias: Tensor) -> Tensor:
        """The image plus what it reads from the tokens: [n, P, C]; k, v [n, heads, T, d], token_bias float32 [n, 1, 1, T]."""
        positional, image = projected
        scores = widen(_times_shared(k @ self.query_weight, positional)) + k @ self.query_constant
        scores = scores + token_bias.transpose(-1, -2)
        # A softmax over the short axis by hand: runtimes would transpose to make it the innermost one.
        powers = torch.exp(scores - scores.amax(dim=2, keepdim=True))
        weights = (powers / powers.sum(dim=2, keepdim=True)).to(v.dtype)
        values = v @ self.out_weight + self.out_bias
        return image + weights.flatten(1, 2).transpose(1, 2) @ values.flatten(1, 2)


def _times_shared(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply x [n, heads, T, inner] by matrix [n or 1, inner, outer]; all prompts at once where the matrix is shared."""
    shape = [*x.shape[:3], matrix.shape[-1]]
    if matrix.shape[0] == 1:
        return (x.reshape(-1, x.shape[-1]) @ matrix.squeeze(0)).reshape(shape)
    return (x.flatten(1, 2) @ matrix).reshape(shape)
