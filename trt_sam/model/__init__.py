"""The decoder in PyTorch: SAM's prompt encoder and mask decoder, and the loaders of their checkpoints."""

from trt_sam.model.mask_decoder import MLP, MaskDecoder
from trt_sam.model.prompt_encoder import PromptEncoder
from trt_sam.model.sam import SamDecoder

__all__ = ["MLP", "MaskDecoder", "PromptEncoder", "SamDecoder"]
