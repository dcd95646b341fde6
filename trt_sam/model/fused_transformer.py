"""The two-way transformer with folded attention: one token side, and an image side that is projected or absorbed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trt_sam.model.fused_attention import AbsorbedImageSide, Folded, ProjectedImageSide, attend
from trt_sam.model.fused_parts import folded_linear
from trt_sam.model.transformer import TwoWayAttentionBlock, TwoWayTransformer

__all__ = ["FusedTransformer"]


class FusedTransformer(nn.Module):
    """`TwoWayTransformer` with its constants folded.

    The tokens' position encoding is the transformer's own input, so `(tokens + pe) W = tokens W + pe W`, and the terms `pe W`
    of all products, with their biases, are one product at the start. Layer 1's tokens are `pe` itself: its self-attention
    is made of terms alone. Values take no position: their columns of the terms are zero.
    """

    def __init__(
        self, transformer: TwoWayTransformer, positions: Tensor, shift: Tensor | None, *, absorbed: bool, fold_positions: bool
    ) -> None:
        """Positions [P, C] are the image's position encoding, shift [C] a constant that the image given to forward lacks."""
        super().__init__()
        image_side = AbsorbedImageSide if absorbed else ProjectedImageSide
        self.token_layers, self.image_layers, self.image_norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        terms: list[tuple[Tensor, Tensor]] = []
        for block in transformer.layers:
            assert isinstance(block, TwoWayAttentionBlock)
            own, to_tokens = Folded(block.self_attn), Folded(block.cross_attn_image_to_token)
            to_image = Folded(block.cross_attn_token_to_image, shift)
            self.token_layers.append(_TokenLayer(block, own, to_image, to_tokens))
            self.image_layers.append(image_side(to_image, to_tokens, positions, shift, fold_positions=fold_positions))
            self.image_norms.append(copy.deepcopy(block.norm4))
            value = own.w_v if block.skip_first_layer_pe else torch.zeros_like(own.w_v)
            terms += [(torch.cat([own.w_q, own.w_k, value]), own.b_q), (to_image.w_q, to_image.b_q)]
            terms += [(torch.cat([to_tokens.w_k, torch.zeros_like(to_tokens.w_v)]), to_tokens.b_q[:0])]
            shift = None
        last = Folded(transformer.final_attn_token_to_image)
        terms.append((last.w_q, last.b_q))
        self.final_image = image_side(last, None, positions, None, fold_positions=fold_positions)
        self.final_query = folded_linear(last.w_q, None, last.dtype)
        self.final_norm = copy.deepcopy(transformer.norm_final_attn)
        self.widths = [weight.shape[0] for weight, _ in terms]
        biases = [nn.functional.pad(bias, (0, weight.shape[0] - bias.shape[0])) for weight, bias in terms]
        self.terms = folded_linear(torch.cat([weight for weight, _ in terms]), torch.cat(biases), last.dtype)

    def forward(self, image: Tensor, tokens: Tensor, token_bias: Tensor) -> tuple[Tensor, Tensor]:
        """From image [n or 1, P, C], tokens [n, T, C] and token_bias (float32 [n, 1, 1, T]) to (tokens, image [n, P, C])."""
        *terms, final_term = self.terms(tokens).split(self.widths, dim=-1)
        for index, (layer, image_side) in enumerate(zip(self.token_layers, self.image_layers, strict=True)):
            assert isinstance(layer, _TokenLayer)
            assert isinstance(image_side, ProjectedImageSide | AbsorbedImageSide)
            own_term, query_term, key_term = terms[3 * index : 3 * index + 3]
            projected = image_side.project(image)
            tokens = layer.self_attention(tokens, own_term, token_bias)
            tokens = layer.after_image(tokens, image_side.attend_to_image(layer.query(tokens) + query_term, projected))
            k, v = (layer.key_value(tokens) + key_term).chunk(2, dim=-1)
            image = self.image_norms[index](image_side.attend_to_tokens(k, v, projected, token_bias))
        projected = self.final_image.project(image)
        attended = self.final_image.attend_to_image(self.final_query(tokens) + final_term, projected)
        return self.final_norm(tokens + attended), image


class _TokenLayer(nn.Module):
    """The token side of one block; what adds position terms to a product is said by the caller."""

    def __init__(self, block: TwoWayAttentionBlock, own: Folded, to_image: Folded, to_tokens: Folded) -> None:
        super().__init__()
        self.num_heads = own.num_heads
        self.is_first = block.skip_first_layer_pe
        if not self.is_first:
            self.own = folded_linear(torch.cat([own.w_q, own.w_k, own.w_v]), None, own.dtype)
        self.own_out = own.out()
        self.query = folded_linear(to_image.w_q, None, own.dtype)
        self.key_value = folded_linear(torch.cat([to_tokens.w_k, to_tokens.w_v]), None, own.dtype)
        self.norm1, self.norm2, self.norm3 = (copy.deepcopy(norm) for norm in (block.norm1, block.norm2, block.norm3))
        self.mlp = copy.deepcopy(block.mlp)

    def self_attention(self, tokens: Tensor, term: Tensor, token_bias: Tensor) -> Tensor:
        """Tokens [n, T, C] after their self-attention; term [n, T, 3 * C]."""
        products = term if self.is_first else self.own(tokens) + term
        q, k, v = products.chunk(3, dim=-1)
        attended = self.own_out(attend(q, k, v, self.num_heads, token_bias))
        return self.norm1(attended if self.is_first else tokens + attended)

    def after_image(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Tokens [n, T, C] after what they read from the image, and their MLP."""
        tokens = self.norm2(tokens + attended)
        return self.norm3(tokens + self.mlp(tokens))
