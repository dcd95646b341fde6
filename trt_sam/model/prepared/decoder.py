"""`PreparedDecoder`: masks from prompts and the terms of a `PreparedImage`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trt_sam.model.fused import decoder_tokens
from trt_sam.model.fused_parts import BatchedHeads, GatheredPoints, ProductUpscaling
from trt_sam.model.fused_transformer import FusedTransformer
from trt_sam.model.prepared.rows import MixedRows, rows_of_blocks
from trt_sam.model.prepared.sides import MixedImage, prepared_sides
from trt_sam.model.sam import SamDecoder

__all__ = ["PreparedDecoder"]


class PreparedDecoder(nn.Module):
    """`SamDecoder` without an earlier mask, on prepared terms: the same outputs, by exact algebra."""

    output_tokens: Tensor

    def __init__(self, decoder: SamDecoder) -> None:
        """From a float32 or float64 decoder, which is not changed and shares no tensor with this one."""
        super().__init__()
        mask_decoder = decoder.mask_decoder
        transformer, positions = mask_decoder.transformer, decoder.image_pe.detach()[0]
        tokens = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
        self.register_buffer("output_tokens", tokens.detach())
        self.points = GatheredPoints(decoder.prompt_encoder)
        self.transformer = FusedTransformer(
            transformer, positions, None, absorbed=True, fold_positions=True, prepared=prepared_sides(transformer, positions)
        )
        self.heads = BatchedHeads(mask_decoder)
        self.upscaling = ProductUpscaling(mask_decoder, decoder.grid, two_steps=True)
        first = mask_decoder.output_upscaling[0]
        assert isinstance(first, nn.ConvTranspose2d)
        assert first.bias is not None
        weight = first.weight.detach().double().permute(2, 3, 1, 0).flatten(0, 2)
        *rows, constant = (row @ weight.T for row in rows_of_blocks(transformer)[-1].after)
        constant = constant + first.bias.detach().double().repeat(4)
        num_heads = mask_decoder.transformer.final_attn_token_to_image.num_heads
        self.pixel_rows = MixedRows([*rows, constant], None, num_heads, tokens.dtype)

    def forward(self, terms: Sequence[Tensor], point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Masks [n, 4, 4 * height, 4 * width] and predicted IoU [n, 4] of prompts as `SamDecoder.forward` takes them."""
        sparse = self.points(point_coords, point_labels).to(self.output_tokens.dtype)
        tokens, token_bias = decoder_tokens(self.output_tokens, sparse, point_labels)
        *terms, pixels = terms
        image = MixedImage(tuple(terms))
        tokens, image = self.transformer(image, tokens, token_bias, self.output_tokens.shape[0])
        hyper, iou = self.heads(tokens)
        assert image.mix is not None
        assert image.scale is not None
        # A block's rows are two products, [n, 2, P, 2 * channels].
        rows = self.pixel_rows(image.values).unflatten(2, (2, -1)).transpose(1, 2)
        mixed = image.mix.unsqueeze(1).transpose(2, 3) @ rows
        pixels = mixed + pixels * image.scale.unsqueeze(3)
        return self.upscaling.after_first(pixels, hyper[:, 1:]), iou
