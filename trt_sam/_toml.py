"""TOML as the standard library reads it from Python 3.11 on, and tomli, which it was made of, on 3.10."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["tomllib"]
