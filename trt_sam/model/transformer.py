"""The two-way transformer of SAM's mask decoder: tokens attend to the image and the image attends to the tokens.

Architecture: Kirillov et al., "Segment Anything" (2023), appendix A; parameter names are Meta's, so their checkpoints load as
they are. Matrix products run in the parameters' dtype; softmax always runs in at least float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Attention", "TwoWayAttentionBlock", "TwoWayTransformer"]


class Attention(nn.Module):
    """Multi-head attention whose heads may be narrower than the embedding (`downsample_rate`)."""

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        internal_dim = embedding_dim // downsample_rate
        self.head_dim = internal_dim // num_heads
        self.q_proj = nn.Linear(embedding_dim, internal_dim)
        self.k_proj = nn.Linear(embedding_dim, internal_dim)
        self.v_proj = nn.Linear(embedding_dim, internal_dim)
        self.out_proj = nn.Linear(internal_dim, embedding_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """Attend from q [batch, num_queries, C] to k, v [batch, num_keys, C]; returns [batch, num_queries, C].

        `key_bias` (float32 [batch, 1, 1, num_keys]) is added to the scores: a large negative number takes a key out.
        """
        q, k, v = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        scores = (q * (1.0 / math.sqrt(self.head_dim))) @ k.transpose(-1, -2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if key_bias is not None:
            scores = scores + key_bias
        attended = torch.softmax(scores, dim=-1).to(v.dtype) @ v
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class MLPBlock(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, embedding_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embedding_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embedding_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(torch.relu(self.lin1(x)))


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP on tokens, image to tokens; each with a residual and LayerNorm."""

    def __init__(self, embedding_dim: int, num_heads: int, mlp_dim: int, *, skip_first_layer_pe: bool = False) -> None:
        super().__init__()
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, mlp_dim)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor, token_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Update tokens [batch, num_tokens, C] and image [batch, num_positions, C].

        `token_bias` (float32 [batch, 1, 1, num_tokens]) masks absent tokens wherever tokens are keys.
        """
        if self.skip_first_layer_pe:
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens, token_bias))
        else:
            q = tokens + token_pe
            tokens = self.norm1(tokens + self.self_attn(q, q, tokens, token_bias))
        image_k = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image_k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image_k, tokens + token_pe, tokens, token_bias))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a last attention from tokens to the image."""

    def __init__(self, depth: int, embedding_dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(embedding_dim, num_heads, mlp_dim, skip_first_layer_pe=(i == 0)) for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(
        self, image: Tensor, image_pe: Tensor, point_embedding: Tensor, token_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run image [batch, num_positions, C] against point_embedding [batch, num_tokens, C].

        `image_pe` is [1, num_positions, C]; `token_bias` as in `TwoWayAttentionBlock`. Returns (tokens, image), same shapes.
        """
        tokens = point_embedding
        for layer in self.layers:
            tokens, image = layer(tokens, image, point_embedding, image_pe, token_bias)
        attended = self.final_attn_token_to_image(tokens + point_embedding, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image
