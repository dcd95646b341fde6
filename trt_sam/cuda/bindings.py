"""cuda-bindings as this package calls it: answers checked, and nothing lost where a Ctrl-C comes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from trt_sam._lazy import require
from trt_sam.errors import InferenceError

__all__ = ["bindings", "checked", "keep", "raise_code"]


@functools.cache
def bindings() -> Any:
    """`cuda.bindings.driver`; raises MissingDependencyError where it is not installed."""
    return require("cuda.bindings.driver", "for CUDA's streams and graphs")


def checked(answer: tuple[Any, ...], doing: str) -> tuple[Any, ...]:
    """What a call gave beside its code; raises InferenceError where the code is an error."""
    code, *values = answer
    if code:
        raise_code(code, doing)
    return tuple(values)


def raise_code(code: Any, doing: str) -> None:
    """Raise InferenceError for a CUresult."""
    _, text = bindings().cuGetErrorString(code)
    words = text.decode() if isinstance(text, bytes) else "unknown error"
    if code == bindings().CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise InferenceError(
            f"the GPU is out of memory in {doing}: {words}; free memory, or use an engine with a smaller profile"
        )
    raise InferenceError(f"CUDA failed in {doing}: {words} ({code.name})")


def keep(made: list[tuple[Any, Any]], make: Callable[..., tuple[Any, Any]], *arguments: Any) -> None:
    """Append what `make` gives, all in C code: a Ctrl-C comes before it or after it, and loses nothing between."""
    made.extend(map(make, *((argument,) for argument in arguments)))
