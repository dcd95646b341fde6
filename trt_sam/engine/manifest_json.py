"""Reading a manifest's JSON field by field: what is not as it must be raises ValueError with the field's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trt_sam.contract import TensorSpec
from trt_sam.errors import ManifestError
from trt_sam.graph.advice import command_of_set
from trt_sam.recipe import EngineRecipe
from trt_sam.recipe_toml import parse_recipe

__all__ = [
    "check_schema",
    "choice",
    "file_fields",
    "items",
    "limits",
    "optional_text",
    "recipe",
    "specs",
    "strings",
    "table",
    "text",
    "version_numbers",
]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def check_schema(data: Any, newest: int, path: Path) -> None:
    """Raise ManifestError where `data` is of a newer schema, ValueError where it has none."""
    schema = _get(data, "schema")
    if not _is_count(schema) or schema < 1:
        raise ValueError(f"schema is {schema!r}, must be a whole number from 1")
    if schema > newest:
        raise ManifestError(
            f"{path} has schema {schema}, this trt-sam reads up to {newest}; install the newer trt-sam that wrote it, or write "
            f"the set again with {command_of_set(path.parent, data)}"
        )


def table(data: Any, key: str) -> dict[str, Any]:
    """A JSON object."""
    return dict(_typed(data, key, dict, "an object"))


def items(data: Any, key: str) -> list[Any]:
    """A JSON array."""
    return list(_typed(data, key, list, "a list"))


def text(data: Any, key: str, *, empty: bool = False) -> str:
    """A string, not empty unless `empty`."""
    value = _typed(data, key, str, "text")
    if not value and not empty:
        raise ValueError(f"{key} is empty")
    return str(value)


def optional_text(data: Any, key: str) -> str | None:
    """A string that is not empty, or None where it is null or missing."""
    return None if data.get(key) is None else text(data, key)


def strings(data: Any, key: str) -> list[str]:
    """A list of strings."""
    values = items(data, key)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key} is {values!r}, must be a list of texts")
    return values


def choice(data: Any, key: str, allowed: tuple[str, ...]) -> str:
    """One of `allowed`."""
    value = text(data, key)
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}, must be one of {', '.join(allowed)}")
    return value


def file_fields(data: Any) -> tuple[str, str, int]:
    """Name, SHA-256 and size of a file; the name is plain, so it cannot lead out of the folder."""
    name, sha256, size = text(data, "name"), text(data, "sha256"), _get(data, "size")
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"file name {name!r} is not plain; it must name a file in the manifest's own folder")
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 of {name} is {sha256!r}, must be 64 hexadecimal digits")
    if not _is_count(size):
        raise ValueError(f"size of {name} is {size!r}, must be a number of bytes")
    return name, sha256, size


def specs(data: Any, key: str) -> tuple[TensorSpec, ...]:
    """Tensor specs, each with a dtype that numpy knows and dimensions that are counts or names."""
    found = []
    for item in items(data, key):
        name, dtype, dims = text(item, "name"), text(item, "dtype"), items(item, "dims")
        np.dtype(dtype)
        if not all(isinstance(dim, str) or _is_count(dim) for dim in dims):
            raise ValueError(f"dims of {name} are {dims!r}, must be counts or names")
        found.append(TensorSpec(name, dtype, tuple(dims)))
    return tuple(found)


def limits(data: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Least and largest value by dimension."""
    for name, value in data.items():
        if not isinstance(value, list) or len(value) != 2 or not all(_is_count(v) for v in value) or value[0] > value[1]:
            raise ValueError(f"limits of {name} are {value!r}, must be [least, largest]")
    return {name: (value[0], value[1]) for name, value in data.items()}


def recipe(data: Mapping[str, Any]) -> EngineRecipe:
    """The recipe, checked as one from a file is (RecipeError)."""
    return parse_recipe(data)


def version_numbers(version: str) -> tuple[int, ...]:
    """Numbers for comparing: (10, 16, 1, 11) for "10.16.1.11"."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _get(data: Any, key: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"an object with {key!r} was expected, not {type(data).__name__}")
    if key not in data:
        raise ValueError(f"{key!r} is missing")
    return data[key]


def _typed(data: Any, key: str, kind: type, words: str) -> Any:
    value = _get(data, key)
    if not isinstance(value, kind):
        raise ValueError(f"{key} is {str(value)[:60]!r}, must be {words}")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
