"""Optional packages, imported when they are needed, with one line that says how to get a missing one."""

from __future__ import annotations

import importlib
from types import ModuleType

from trt_sam.errors import MissingDependencyError

__all__ = ["require"]

_EXTRAS = {
    "torch": "torch",
    "onnx": "export",
    "onnxscript": "export",
    "huggingface_hub": "hub",
    "transformers": "dev",
    "safetensors": "hub",
    "onnxruntime": "onnxruntime",
    "PIL": "image",
    "tensorrt_rtx": "rtx",
    "tensorrt": "tensorrt",
    "pycuda": "cuda",
    "cuda": "cuda",
    "polygraphy": "compare",
    "matplotlib": "bench",
    "pycocotools": "formats",
    "scipy": "formats",
    "supervision": "supervision",
    **dict.fromkeys(("filelock", "platformdirs", "pooch", "pypi_simple", "requests", "tqdm", "urllib3"), "download"),
}


def require(name: str, purpose: str) -> ModuleType:
    """Import module `name` (dotted allowed) for `purpose`, a phrase like "to export ONNX".

    Raises:
        MissingDependencyError: its top-level package is not installed.
    """
    top = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        extra = _EXTRAS[top]
        raise MissingDependencyError(f"{top} is not installed, needed {purpose}: pip install 'trt-sam[{extra}]'") from None
