"""SAM's own image encoder: a plain vision transformer with window attention, global in a few blocks, and SAM's neck.

Structure: Kirillov et al., "Segment Anything" (2023), appendix A; Li et al., "Exploring Plain Vision Transformer Backbones for
Object Detection" (2022), for windows and neck; Li et al., "MViTv2" (2022), section 4.1, for the decomposed relative positions.
Parameter names are Meta's. See NOTICE. Between blocks a picture is [batch, height, width, C].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_sam.model.encoders.windows import from_windows, to_windows
from trt_sam.model.prompt_encoder import LayerNorm2d

__all__ = ["Vit", "VitSettings"]

_EMBED_DIM = 256
_SCORES_AT_ONCE = 2**26
"""How many attention scores may exist at a time: ViT-B's twelve global heads together would take 800 MB."""


@dataclass(frozen=True)
class VitSettings:
    """The sizes of a `Vit`; those of ViT-B, -L and -H differ in the first four."""

    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    mlp_width: int
    global_blocks: tuple[int, ...]
    """Whose attention sees the whole picture."""
    window: int = 14
    """Side of the windows of the other blocks; 0: they too see everything."""
    patch: int = 16
    grid: int = 64
    """Patches along a side of the picture."""
    absolute_positions: bool = True
    relative_positions: bool = True
    qkv_bias: bool = True
    epsilon: float = 1e-6
    """Of the blocks' LayerNorms."""


class Vit(nn.Module):
    """From pictures to SAM's image embedding."""

    def __init__(self, settings: VitSettings) -> None:
        super().__init__()
        width, grid = settings.width, settings.grid
        self.patch_embed = PatchEmbed(width, settings.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, width)) if settings.absolute_positions else None
        self.blocks = nn.ModuleList(
            Block(settings, 0 if number in settings.global_blocks else settings.window) for number in range(settings.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(width, _EMBED_DIM, kernel_size=1, bias=False),
            LayerNorm2d(_EMBED_DIM),
            nn.Conv2d(_EMBED_DIM, _EMBED_DIM, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(_EMBED_DIM),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised, padded pictures.

        Args:
            pixels: float [batch, 3, grid * patch, grid * patch], as `image_encoder.preprocess` makes them.

        Returns:
            float [batch, 256, grid, grid].
        """
        x = self.patch_embed(pixels)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        embedding: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return embedding


class PatchEmbed(nn.Module):
    """[batch, 3, height, width] to one token for each patch, [batch, height / patch, width / patch, C]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.proj(pixels).permute(0, 2, 3, 1)
        return tokens


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to what came in; [batch, height, width, C] in and out."""

    def __init__(self, settings: VitSettings, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(settings.width, eps=settings.epsilon)
        self.attn = Attention(settings, window or settings.grid)
        self.norm2 = nn.LayerNorm(settings.width, eps=settings.epsilon)
        self.mlp = Mlp(settings.width, settings.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        y = self.norm1(x)
        if self.window == 0:
            y = self.attn(y)
        else:
            # The zeros that fill up the last windows come after the LayerNorm, and take part as keys.
            windows = to_windows(y, self.window)
            y = from_windows(self.attn(windows.flatten(0, 2)).reshape(windows.shape), height, width)
        x = x + y
        added: Tensor = x + self.mlp(self.norm2(x))
        return added


class Mlp(nn.Module):
    """Two linear layers with GELU between; [..., C] in and out."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lin2(functional.gelu(self.lin1(x)))
        return y


class Attention(nn.Module):
    """Multi-head attention over square pictures of one size, with a bias for each pair of rows and each pair of columns."""

    def __init__(self, settings: VitSettings, size: int) -> None:
        super().__init__()
        self.heads, self.size = settings.heads, size
        self.qkv = nn.Linear(settings.width, 3 * settings.width, bias=settings.qkv_bias)
        self.proj = nn.Linear(settings.width, settings.width)
        distances, head_width = 2 * size - 1, settings.width // settings.heads
        relative = settings.relative_positions
        self.rel_pos_h = nn.Parameter(torch.zeros(distances, head_width)) if relative else None
        self.rel_pos_w = nn.Parameter(torch.zeros(distances, head_width)) if relative else None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, size, size, C] in and out."""
        batch, size, _, channels = x.shape
        tokens = size * size
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        step = max(1, _SCORES_AT_ONCE // (batch * tokens * tokens))
        parts = [self._attend(*(each[:, i : i + step] for each in (q, k, v))) for i in range(0, self.heads, step)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, size, size, channels))
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Some of the heads: [batch, heads, tokens, C / heads] in and out."""
        bias = None
        if self.rel_pos_h is not None and self.rel_pos_w is not None:
            grid = q.unflatten(2, (self.size, self.size))
            # By the query's row and the key's row, and the same for columns.
            rows = torch.einsum("bnhwc,hkc->bnhwk", grid, self._by_places(self.rel_pos_h))
            columns = torch.einsum("bnhwc,wkc->bnhwk", grid, self._by_places(self.rel_pos_w))
            bias = (rows[..., :, None] + columns[..., None, :]).reshape(*q.shape[:3], q.shape[2])
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def _by_places(self, table: Tensor) -> Tensor:
        """[distances, C] to [query, key, C]; the table begins with the key that is farthest behind the query."""
        places = torch.arange(self.size, device=table.device)
        return table[places[:, None] - places + self.size - 1]
