"""Meta's own SAM (the package segment-anything) with our decoder's weights: the oracle of all that is call-compatible."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from trt_sam.model import SamDecoder
from trt_sam.model.image_encoder import preprocess


class PatchEncoder(torch.nn.Module):
    """Any map of pixels to an embedding will do: each patch of 16 x 16 to 256 channels. As our encoders, and as Meta's."""

    img_size = 1024

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(256, 3, 16, 16, generator=generator) / 32, requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(pixels, self.weight, stride=16)

    def embed(self, rgb: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self(torch.from_numpy(preprocess(rgb))).numpy()


def metas_predictor(decoder: SamDecoder, mlp_dim: int = 2048) -> Any:
    """Meta's `SamPredictor` with the weights of `decoder` behind a `PatchEncoder`."""
    with _torchvision_for_import():
        from segment_anything import SamPredictor
        from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=mlp_dim, num_heads=8)
    sam = Sam(
        image_encoder=PatchEncoder(),
        prompt_encoder=PromptEncoder(256, (64, 64), (1024, 1024), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=transformer,
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    found = sam.load_state_dict(decoder.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("image_encoder.") for name in found.missing_keys)
    return SamPredictor(sam.eval().requires_grad_(False))


def metas_onnx_model(decoder: SamDecoder, mlp_dim: int = 2048) -> Any:
    """Meta's `SamOnnxModel`, what its export script traces, with the weights of `decoder`."""
    sam = metas_predictor(decoder, mlp_dim).model
    with _torchvision_for_import():
        from segment_anything.utils.onnx import SamOnnxModel
    return SamOnnxModel(sam, return_single_mask=False)


@contextlib.contextmanager
def _torchvision_for_import() -> Iterator[None]:
    """Stand in for what segment-anything imports of torchvision; gone afterwards, for transformers looks for it too."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    functional, boxes = ModuleType("torchvision.transforms.functional"), ModuleType("torchvision.ops.boxes")
    functional.resize = lambda image, size: image.resize((size[1], size[0]), Image.Resampling.BILINEAR)  # type: ignore[attr-defined]
    functional.to_pil_image = Image.fromarray  # type: ignore[attr-defined]
    boxes.batched_nms = boxes.box_area = None  # type: ignore[attr-defined]
    parents = [ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.ops")]
    stand_ins = {module.__name__: module for module in (*parents, functional, boxes)}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
