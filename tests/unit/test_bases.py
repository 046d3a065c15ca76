"""The shipped bases are what their origin says they are."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from reasonmill.recipe.load import shipped_recipes
from reasonmill.recipe.reference import shipped_bases
from reasonmill.store.commit import seal

BASES = shipped_bases()


def test_both_bases_ship() -> None:
    assert set(BASES) == {"tiny-base", "tiny-base-weak"}


@pytest.mark.parametrize("name", sorted(BASES))
def test_files_have_the_digest_of_the_artifact(name: str, tmp_path: Path) -> None:
    origin = json.loads((BASES[name] / "origin.json").read_text())
    copy = tmp_path / "copy"
    shutil.copytree(BASES[name], copy, ignore=shutil.ignore_patterns("origin.json"))
    assert seal(copy) == origin["artifact"]


@pytest.mark.parametrize("name", sorted(BASES))
def test_origin_names_recipe_and_size(name: str) -> None:
    origin = json.loads((BASES[name] / "origin.json").read_text())
    assert origin["recipe"] in shipped_recipes()
    with safe_open(BASES[name] / "model.safetensors", "np") as weights:
        parameters = sum(weights.get_tensor(key).size for key in weights.keys())  # noqa: SIM118
    assert parameters == origin["parameters"]
