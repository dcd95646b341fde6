"""The image's side of the two-way transformer on prepared terms: an image of norms, weights and rows, never [P, C] itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trt_sam.model.fused_attention import Folded, merge_heads, split_heads
from trt_sam.model.prepared.rows import BlockRows, MixedRows, as_rows, blocks_of, column_sums, rows_of_blocks
from trt_sam.model.transformer import TwoWayTransformer

__all__ = ["MixedImage", "PreparedSide", "prepared_sides"]


@dataclass(frozen=True)
class MixedImage:
    """An image as diag(scale) B + mix^T N, see the package's docstring."""

    terms: tuple[Tensor, ...]
    """Of the image, those that are still to come."""
    values: tuple[Tensor, ...] = ()
    """What made the rows N: values [n, H, T, d] of the attentions so far."""
    mix: Tensor | None = None
    """[n, J, P]; None as long as there are no rows."""
    scale: Tensor | None = None
    """[n, 1, P]; None for 1."""


def prepared_sides(transformer: TwoWayTransformer, positions: Tensor) -> list[PreparedSide]:
    """The image's side of each block and of the last attention; positions [P, C]."""
    blocks, rows = blocks_of(transformer), rows_of_blocks(transformer)
    sides = []
    for index, block in enumerate(blocks):
        to_image, to_tokens = Folded(block.cross_attn_token_to_image), Folded(block.cross_attn_image_to_token)
        held = rows[index - 1].after if index else ()
        sides.append(PreparedSide(to_image, to_tokens, positions, held, rows[index], block.norm4.eps))
    last = Folded(transformer.final_attn_token_to_image)
    return [*sides, PreparedSide(last, None, positions, rows[-1].after, None, 0.0)]


class PreparedSide(nn.Module):
    """One block's image side, called like `AbsorbedImageSide`, the LayerNorm after it included."""

    key_positions: Tensor
    query_positions: Tensor

    def __init__(
        self,
        to_image: Folded,
        to_tokens: Folded | None,
        positions: Tensor,
        held: Sequence[Tensor],
        rows: BlockRows | None,
        eps: float,
    ) -> None:
        """`held` are the rows that the image has when it comes here, `rows` those around the LayerNorm, `eps` its epsilon."""
        super().__init__()
        heads, dtype = to_image.num_heads, to_image.dtype
        self.num_heads, self.eps = heads, eps
        self.out_tokens = to_image.out()
        wide = positions.double()
        if held:
            self.key_rows, self.value_rows = (MixedRows(held, w, heads, dtype) for w in (to_image.w_k, to_image.w_v))
            self.register_buffer("key_positions", to_image.per_head(to_image.w_k @ wide.T))
        if to_tokens is None or rows is None:
            return
        if held:
            self.query_rows = MixedRows(held, to_tokens.w_q, heads, dtype)
            self.register_buffer("query_positions", to_tokens.per_head(to_tokens.w_q @ wide.T + to_tokens.b_q[:, None]))
        self.norm_rows = MixedRows(rows.before, None, heads, dtype)

    def project(self, image: MixedImage, image_index: Tensor | None = None) -> MixedImage:
        """The image as it is: its products are among its terms. All prompts share one."""
        assert image_index is None, "prepared terms are of one image"
        return image

    def attend_to_image(self, q: Tensor, image: MixedImage) -> Tensor:
        """What scaled token queries [n, heads, T, d] read from the image: [n, T, C]."""
        keys, values, *_ = image.terms
        if image.mix is None or image.scale is None:
            read = torch.softmax(q @ keys, dim=-1) @ values
        else:
            scores = self._scores(q, keys, self.key_rows, self.key_positions, image)
            weights = torch.softmax(scores, dim=-1)
            mixed = (weights.flatten(1, 2) @ image.mix.transpose(1, 2)).unflatten(1, (self.num_heads, -1))
            read = (weights * image.scale.unsqueeze(1)) @ values
            read = read + mixed @ split_heads(self.value_rows(image.values), self.num_heads)
        return self.out_tokens(merge_heads(read))

    def attend_to_tokens(self, k: Tensor, v: Tensor, image: MixedImage, token_bias: Tensor) -> MixedImage:
        """The image after what it reads from the tokens and its LayerNorm; k, v [n, heads, T, d], token_bias [n, 1, 1, T]."""
        _, _, queries, *terms = image.terms
        has_rows = image.mix is not None
        scores = self._scores(k, queries, self.query_rows, self.query_positions, image) if has_rows else k @ queries
        scores = scores + token_bias.transpose(-1, -2)
        # A softmax over the short axis by hand: runtimes would transpose to make it the innermost one.
        powers = torch.exp(scores - scores.amax(dim=2, keepdim=True))
        weights = (powers / powers.sum(dim=2, keepdim=True)).flatten(1, 2)
        mix = weights if image.mix is None else torch.cat([image.mix, weights], dim=1)
        return self._normed(mix, (*image.values, v), image.scale, terms)

    def _scores(self, x: Tensor, term: Tensor, rows: MixedRows, positions: Tensor, image: MixedImage) -> Tensor:
        """The scores [n, heads, T, P] of x [n, heads, T, d] against an image that has rows."""
        assert image.mix is not None
        assert image.scale is not None
        factors = x @ split_heads(rows(image.values), self.num_heads).transpose(-1, -2)
        mixed = (factors.flatten(1, 2) @ image.mix).unflatten(1, (self.num_heads, -1))
        return (x @ term) * image.scale.unsqueeze(1) + mixed + x @ positions

    def _normed(self, mix: Tensor, values: tuple[Tensor, ...], scale: Tensor | None, terms: list[Tensor]) -> MixedImage:
        """After the LayerNorm, whose terms come first of `terms`."""
        count = len(self.norm_rows.weights)
        *products, square = terms[: count + 1]
        rows = self.norm_rows(values)
        mixed = as_rows(values, products)
        if scale is not None:
            mixed, square = mixed * scale, square * (scale * scale)
        squares = square + column_sums((mixed + (rows @ rows.transpose(1, 2)) @ mix) * mix)
        norm = torch.rsqrt(squares / rows.shape[-1] + self.eps)
        mix = torch.cat([mix * norm, torch.ones_like(norm)], dim=1)
        return MixedImage(tuple(terms[count + 1 :]), values, mix, norm if scale is None else scale * norm)
