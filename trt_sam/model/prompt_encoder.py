"""SAM's prompt encoder: points, box corners and masks to embeddings.

Architecture: Kirillov et al., "Segment Anything" (2023), appendix A; random Fourier features after Tancik et al. (2020).
Coordinates and their encoding stay in float32 (float64 in a float64 model): in half precision pixel 1023.5 is not 1023.0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trt_sam.contract import LABEL_ABSENT, LABEL_NOT_A_POINT

__all__ = ["LayerNorm2d", "PositionEmbeddingRandom", "PromptEncoder"]


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of [batch, C, height, width]; its statistics are float32 even in a half model."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.permute(0, 2, 3, 1)
        normed = nn.functional.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class PositionEmbeddingRandom(nn.Module):
    """Fourier features of coordinates at fixed random frequencies."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_pos_feats: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_pos_feats))

    def encode(self, coords: Tensor) -> Tensor:
        """Encode coords [..., 2], (x, y) in 0..1 of the frame, to [..., 2 * num_pos_feats]."""
        angles = (2 * coords - 1) @ self.positional_encoding_gaussian_matrix * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, size: tuple[int, int]) -> Tensor:
        """Encode the cell centres of a (height, width) grid to [1, height * width, 2 * num_pos_feats]."""
        matrix = self.positional_encoding_gaussian_matrix
        y, x = ((torch.arange(n, dtype=matrix.dtype, device=matrix.device) + 0.5) / n for n in size)
        coords = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        return self.encode(coords).flatten(0, 1).unsqueeze(0)


class PromptEncoder(nn.Module):
    """Embeds points with labels (design: tensor contract) and low-resolution masks."""

    def __init__(self, embed_dim: int = 256, frame_size: int = 1024, mask_in_chans: int = 16) -> None:
        super().__init__()
        self.frame_size = frame_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            nn.GELU(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, embed_dim, kernel_size=1),
        )

    def embed_points(self, point_coords: Tensor, point_labels: Tensor) -> Tensor:
        """Embed point_coords [num_prompts, num_points, 2] with point_labels [num_prompts, num_points].

        Coordinates are pixels of the `frame_size`-long-side frame; a pixel's centre is at +0.5, as in Meta's code. Absent
        points (label -2) embed to zero; the caller masks them as keys. Returns [num_prompts, num_points, C].
        """
        encoded = self.pe_layer.encode((point_coords + 0.5) / self.frame_size)
        labels = point_labels.unsqueeze(-1)
        embedding = encoded * (labels >= 0).to(encoded.dtype)
        embedding = embedding + self.not_a_point_embed.weight.to(encoded.dtype) * (labels == LABEL_NOT_A_POINT)
        for label, table in enumerate(self.point_embeddings):
            assert isinstance(table, nn.Embedding)
            embedding = embedding + table.weight.to(encoded.dtype) * (labels == label)
        return embedding.to(self.no_mask_embed.weight.dtype)

    def absent_points(self, point_labels: Tensor) -> Tensor:
        """Bool [num_prompts, num_points]: which points are padding."""
        return point_labels == LABEL_ABSENT

    def embed_masks(self, mask_input: Tensor, has_mask_input: Tensor) -> Tensor:
        """Embed mask_input [num_prompts, 1, 4 * height, 4 * width] (logits) to [num_prompts, height * width, C].

        `has_mask_input` [num_prompts] is 1 where the mask counts and 0 where the no-mask embedding stands in.
        """
        weight = self.no_mask_embed.weight
        embedded = self.mask_downscaling(mask_input.to(weight.dtype)).flatten(2).transpose(1, 2)
        has = has_mask_input.to(weight.dtype).reshape(-1, 1, 1)
        return has * embedded + (1 - has) * weight
