"""Ranges for Nsight Systems around what a runner does, where NVIDIA's optional `nvtx` is installed and TRT_SAM_NVTX is set."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["marked"]

_NOTHING: AbstractContextManager[Any] = contextlib.nullcontext()


def marked(name: str) -> AbstractContextManager[Any]:
    """A range "trt_sam.NAME" while it is entered; nothing where nobody asked for ranges."""
    annotate = _annotate()
    return _NOTHING if annotate is None else annotate(f"trt_sam.{name}")


@functools.cache
def _annotate() -> Callable[[str], AbstractContextManager[Any]] | None:
    if os.environ.get("TRT_SAM_NVTX", "0") in ("", "0"):
        return None
    try:
        nvtx: Any = importlib.import_module("nvtx")
    except ImportError:
        return None
    return functools.partial(nvtx.annotate, domain="trt_sam")
