"""A model repository for NVIDIA's Triton: `write_repository` writes it, `models` is what its Python models are.

`models` runs inside of Triton's Python backend, with numpy, Pillow and, without a GPU, onnxruntime alone; numpy may be of 1.x.
"""

from __future__ import annotations

from trt_sam.serve.triton.repository import BACKENDS, write_repository

__all__ = ["BACKENDS", "write_repository"]
