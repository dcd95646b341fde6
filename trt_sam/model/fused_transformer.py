"""The two-way transformer with folded attention: one token side, and an image side that is projected or absorbed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from trt_sam.model.fused_attention import (
    AbsorbedImageSide,
    Folded,
    ProjectedImageSide,
    attend,
    split_heads,
    split_parts,
)
from trt_sam.model.fused_parts import folded_linear
from trt_sam.model.transformer import TwoWayAttentionBlock, TwoWayTransformer

__all__ = ["FusedTransformer"]

Image = TypeVar("Image")
Projected = TypeVar("Projected")


class ImageSide(Protocol[Image, Projected]):
    """The image's side of one block, see `fused_attention`; `Image` is [n or 1, P, C], or what stands for it."""

    def project(self, image: Image, image_index: Tensor | None = None) -> Projected:
        """What the other two take of the image."""

    def attend_to_image(self, q: Tensor, projected: Projected) -> Tensor:
        """What scaled token queries [n, heads, T, d] read from the image: [n, T, C]."""

    def attend_to_tokens(self, k: Tensor, v: Tensor, projected: Projected, token_bias: Tensor) -> Image:
        """The image plus what it reads from the tokens."""


class FusedTransformer(nn.Module):
    """`TwoWayTransformer` with its constants folded.

    The tokens' position encoding is the transformer's own input, so `(tokens + pe) W = tokens W + pe W`, and the terms `pe W`
    of all products that mix positional and plain columns come from one product at the start, biases included. Layer 1's
    tokens are `pe` itself: its self-attention is made of terms alone. Values take no position: their columns are zero.
    """

    def __init__(
        self,
        transformer: TwoWayTransformer,
        positions: Tensor,
        shift: Tensor | None,
        *,
        absorbed: bool,
        fold_positions: bool,
        prepared: Sequence[nn.Module] = (),
    ) -> None:
        """Positions [P, C] are the image's position encoding, shift [C] a constant that the image given to forward lacks.

        `prepared` are image sides that are there already, one more than blocks; they include the image's LayerNorms.
        """
        super().__init__()
        image_side = AbsorbedImageSide if absorbed else ProjectedImageSide
        self.token_layers, self.image_layers, self.image_norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        blocks = [block for block in transformer.layers if isinstance(block, TwoWayAttentionBlock)]
        last = Folded(transformer.final_attn_token_to_image)
        terms: list[tuple[Tensor, Tensor]] = []
        for index, block in enumerate(blocks):
            own, to_tokens = Folded(block.self_attn), Folded(block.cross_attn_image_to_token)
            to_image = Folded(block.cross_attn_token_to_image, shift)
            # The last block's keys and values share their product with the queries of the attention after it.
            follower = last if index + 1 == len(blocks) else None
            self.token_layers.append(_TokenLayer(block, own, to_image, to_tokens, follower))
            if prepared:
                self.image_layers.append(prepared[index])
                self.image_norms.append(nn.Identity())
            else:
                self.image_layers.append(image_side(to_image, to_tokens, positions, shift, fold_positions=fold_positions))
                self.image_norms.append(copy.deepcopy(block.norm4))
            own_value = own.w_v if block.skip_first_layer_pe else torch.zeros_like(own.w_v)
            terms.append((torch.cat([own.w_q, own.w_k, own_value]), nn.functional.pad(own.b_q, (0, 2 * own.b_q.shape[0]))))
            weights = [to_tokens.w_k, torch.zeros_like(to_tokens.w_v)]
            bias = to_tokens.b_q.new_zeros(2 * to_tokens.b_q.shape[0])
            if follower is not None:
                weights, bias = [*weights, follower.w_q], torch.cat([bias, follower.b_q])
            terms.append((torch.cat(weights), bias))
            shift = None
        self.final_image = prepared[-1] if prepared else image_side(last, None, positions, None, fold_positions=fold_positions)
        self.final_norm = copy.deepcopy(transformer.norm_final_attn)
        # After the last block tokens no longer see each other, so only the output tokens need the last attention. Cut early is
        # less arithmetic, cut late a kernel less.
        self.cut_early = absorbed
        self.widths = [weight.shape[0] for weight, _ in terms]
        weight, bias = torch.cat([weight for weight, _ in terms]), torch.cat([bias for _, bias in terms])
        self.terms = folded_linear(weight, bias, last.dtype)

    def forward(
        self, image: Image, tokens: Tensor, token_bias: Tensor, num_outputs: int, image_index: Tensor | None = None
    ) -> tuple[Tensor, Image]:
        """Run image [n or 1, P, C] (or what stands for it) against tokens [n, T, C]; token_bias is float32 [n, 1, 1, T].

        With `image_index` [n] there are any number of images, and each prompt has the one at its index.

        Returns the first `num_outputs` tokens [n, num_outputs, C] and the image [n, P, C].
        """
        token_pe, queries = tokens, tokens[:, :0]
        terms = self.terms(tokens).split(self.widths, dim=-1)
        layers = [layer for layer in self.token_layers if isinstance(layer, _TokenLayer)]
        own = layers[0].own_parts(tokens, terms[0])
        for index, layer in enumerate(layers):
            image_side: ImageSide[Image, Any] = cast(Any, self.image_layers[index])
            projected = image_side.project(image, image_index)
            image_index = None  # from here on every prompt has an image of its own
            tokens = layer.self_attention(tokens, own, token_bias)
            tokens = layer.after_image(tokens, image_side.attend_to_image(layer.queries(tokens + token_pe), projected))
            _, term, *later = terms[2 * index :]
            if later and not self.cut_early:
                keys, values, *own = _arrange_together(tokens, layer, term, layers[index + 1], later[0])
            else:
                keys, values, queries = layer.keys_values_queries(tokens, term)
                own = layers[index + 1].own_parts(tokens, later[0]) if later else []
            image = self.image_norms[index](image_side.attend_to_tokens(keys, values, projected, token_bias))
        if self.cut_early:
            queries, tokens = queries[:, :, :num_outputs], tokens[:, :num_outputs]
        final_image: ImageSide[Image, Any] = cast(Any, self.final_image)
        attended = final_image.attend_to_image(queries, final_image.project(image))
        return self.final_norm((tokens + attended)[:, :num_outputs]), image


class _TokenLayer(nn.Module):
    """The token side of one block; heads come first ([n, heads, T, d]) in what it gives to the image side."""

    def __init__(
        self, block: TwoWayAttentionBlock, own: Folded, to_image: Folded, to_tokens: Folded, follower: Folded | None
    ) -> None:
        super().__init__()
        self.num_heads = own.num_heads
        self.is_first = block.skip_first_layer_pe
        if not self.is_first:
            self.own = folded_linear(torch.cat([own.w_q, own.w_k, own.w_v]), None, own.dtype)
        self.own_out = own.out()
        self.query = folded_linear(to_image.w_q, to_image.b_q, own.dtype)
        following = [] if follower is None else [follower.w_q]
        self.product = folded_linear(torch.cat([to_tokens.w_k, to_tokens.w_v, *following]), None, own.dtype)
        self.parts = 2 + len(following)
        self.norm1, self.norm2, self.norm3 = (copy.deepcopy(norm) for norm in (block.norm1, block.norm2, block.norm3))
        self.mlp = copy.deepcopy(block.mlp)

    def own_parts(self, tokens: Tensor, term: Tensor) -> list[Tensor]:
        """Queries, keys and values [n, heads, T, d] of the self-attention; term [n, T, 3 * C]."""
        products = split_heads(term, 3 * self.num_heads)
        if not self.is_first:
            products = split_heads(self.own(tokens), 3 * self.num_heads) + products
        return split_parts(products, self.num_heads)

    def self_attention(self, tokens: Tensor, own: list[Tensor], token_bias: Tensor) -> Tensor:
        """Tokens [n, T, C] after their self-attention with its queries, keys and values."""
        q, k, v = own
        attended = self.own_out(attend(q, k, v, token_bias))
        return self.norm1(attended if self.is_first else tokens + attended)

    def queries(self, tokens: Tensor) -> Tensor:
        """Scaled queries [n, heads, T, d] to the image from tokens with their positions."""
        return split_heads(self.query(tokens), self.num_heads)

    def after_image(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Tokens [n, T, C] after what they read from the image, and their MLP."""
        tokens = self.norm2(tokens + attended)
        return self.norm3(tokens + self.mlp(tokens))

    def keys_values_queries(self, tokens: Tensor, term: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values for the image; scaled queries of the last attention, empty but in the last block."""
        heads = self.parts * self.num_heads
        # Heads first on both sides of the sum: TensorRT then adds while it arranges heads, one kernel instead of two.
        products = split_heads(self.product(tokens), heads) + split_heads(term, heads)
        keys, values, *queries = split_parts(products, self.num_heads)
        return keys, values, queries[0] if queries else keys[:, :0]


def _arrange_together(
    tokens: Tensor, layer: _TokenLayer, term: Tensor, following: _TokenLayer, following_term: Tensor
) -> list[Tensor]:
    """Keys and values for the image, then queries, keys and values of the next self-attention, each [n, heads, T, d].

    Their heads differ in width. Cut into pieces of the smaller width, all are arranged by one kernel in TensorRT.
    """
    heads = layer.num_heads
    products = torch.cat([layer.product(tokens), following.own(tokens)], dim=-1)
    terms = torch.cat([term, following_term], dim=-1)
    pieces = products.shape[-1] * 2 * heads // term.shape[-1]
    products = split_heads(products, pieces) + split_heads(terms, pieces)
    wide = products[:, 2 * heads :].unflatten(1, (3 * heads, -1)).transpose(2, 3).flatten(3)
    return [*split_parts(products[:, : 2 * heads], heads), *split_parts(wide, heads)]
