"""The decoder rewritten for speed: the same outputs, by exact algebra, in two forms.

`fuse` makes one from a loaded `SamDecoder`. The form for CPUs absorbs the image side's projections into the tokens: least
arithmetic. The form for GPUs keeps them: few kernels, attention that TensorRT fuses, one tensor to quantize per product.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trt_sam.contract import LABEL_ABSENT
from trt_sam.model.fused_parts import BatchedHeads, GatheredPoints, ProductUpscaling
from trt_sam.model.fused_transformer import FusedTransformer
from trt_sam.model.mask_decoder import ABSENT_KEY_BIAS, MaskDecoder
from trt_sam.model.sam import SamDecoder

__all__ = ["FormOptions", "FusedDecoder", "decoder_tokens", "for_target", "fuse"]

ATTENTIONS = ("plain", "projected", "absorbed")


@dataclass(frozen=True)
class FormOptions:
    """Which exact rewrites are made; every combination gives the outputs of `SamDecoder`."""

    attention: str = "projected"
    """"plain" is Meta's; "projected" and "absorbed" fold constants (`fused_attention`)."""
    fold_positions: bool = True
    """Image positions and the no-mask embedding as constants of the products; not for "plain" attention."""
    deferred_shuffle: bool = True
    """Upscaling as matrix products, pixels rearranged at the end."""
    batched_heads: bool = True
    """Hypernetworks and IoU head as one batched MLP."""
    gathered_points: bool = True
    """Point embedding by one lookup."""
    shared_image: bool = True
    """Where all prompts share one image, layer 1's image side is computed once, not once per prompt."""
    mask_input: bool = False
    """Take `mask_input`; without it the mask branch is absent."""

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention is {self.attention!r}, must be one of {', '.join(ATTENTIONS)}")


def for_target(target: str, *, mask_input: bool = False) -> FormOptions:
    """The form for "cpu" (least arithmetic) or "gpu" (fewest kernels)."""
    attention = {"cpu": "absorbed", "gpu": "projected"}.get(target)
    if attention is None:
        raise ValueError(f"target is {target!r}, must be cpu or gpu")
    return FormOptions(attention=attention, mask_input=mask_input)


def fuse(decoder: SamDecoder, form: FormOptions) -> FusedDecoder:
    """Rewrite a float32 or float64 decoder in a form; the decoder itself is not changed and shares no tensor with it.

    Raises:
        ValueError: the decoder is half precision; fuse it first, then call `to_half`.
    """
    dtype = decoder.prompt_encoder.no_mask_embed.weight.dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the decoder is {dtype}; fuse a float32 decoder, then call to_half() on the result")
    return FusedDecoder(copy.deepcopy(decoder), form).eval().requires_grad_(False)


class FusedDecoder(nn.Module):
    """`SamDecoder` in one form; made by `fuse`."""

    output_tokens: Tensor
    no_mask: Tensor
    image_pe: Tensor

    def __init__(self, decoder: SamDecoder, form: FormOptions) -> None:
        super().__init__()
        self.form, self.grid = form, decoder.grid
        encoder, mask_decoder = decoder.prompt_encoder, decoder.mask_decoder
        tokens = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
        self.register_buffer("output_tokens", tokens.detach())
        no_mask = encoder.no_mask_embed.weight.detach()
        folds = form.fold_positions and form.attention != "plain"
        self.folds_no_mask = folds and not form.mask_input
        if not self.folds_no_mask:
            self.register_buffer("no_mask", no_mask)
        self.points = GatheredPoints(encoder) if form.gathered_points else None
        self.encoder = encoder if form.mask_input or not form.gathered_points else None
        if form.attention == "plain":
            self.transformer: nn.Module = mask_decoder.transformer
            self.register_buffer("image_pe", decoder.image_pe)
        else:
            self.transformer = FusedTransformer(
                mask_decoder.transformer,
                decoder.image_pe.detach()[0],
                no_mask[0] if self.folds_no_mask else None,
                absorbed=form.attention == "absorbed",
                fold_positions=form.fold_positions,
            )
        if form.deferred_shuffle:
            two_steps = form.attention == "absorbed"
            self.upscaling: nn.Module = ProductUpscaling(mask_decoder, decoder.grid, two_steps=two_steps)
        else:
            self.upscaling = _PlainUpscaling(mask_decoder, decoder.grid)
        self.heads = (BatchedHeads if form.batched_heads else _PlainHeads)(mask_decoder)

    def to_half(self) -> FusedDecoder:
        """Make this a float16 model in place, but for the float32 islands of `SamDecoder.to_half`, and return it.

        The point table is one more: it is added to the encoded coordinates before they are rounded.
        """
        points, encoder, last = copy.deepcopy((self.points, self.encoder, self.heads.last))
        self.half()
        self.points, self.heads.last = points, last
        if self.encoder is not None and encoder is not None:
            self.encoder.pe_layer = encoder.pe_layer
        return self

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `SamDecoder.forward`: low_res_masks [n, 4, 4 * height, 4 * width] and iou_predictions [n, 4].

        With `image_index` int32 [n] there are any number of image_embeddings, and each prompt has the one at its index.
        """
        dtype = self.output_tokens.dtype
        image = image_embeddings.to(dtype).flatten(2).transpose(1, 2)
        if image_index is not None and (mask_input is not None or self.form.attention == "plain"):
            image, image_index = image.index_select(0, image_index), None
        if mask_input is not None:
            assert self.form.mask_input, "this form takes no mask_input"
            assert self.encoder is not None
            assert has_mask_input is not None, "mask_input needs has_mask_input"
            image = image + self.encoder.embed_masks(mask_input, has_mask_input)
        elif not self.folds_no_mask:
            image = image + self.no_mask
        num_prompts, num_outputs = point_coords.shape[0], self.output_tokens.shape[0]
        if not self.form.shared_image and image_index is None:
            image = image.expand(num_prompts, -1, -1)
        if self.points is not None:
            sparse = self.points(point_coords, point_labels).to(dtype)
        else:
            assert self.encoder is not None
            sparse = self.encoder.embed_points(point_coords, point_labels)
        tokens, token_bias = decoder_tokens(self.output_tokens, sparse, point_labels)
        if self.form.attention == "plain":
            tokens, image = self.transformer(image, self.image_pe, tokens, token_bias)
            tokens = tokens[:, :num_outputs]
        else:
            tokens, image = self.transformer(image, tokens, token_bias, num_outputs, image_index)
        hyper, iou = self.heads(tokens)
        # The row of the IoU token: cut early is less arithmetic, cut late a kernel less.
        cut_late = self.form.batched_heads and self.form.attention == "projected"
        if self.form.batched_heads and not cut_late:
            hyper = hyper[:, 1:]
        masks = self.upscaling(image, hyper)
        return (masks[:, 1:] if cut_late else masks), iou


def decoder_tokens(output_tokens: Tensor, sparse: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens [n, T, C], output tokens [outputs, C] before embedded points, and their bias as keys [n, 1, 1, T]."""
    tokens = torch.cat([output_tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
    wide = torch.promote_types(output_tokens.dtype, torch.float32)
    absent = (point_labels == LABEL_ABSENT).to(wide) * ABSENT_KEY_BIAS
    return tokens, nn.functional.pad(absent, (output_tokens.shape[0], 0)).unsqueeze(1).unsqueeze(1)


class _PlainUpscaling(nn.Module):
    """Meta's transposed convolutions, called like `ProductUpscaling`."""

    def __init__(self, decoder: MaskDecoder, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.output_upscaling = decoder.output_upscaling

    def forward(self, image: Tensor, hyper: Tensor) -> Tensor:
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, self.grid))
        return (hyper @ upscaled.flatten(2)).unflatten(2, (4 * self.grid[0], 4 * self.grid[1]))


class _PlainHeads(nn.Module):
    """Meta's five MLPs one by one, called like `BatchedHeads`."""

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        *hidden, last = decoder.iou_prediction_head.layers
        assert isinstance(last, nn.Linear)
        self.last = last
        self.hidden = nn.ModuleList(hidden)
        self.hypernetworks = decoder.output_hypernetworks_mlps

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hyper = [mlp(tokens[:, 1 + index]) for index, mlp in enumerate(self.hypernetworks)]
        x = tokens[:, 0]
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return torch.stack(hyper, dim=1), self.last(x.to(self.last.weight.dtype))
