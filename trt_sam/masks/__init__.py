"""Everything in a picture: `AutomaticMaskGenerator`, call-compatible with Meta's `SamAutomaticMaskGenerator`."""

from __future__ import annotations

from trt_sam.masks.generator import AutomaticMaskGenerator

__all__ = ["AutomaticMaskGenerator"]
