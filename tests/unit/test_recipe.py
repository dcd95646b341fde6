"""Recipes: the catalogue loads, and every mistake is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_sam.errors import RecipeError
from trt_sam.recipe import EngineRecipe
from trt_sam.recipe_toml import list_recipes, load_recipe


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_of_the_catalogue_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.graph.target == "gpu"


def test_the_catalogue_lists_every_recipe() -> None:
    names = list_recipes()
    assert {"vit_b", "vit_l", "vit_h", "mobile_sam", "standin"} <= set(names)
    readme = (Path(__file__).parents[2] / "engines" / "README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in names)


def test_profiles_are_a_list() -> None:
    recipe = load_recipe("many_prompts")
    assert [p.num_prompts for p in recipe.profiles] == [(1, 1, 4), (5, 64, 256)]


def test_an_empty_recipe_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("")
    assert load_recipe(str(tmp_path / "r.toml")) == EngineRecipe(name="r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("precison = 'fp16'", "unknown key 'precison' in the recipe; allowed are"),
        ("[graph]\nfp16 = true", "unknown key 'fp16' in graph"),
        ("[graph]\nprecision = 'fp17'", "precision is 'fp17', must be one of fp32, fp16"),
        ("[graph]\nimages = 0", "images is 0, must be a whole number from 1 to 64"),
        ("[graph]\nimages = true", "images is True, must be a whole number"),
        ("[graph]\nimages = 2\nprecision = 'int8'", "images is 2, which goes with fp32 and fp16; int8 takes one image a call"),
        ("[graph]\nmask_input = 1", "mask_input is 1, must be true or false"),
        ("[[profiles]]\nnum_prompts = [4, 2, 8]", r"num_prompts is \[4, 2, 8\], must be 1 <= min <= opt <= max"),
        ("[[profiles]]\nnum_points = [1, 2]", "must be three whole numbers"),
        ("[[profiles]]\nnum_points = [1, 2, true]", "must be three whole numbers"),
        ("profiles = []", "profiles is empty"),
        ("profiles = 3", "profiles must be a list"),
        ("graph = 3", "graph must be a table"),
        ("backend = 'trt'", "backend is 'trt', must be one of rtx, tensorrt"),
        ("compute_capabilities = '8.9'", "must be a list"),
        ("compute_capabilities = ['sm89']", 'write it as "8.9"'),
        ("max_aux_streams = -1", "must be a whole number from 0"),
        ("[tuning]\noptimization_level = 6", "optimization_level is 6, must be a whole number from 0 to 5"),
        ("[tuning]\ntiling = 'most'", "tiling is 'most', must be one of none, fast, moderate, full"),
        ("[tuning]\ntf32 = 0", "tf32 is 0, must be true or false"),
        ("= 3", "is not TOML"),
    ],
)
def test_a_mistake_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"unknown recipe 'vit_x'; did you mean vit_l\? known are .*vit_b"):
        load_recipe("vit_x")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))


def test_recipes_of_real_models_take_twenty_clicks_and_a_box() -> None:
    for name in list_recipes():
        if name != "many_prompts":
            assert max(profile.num_points[2] for profile in load_recipe(name).profiles) >= 22
