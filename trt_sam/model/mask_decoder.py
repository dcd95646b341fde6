"""SAM's mask decoder: image and prompt embeddings to four masks and their predicted IoU.

Architecture: Kirillov et al., "Segment Anything" (2023), appendix A; parameter names are Meta's.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from trt_sam.model.prompt_encoder import LayerNorm2d
from trt_sam.model.transformer import TwoWayTransformer

__all__ = ["MLP", "MaskDecoder"]

ABSENT_KEY_BIAS = -3.0e4
"""Added to the score of an absent key: exp() of it is exactly 0, and it still fits in float16."""


class MaskDecoder(nn.Module):
    """Predicts masks from an image embedding and prompt embeddings."""

    def __init__(self, transformer_dim: int = 256, depth: int = 2, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__()
        self.num_mask_tokens = 4
        self.transformer = TwoWayTransformer(depth, transformer_dim, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, transformer_dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, transformer_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(transformer_dim, transformer_dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(transformer_dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(transformer_dim // 4, transformer_dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(transformer_dim, transformer_dim, transformer_dim // 8, 3) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(transformer_dim, 256, self.num_mask_tokens, 3)

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        absent: Tensor | None = None,
        *,
        grid: tuple[int, int],
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """As `predict_masks`, sliced as SAM does: masks 1 to 3 with `multimask_output`, else mask 0 alone."""
        masks, iou = self.predict_masks(image, image_pe, sparse, absent, grid=grid)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, chosen], iou[:, chosen]

    def predict_masks(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, absent: Tensor | None = None, *, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Predict all four masks.

        Args:
            image: [num_prompts, height * width, C], image embedding plus dense prompt embedding, one per prompt.
            image_pe: [1, height * width, C], position encoding of the grid.
            sparse: [num_prompts, num_points, C], point embeddings.
            absent: bool [num_prompts, num_points], points that are padding; None where there are none.
            grid: (height, width) of the image embedding.

        Returns:
            masks [num_prompts, 4, 4 * height, 4 * width] (logits) and predicted IoU, at least float32 [num_prompts, 4].
        """
        num_prompts = sparse.shape[0]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight], dim=0)
        tokens = torch.cat([output_tokens.unsqueeze(0).expand(num_prompts, -1, -1), sparse], dim=1)
        token_bias = None
        if absent is not None:
            bias = absent.to(torch.promote_types(tokens.dtype, torch.float32)) * ABSENT_KEY_BIAS
            token_bias = nn.functional.pad(bias, (output_tokens.shape[0], 0)).unsqueeze(1).unsqueeze(1)
        tokens, image = self.transformer(image, image_pe, tokens, token_bias)
        mask_tokens = tokens[:, 1 : 1 + self.num_mask_tokens]
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))
        hyper = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = (hyper @ upscaled.flatten(2)).unflatten(2, (4 * grid[0], 4 * grid[1]))
        return masks, self.iou_prediction_head(tokens[:, 0])


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them; the last one runs in its own weight's dtype."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., input_dim] to [..., output_dim]."""
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        assert isinstance(last, nn.Linear)
        return last(x.to(last.weight.dtype))
