"""SAM in PyTorch: prompt encoder, mask decoder, image encoders (ViT and TinyViT), and the loaders of their checkpoints."""

from trt_sam.model.mask_decoder import MLP, MaskDecoder
from trt_sam.model.prompt_encoder import PromptEncoder
from trt_sam.model.sam import SamDecoder

__all__ = ["MLP", "MaskDecoder", "PromptEncoder", "SamDecoder"]
