"""`PreparedImage`: what of the decoder depends on the image alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trt_sam.model.fused_attention import Folded
from trt_sam.model.prepared.rows import blocks_of, column_sums, rows_of_blocks
from trt_sam.model.sam import SamDecoder

__all__ = ["PreparedImage"]


class PreparedImage(nn.Module):
    """From an image embedding to its terms, in the order of `contract.term_specs`.

    B of the package's docstring is kept channels first, as the embedding is: most terms are wanted with positions innermost.
    """

    shift: Tensor
    bias: Tensor
    pixel_weight: Tensor

    def __init__(self, decoder: SamDecoder) -> None:
        """From a float32 or float64 decoder with `no_mask_embed` and two-way blocks as SAM's."""
        super().__init__()
        transformer, shift = decoder.mask_decoder.transformer, decoder.prompt_encoder.no_mask_embed.weight.detach()
        positions, dtype = decoder.image_pe.detach()[0].double(), shift.dtype
        blocks, rows = blocks_of(transformer), rows_of_blocks(transformer)
        self.register_buffer("shift", shift[0][:, None])
        self.register_buffer("bias", Folded(blocks[0].cross_attn_image_to_token).b_o[:, None].to(dtype))
        self.blocks = nn.ModuleList()
        for index, (block, row) in enumerate(zip(blocks, rows, strict=True)):
            to_image, to_tokens = Folded(block.cross_attn_token_to_image), Folded(block.cross_attn_image_to_token)
            # Later positions are scaled by norms of the prompt, and their encoding is not: it is added there.
            encoding = positions if index == 0 else None
            self.blocks.append(_BlockTerms(to_image, to_tokens, encoding, row.before, block.norm4.weight.detach()))
        self.final = _BlockTerms(Folded(transformer.final_attn_token_to_image), None, None, (), None)
        first = decoder.mask_decoder.output_upscaling[0]
        assert isinstance(first, nn.ConvTranspose2d)
        # [C, out, row, column] to [row, C, column and channel]
        weight = first.weight.detach().permute(2, 0, 3, 1).flatten(2)
        self.register_buffer("pixel_weight", weight.contiguous())

    def forward(self, image_embeddings: Tensor) -> tuple[Tensor, ...]:
        """From image_embeddings [1, C, height, width] to the terms."""
        image = image_embeddings.flatten(2).squeeze(0) + self.shift
        terms: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, _BlockTerms)
            terms += block.attention_terms(image)
            image, more = block.norm_terms(image + self.bias if index == 0 else image)
            terms += more
        terms += self.final.attention_terms(image)
        return *terms, image.T @ self.pixel_weight


class _BlockTerms(nn.Module):
    """The image's terms in one block; the weights' heads come first."""

    key_weight: Tensor
    value_weight: Tensor
    key_positions: Tensor | None
    query_weight: Tensor | None
    query_positions: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        to_image: Folded,
        to_tokens: Folded | None,
        positions: Tensor | None,
        rows: tuple[Tensor, ...],
        scale: Tensor | None,
    ) -> None:
        """Without `to_tokens` (after the last block) there are keys and values alone; scale [C] is the LayerNorm's."""
        super().__init__()
        dtype, self.num_heads = to_image.dtype, to_image.num_heads
        self.register_buffer("key_weight", to_image.w_k.to(dtype))
        self.register_buffer("value_weight", to_image.w_v.T.to(dtype).contiguous())
        queries = None if to_tokens is None else to_tokens.w_q
        self.register_buffer("query_weight", None if queries is None else queries.to(dtype))
        keys_pe = queries_pe = None
        if positions is not None and to_tokens is not None:
            keys_pe = to_image.w_k @ positions.T
            queries_pe = to_tokens.w_q @ positions.T + to_tokens.b_q[:, None]
        self.register_buffer("key_positions", None if keys_pe is None else keys_pe.to(dtype))
        self.register_buffer("query_positions", None if queries_pe is None else queries_pe.to(dtype))
        self.register_buffer("scale", None if scale is None else scale[:, None])
        # Twice, for the mixed term of a square.
        self.rows = nn.ParameterList([nn.Parameter((2 * torch.atleast_2d(row)).to(dtype), requires_grad=False) for row in rows])

    def attention_terms(self, image: Tensor) -> list[Tensor]:
        """Keys [H, d, P], values [H, P, d] and, where there are any, queries [H, d, P] of image [C, P]."""
        values = (image.T @ self.value_weight).unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        terms = [self._heads(_plus(self.key_weight @ image, self.key_positions)), values]
        if self.query_weight is not None:
            terms.append(self._heads(_plus(self.query_weight @ image, self.query_positions)))
        return terms

    def norm_terms(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The image [C, P] after the LayerNorm's centring and scale, and what its deviation needs.

        That is twice its product with each row, [H, d, P] of an attention and [1, P] of a constant, and its square [1, 1, P].
        """
        assert self.scale is not None
        image = image - column_sums(image) / image.shape[0]
        products = [row @ image for row in self.rows]
        terms = [self._heads(each) if each.shape[0] > 1 else each for each in products]
        return image * self.scale, [*terms, column_sums(image * image)[None]]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.num_heads, -1))


def _plus(x: Tensor, constant: Tensor | None) -> Tensor:
    return x if constant is None else x + constant
