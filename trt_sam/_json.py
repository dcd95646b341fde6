"""Reports as strict JSON data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["strict"]


def strict(value: Any) -> Any:
    """The same data with infinity and NaN as the strings "inf", "-inf" and "nan", which JSON has no numbers for."""
    if isinstance(value, Mapping):
        return {str(name): strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
