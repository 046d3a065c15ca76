"""No dead knob: all that stands beside the stages of a recipe does what it is there for."""

from collections.abc import Iterator

import pytest

from knobs.check import faults, misfits
from knobs.recipe_bench import Recipes, offline
from knobs.recipe_cases import BASE, CASES, NAMED
from knobs.tiny_stage import watched
from knobs.tree import knobs
from reasonmill.recipe.load import RecipeFile


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipes]:
    folder = tmp_path_factory.mktemp("recipes")
    with watched(), offline(folder), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Recipes(folder)


def place_of(path: str) -> str:
    """Where a recipe has a setting: in tables with names of the user's, under such a name."""
    table, dot, rest = path.partition(".")
    return f"{table}.{NAMED[table]}.{rest}" if dot and table in NAMED else path


def test_every_setting_of_a_recipe_has_its_case() -> None:
    assert misfits({knob.path: knob for knob in knobs(RecipeFile)}, CASES) == []


@pytest.mark.check
def test_every_setting_of_a_recipe_does_what_it_is_there_for(recipes: Recipes) -> None:
    found = {path: faults(BASE, place_of(path), flip, recipes.see) for path, flip in CASES.items()}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}
