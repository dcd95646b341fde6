"""`standin-hard`: the same function as a decoder, with the outlier channels that make a real SAM hard to quantize.

In a product of two layers, a channel between them can be scaled by s and back: q and k of an attention (their dot product
stays), v and the output projection, and the two layers of an MLP (ReLU(s x) = s ReLU(x) for s > 0). The bias of the layer
that makes the channel scales with it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trt_sam.model.sam import SamDecoder
from trt_sam.model.transformer import Attention, MLPBlock

__all__ = ["SCALE", "harden"]

SCALE = 64.0
"""A power of two, so that no weight is rounded on the way there or back (50 would move the outputs by 2e-9)."""

ATTENTION_CHANNELS = 4
MLP_CHANNELS = 16


@torch.no_grad()
def harden(decoder: SamDecoder, seed: int = 0) -> SamDecoder:
    """Return a copy of `decoder` with a few channels of every attention and transformer MLP scaled by 64 and back.

    Each attention gets four channels with a large q, four with a large k and four with a large v; each MLP sixteen large
    hidden channels. Outputs are unchanged. `seed` picks the channels.
    """
    hardened = copy.deepcopy(decoder)
    generator = torch.Generator().manual_seed(seed)
    for module in hardened.mask_decoder.transformer.modules():
        if isinstance(module, Attention):
            channels = _pick(module.q_proj.out_features, 3 * ATTENTION_CHANNELS, generator).split(ATTENTION_CHANNELS)
            _scale_rows(module.q_proj, channels[0], SCALE)
            _scale_rows(module.k_proj, channels[0], 1 / SCALE)
            _scale_rows(module.q_proj, channels[1], 1 / SCALE)
            _scale_rows(module.k_proj, channels[1], SCALE)
            _scale_rows(module.v_proj, channels[2], SCALE)
            module.out_proj.weight[:, channels[2]] /= SCALE
        elif isinstance(module, MLPBlock):
            hidden = _pick(module.lin1.out_features, MLP_CHANNELS, generator)
            _scale_rows(module.lin1, hidden, SCALE)
            module.lin2.weight[:, hidden] /= SCALE
    return hardened


def _pick(channels: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(channels, generator=generator)[:count]


def _scale_rows(layer: nn.Linear, rows: Tensor, scale: float) -> None:
    layer.weight[rows] *= scale
    layer.bias[rows] *= scale
