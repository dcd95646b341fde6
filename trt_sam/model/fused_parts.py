"""Parts of the fused decoder around its transformer: point embedding, upscaling as products, batched heads.

Each is the exact rewrite of a part of `SamDecoder`, made from its loaded weights. Constants are folded in float64 and
stored in the weights' own dtype, so that each of them is rounded once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trt_sam.contract import LABEL_ABSENT
from trt_sam.model.mask_decoder import MLP, MaskDecoder
from trt_sam.model.prompt_encoder import LayerNorm2d, PromptEncoder

__all__ = ["BatchedHeads", "GatheredPoints", "ProductUpscaling", "folded_linear"]


def folded_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """A linear layer from weight [out, in] and bias [out], rounded to `dtype`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear


class GatheredPoints(nn.Module):
    """Point embedding by one lookup: a table of six rows, label -2 to 3, instead of a chain of comparisons.

    Table, frequencies and coordinates stay float32 in a half model (float64 in a float64 model).
    """

    frequencies: Tensor
    table: Tensor

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.frame_size = encoder.frame_size
        matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
        rows = [encoder.not_a_point_embed, *encoder.point_embeddings]
        weights = [row.weight.detach() for row in rows if isinstance(row, nn.Embedding)]
        self.register_buffer("frequencies", (matrix.double() * (2 * math.pi)).to(matrix.dtype))
        self.register_buffer("table", torch.cat([torch.zeros_like(weights[0]), *weights]))

    def forward(self, point_coords: Tensor, point_labels: Tensor) -> Tensor:
        """As `PromptEncoder.embed_points`, but the result [num_prompts, num_points, C] is still float32."""
        x, y = (((point_coords + 0.5) / self.frame_size) * 2 - 1).split(1, dim=-1)
        # Two multiply-adds instead of a product with an inner size of 2: it fuses with the sine.
        angles = x * self.frequencies[0] + y * self.frequencies[1]
        encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)
        rows = nn.functional.embedding((point_labels - LABEL_ABSENT).to(torch.int64), self.table)
        return rows + encoded * (point_labels >= 0).to(encoded.dtype).unsqueeze(-1)


class ProductUpscaling(nn.Module):
    """Upscaling and mask product with both pixel shuffles deferred to the end.

    A 2x2 transposed convolution of stride 2 gives each position a block of 2x2 output pixels: one product per position, then
    a rearrangement. LayerNorm2d, GELU and the mask product act on single pixels, so the pixels may stay in the order
    (y, x, row in block, column in block) until only the four mask channels are left.
    """

    def __init__(self, decoder: MaskDecoder, grid: tuple[int, int], *, two_steps: bool = False) -> None:
        """Rearrange in `two_steps` of one axis each, which CPUs do faster; in one, a GPU has a kernel less."""
        super().__init__()
        self.two_steps = two_steps
        first, norm, _, second, _ = decoder.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(second, nn.ConvTranspose2d)
        self.grid = grid
        self.channels = first.out_channels, second.out_channels
        self.first = _as_product(first)
        self.norm = nn.LayerNorm(norm.weight.shape[0], eps=norm.eps)
        self.norm.weight, self.norm.bias = (nn.Parameter(p.detach().clone()) for p in (norm.weight, norm.bias))
        self.second = _as_product(second)

    def forward(self, image: Tensor, hyper: Tensor) -> Tensor:
        """From image [n, height * width, C] and hyper [n, masks, C / 8] to masks [n, masks, 4 * height, 4 * width]."""
        pixels = self._masks(self.first(image).unflatten(2, (4, self.channels[0])), hyper)
        height, width = self.grid
        # (y, x, row 1, column 1, row 2, column 2) to (y, row 1, row 2, x, column 1, column 2)
        if self.two_steps:
            rows = pixels.reshape(-1, hyper.shape[1], height * width * 2, 2, 2, 2).transpose(3, 4)
            blocks = rows.reshape(-1, hyper.shape[1], height, width, 4, 4).transpose(3, 4)
        else:
            blocks = pixels.reshape(-1, hyper.shape[1], height, width, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return blocks.reshape(-1, hyper.shape[1], 4 * height, 4 * width)

    def after_first(self, pixels: Tensor, hyper: Tensor) -> Tensor:
        """As `forward`, from the first product's pixels [n, 2, height * width, 2 * C / 4]: row 1; y, x; column 1, channel."""
        height, width = self.grid
        masks = self._masks(pixels.unflatten(3, (2, -1)), hyper)
        rows = masks.reshape(-1, hyper.shape[1], 2 * height, 2 * width, 2, 2).transpose(3, 4)
        blocks = rows.reshape(-1, hyper.shape[1], 2, height, 8 * width).transpose(2, 3)
        return blocks.reshape(-1, hyper.shape[1], 4 * height, 4 * width)

    def _masks(self, pixels: Tensor, hyper: Tensor) -> Tensor:
        """The masks [n, masks, all pixels] of the first product's pixels [n, ..., C / 4], in order; row and column 2 last."""
        pixels = nn.functional.gelu(self.norm(pixels))
        pixels = nn.functional.gelu(self.second(pixels)).reshape(pixels.shape[0], -1, self.channels[1])
        return hyper @ pixels.transpose(1, 2)


class BatchedHeads(nn.Module):
    """The IoU head and the hypernetworks, five three-layer MLPs, as three batched products.

    Narrower layers are padded with zeros, which ReLU keeps zero. The last bias is the weight of a hidden unit that is always
    1: for one prompt TensorRT would add it in a kernel of its own. The last product is float32 in a half model, for the IoU's
    sake: one product for all five is a kernel less than the IoU's own.
    """

    last: Tensor

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        heads = [decoder.iou_prediction_head, *decoder.output_hypernetworks_mlps]
        mlps = [head for head in heads if isinstance(head, MLP)]
        *layers, last = [[_linear(mlp, index) for mlp in mlps] for index in range(len(mlps[0].layers))]
        self.hidden = nn.ModuleList(_BatchedLinear(row, units=8 if row is layers[-1] else 0) for row in layers)
        inner, outer = (max(getattr(layer, f"{side}_features") for layer in last) for side in ("in", "out"))
        self.num_ious = last[0].out_features
        self.register_buffer("last", torch.stack([_bias_as_weight(layer, inner, outer) for layer in last]))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """From tokens [n, 1 + masks, C], the IoU token first, to hyper [n, 1 + masks, C / 8] and IoU [n, masks].

        Row 0 of hyper, and so the first mask made from it, means nothing: to cut it off before the mask product costs a kernel.
        """
        x = tokens.transpose(0, 1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        outputs = (x.to(self.last.dtype) @ self.last).transpose(0, 1)
        return outputs.to(x.dtype), outputs[:, 0, : self.num_ious]


class _BatchedLinear(nn.Module):
    """Linear layers side by side, [layers, n, in] to [layers, n, out], with `units` more outputs: 1, then zeros."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layers: list[nn.Linear], units: int) -> None:
        super().__init__()
        inner, outer = max(layer.in_features for layer in layers), max(layer.out_features for layer in layers)
        weight = layers[0].weight.detach().new_zeros(len(layers), inner, outer + units)
        bias = weight.new_zeros(len(layers), 1, outer + units)
        for row, layer in enumerate(layers):
            weight[row, : layer.in_features, : layer.out_features] = layer.weight.detach().T
            bias[row, 0, : layer.out_features] = layer.bias.detach()
        bias[:, :, outer : outer + 1] = 1
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def _bias_as_weight(layer: nn.Linear, inner: int, outer: int) -> Tensor:
    """The weight [inner + 8, outer] of a layer, its bias in row `inner`; eight, so that rows stay aligned in float16."""
    weight = layer.weight.detach().new_zeros(inner + 8, outer)
    weight[: layer.in_features, : layer.out_features] = layer.weight.detach().T
    weight[inner, : layer.out_features] = layer.bias.detach()
    return weight


def _linear(mlp: MLP, index: int) -> nn.Linear:
    layer = mlp.layers[index]
    assert isinstance(layer, nn.Linear)
    return layer


def _as_product(conv: nn.ConvTranspose2d) -> nn.Linear:
    """The 2x2, stride-2 transposed convolution as a product to 4 * out channels, in the order (row, column, channel)."""
    assert conv.bias is not None
    weight, bias = conv.weight.detach(), conv.bias.detach()
    return folded_linear(weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4), weight.dtype)
