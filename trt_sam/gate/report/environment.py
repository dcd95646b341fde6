"""What a figure was made with: versions, the machine, and the hashes of the files that were compared."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from trt_sam._files import sha256_of
from trt_sam._version import __version__

__all__ = ["environment"]

_PACKAGES = ("numpy", "onnxruntime", "torch", "onnx", "tensorrt", "tensorrt-rtx-cu13", "pycuda")


def environment(sources: Iterable[str]) -> dict[str, str]:
    """Facts by name; the hash of each source that is a file, of the engine's manifest where it is a folder."""
    facts = {"trt-sam": __version__, "Python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    for source in sources:
        path = Path(source)
        file = path / "manifest.json" if path.is_dir() else path
        if file.is_file():
            facts[f"SHA-256 of {source}"] = sha256_of(file)
    return facts
