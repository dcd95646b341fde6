"""The image encoders: SAM's ViT and MobileSAM's TinyViT, normalised pixels to embedding. `image_encoder` loads them."""

from trt_sam.model.encoders.tiny_vit import TinyViT, fold_for_inference
from trt_sam.model.encoders.vit import Vit, VitSettings
from trt_sam.model.encoders.vit_settings import settings_of_config, settings_of_state

__all__ = ["TinyViT", "Vit", "VitSettings", "fold_for_inference", "settings_of_config", "settings_of_state"]
