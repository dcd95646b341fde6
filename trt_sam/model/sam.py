"""Prompt encoder and mask decoder as one module that speaks the tensor contract."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trt_sam.model.mask_decoder import MaskDecoder
from trt_sam.model.prompt_encoder import PromptEncoder

__all__ = ["SamDecoder"]


class SamDecoder(nn.Module):
    """From an image embedding and prompts to low-resolution mask logits and predicted IoU.

    Submodule and parameter names are those of Meta's `Sam`, without the image encoder.
    """

    image_pe: Tensor
    checkpoint_sha256: str = ""
    """`Checkpoint.sha256` of the checkpoint that it was loaded from, also when it is trained further; else empty."""

    def __init__(self, embed_dim: int = 256, grid: tuple[int, int] = (64, 64), mlp_dim: int = 2048) -> None:
        super().__init__()
        self.grid = grid
        self.prompt_encoder = PromptEncoder(embed_dim, frame_size=16 * max(grid))
        self.mask_decoder = MaskDecoder(embed_dim, mlp_dim=mlp_dim)
        self.register_buffer("image_pe", torch.empty(1, grid[0] * grid[1], embed_dim), persistent=False)
        self.refresh_position_encoding()

    def refresh_position_encoding(self) -> None:
        """Compute the grid's position encoding again, in the dtype of the Gaussian matrix; call after loading weights."""
        self.image_pe = self.prompt_encoder.pe_layer.grid(self.grid)

    def to_half(self) -> SamDecoder:
        """Make this a float16 model in place, but for the float32 islands, and return it.

        Coordinates with their encoding, LayerNorm statistics, softmax and the IoU head's last layer stay float32.
        """
        matrix, image_pe = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix, self.image_pe
        self.half()
        self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix = matrix
        self.image_pe = image_pe.half()
        self.mask_decoder.iou_prediction_head.layers[-1].float()
        return self

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts; the tensors are those of `trt_sam.contract`.

        Args:
            image_embeddings: [1 or num_prompts, C, height, width].
            point_coords: float [num_prompts, num_points, 2], (x, y) in pixels of the 1024-long-side frame.
            point_labels: float [num_prompts, num_points].
            mask_input: float [num_prompts, 1, 4 * height, 4 * width], logits of an earlier call; or None.
            has_mask_input: float [num_prompts], 1 or 0; required with `mask_input`.

        Returns:
            low_res_masks [num_prompts, 4, 4 * height, 4 * width] and iou_predictions [num_prompts, 4].
        """
        encoder = self.prompt_encoder
        sparse = encoder.embed_points(point_coords, point_labels)
        if mask_input is None:
            dense = encoder.no_mask_embed.weight.unsqueeze(0)
        else:
            assert has_mask_input is not None, "mask_input needs has_mask_input"
            dense = encoder.embed_masks(mask_input, has_mask_input)
        image = image_embeddings.to(dense.dtype).flatten(2).transpose(1, 2) + dense
        image = image.expand(sparse.shape[0], -1, -1)
        return self.mask_decoder.predict_masks(
            image, self.image_pe, sparse, encoder.absent_points(point_labels), grid=self.grid
        )
