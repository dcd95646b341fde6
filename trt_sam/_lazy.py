"""Optional packages, imported when they are needed, with one line that says how to get a missing one."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from trt_sam.errors import MissingDependencyError

__all__ = ["install_command", "require", "require_all"]

EXTRAS = {
    "torch": ("torch",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime",),
    "image": ("PIL",),
    "export": ("torch", "onnx", "onnxscript", "onnxruntime", "tqdm"),
    "hub": ("huggingface_hub", "safetensors", "torch", "PIL"),
    "download": ("pooch", "pypi_simple", "platformdirs", "filelock", "requests", "tqdm", "urllib3"),
    "rtx": ("tensorrt_rtx",),
    "tensorrt": ("tensorrt",),
    "cuda": ("pycuda", "cuda"),
    "compare": ("polygraphy",),
    "bench": ("matplotlib",),
    "formats": ("pycocotools", "PIL", "scipy"),
    "supervision": ("supervision",),
    "serve": ("starlette", "uvicorn", "prometheus_client", "PIL", "onnxruntime"),
    "ray": ("ray", "PIL", "onnxruntime", "platformdirs"),
    "parquet": ("pyarrow",),
    "dev": ("transformers",),
}
"""What each extra of pyproject.toml brings, as modules; the smallest that has a module comes before larger ones."""

_CPU_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
_CHECKOUT = Path(__file__).resolve().parents[1]
_BUILD_PYCUDA = "scripts/install_pycuda.sh"


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
        raise _missing([top], purpose) from None


def require_all(names: Sequence[str], purpose: str) -> None:
    """Raise MissingDependencyError where any of the packages `names` is not installed; it names all that are missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise _missing(missing, purpose)


def install_command(modules: Sequence[str]) -> str:
    """What to type to get `modules`: this package is in no index, so from its checkout, or their distributions themselves."""
    whole = [extra for extra, brings in EXTRAS.items() if set(modules) <= set(brings)]
    extras = whole[:1] or list(dict.fromkeys(_smallest(module) for module in modules))
    if not (_CHECKOUT / "pyproject.toml").is_file():
        command = f"pip install {' '.join(repr(requirement) for requirement in _requirements(extras))}"
    else:
        place = "." if Path.cwd() == _CHECKOUT else _CHECKOUT
        command = f"pip install -e '{place}[{','.join(extras)}]'"
    if "pycuda" in modules and (_CHECKOUT / _BUILD_PYCUDA).is_file():
        # It comes as source, and pip would build it against whatever CUDA toolkit there is, or fail for want of one.
        command = f"bash {os.path.relpath(_CHECKOUT / _BUILD_PYCUDA)} {sys.executable} && {command}"
    # Else pip takes the build for CUDA, which is several times as large.
    return f"{_CPU_TORCH} && {command}" if "torch" in modules else command


def _missing(modules: Sequence[str], purpose: str) -> MissingDependencyError:
    verb = "is" if len(modules) == 1 else "are"
    return MissingDependencyError(f"{', '.join(modules)} {verb} not installed, needed {purpose}: {install_command(modules)}")


def _smallest(module: str) -> str:
    return next(extra for extra, brings in EXTRAS.items() if module in brings)


def _requirements(extras: Sequence[str]) -> list[str]:
    """What an installed trt-sam wants for its extras."""
    lines = importlib.metadata.requires("trt-sam") or []
    wanted = [line.partition(";")[0].strip() for line in lines if any(f'extra == "{extra}"' in line for extra in extras)]
    return list(dict.fromkeys(wanted))
