"""Recipes from TOML, checked key by key, and the catalogue of those that ship with the package.

A recipe is data (`engines/*.toml`); flags of the command line override it. See `engines/README.md` for the catalogue.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_sam._toml import tomllib
from trt_sam.errors import RecipeError, did_you_mean
from trt_sam.recipe import EngineRecipe, GraphOptions, QuantizationOptions, ShapeProfile, TuningOptions

__all__ = ["list_recipes", "load_recipe", "parse_recipe", "recipe_folder"]


def load_recipe(name_or_path: str) -> EngineRecipe:
    """Read a recipe by its catalogue name or from a TOML file.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown key, or an impossible value.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        known = list_recipes()
        if name_or_path not in known:
            near = difflib.get_close_matches(name_or_path, known, n=1)
            meant = did_you_mean(near)
            raise RecipeError(f"unknown recipe {name_or_path!r}; {meant}known are {', '.join(known)}, or give a .toml file")
        path = recipe_folder() / f"{name_or_path}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}") from error
    try:
        return parse_recipe({"name": path.stem, **data})
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {error}") from error


def parse_recipe(data: Mapping[str, Any]) -> EngineRecipe:
    """Make a recipe from the tables of its TOML file, or raise RecipeError."""
    fields = dict(data)
    graph = _from_table(GraphOptions, fields.pop("graph", {}), "graph")
    profiles = fields.pop("profiles", [{}])
    if not isinstance(profiles, list):
        raise RecipeError("profiles must be a list: write [[profiles]]")
    fields["graph"] = graph
    fields["quantization"] = _from_table(QuantizationOptions, fields.pop("quantization", {}), "quantization")
    fields["tuning"] = _from_table(TuningOptions, fields.pop("tuning", {}), "tuning")
    fields["profiles"] = tuple(_from_table(ShapeProfile, p, "profiles") for p in profiles)
    capabilities = fields.get("compute_capabilities", ())
    if not isinstance(capabilities, list | tuple):
        raise RecipeError(f'compute_capabilities is {capabilities!r}, must be a list like ["8.9"]')
    fields["compute_capabilities"] = tuple(capabilities)
    recipe: EngineRecipe = _from_table(EngineRecipe, fields, "the recipe")
    return recipe


def list_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in recipe_folder().glob("*.toml"))


def recipe_folder() -> Path:
    """Where the catalogue lies: `engines/` of the checkout (a link) or the copy that the wheel carries."""
    return Path(__file__).resolve().parent / "recipes"


def _from_table(kind: type[Any], table: Any, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where} must be a table")
    allowed = [each.name for each in dataclasses.fields(kind)]
    for key in table:
        if key not in allowed:
            raise RecipeError(f"unknown key {key!r} in {where}; allowed are {', '.join(allowed)}")
    return kind(**table)
