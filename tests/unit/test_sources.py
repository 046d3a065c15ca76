"""What identifies code: the modules that are reached, and those that only carry results around."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from contexts import a_context
from reasonmill.errors import RecipeError
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.plugins.catalogue import Catalogue, installed
from reasonmill.plugins.sources import (
    ENGINES,
    PACKAGE,
    PACKAGE_ROOT,
    code_digest,
    engine_sources,
    is_left_out,
    room_versions,
    source_files,
)
from reasonmill.recipe.reference import shipped_bases
from reasonmill.store.home import Home

TOY = {
    "__init__.py": "",
    "stages/__init__.py": "",
    "stages/a.py": "import json\nfrom toy.maths import add\nfrom . import b\ndef run():\n    import toy.late\n",
    "stages/b.py": "from ..deep import inner\n",
    "stages/c.py": "",
    "maths.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.hints import Hint\n",
    "hints.py": "import toy.stages.a\n",
    "late.py": "",
    "deep/__init__.py": "from .inner import thing\n",
    "deep/inner.py": "",
    "deep/other.py": "",
}


def written(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package `toy` whose module toy.stages.a imports some modules, and does not import others."""
    return written(tmp_path / "toy", TOY)


def found(package: Path, module: str = "toy.stages.a") -> dict[str, str]:
    """The files that a module of the package comes to, by their modules' names."""
    place = package / f"{module.removeprefix('toy.').replace('.', '/')}.py"
    sources = source_files({module: place}, {"toy": package}, ())
    return {name: path.relative_to(package).as_posix() for name, path in sources.items()}


def digest(package: Path) -> str:
    return code_digest(source_files({"toy.stages.a": package / "stages" / "a.py"}, {"toy": package}, ()))


def test_code_is_what_a_module_imports_directly_or_not(package: Path) -> None:
    """Also what it imports in functions, relatively, for type checkers only, and the packages that hold all that."""
    assert found(package) == {
        "toy": "__init__.py",
        "toy.stages": "stages/__init__.py",
        "toy.stages.a": "stages/a.py",
        "toy.stages.b": "stages/b.py",
        "toy.maths": "maths.py",
        "toy.hints": "hints.py",
        "toy.late": "late.py",
        "toy.deep": "deep/__init__.py",
        "toy.deep.inner": "deep/inner.py",
    }


def test_a_package_imports_relatively_from_itself(package: Path) -> None:
    (package / "deep" / "__init__.py").write_text("from . import other\nfrom .. import late\n")
    sources = source_files({"toy.deep": package / "deep" / "__init__.py"}, {"toy": package}, ())
    assert set(sources) == {"toy", "toy.deep", "toy.deep.other", "toy.late"}


@pytest.mark.parametrize(("changed", "counts"), [("deep/inner.py", True), ("late.py", True), ("stages/c.py", False)])
def test_only_code_that_is_imported_changes_the_digest(package: Path, changed: str, counts: bool) -> None:
    before = digest(package)
    (package / changed).write_text("VALUE = 1\n")
    assert (digest(package) != before) == counts


def test_a_digest_depends_on_names_and_contents_and_not_on_places(package: Path, tmp_path: Path) -> None:
    before = digest(package)
    assert digest(written(tmp_path / "elsewhere" / "toy", TOY)) == before
    one, other = package / "late.py", package / "maths.py"
    assert code_digest({"a": one, "b": other}) != code_digest({"b": one, "a": other})


def test_other_packages_and_folders_without_code_do_not_count(package: Path) -> None:
    (package / "stages" / "c.py").write_text("import numpy\nimport toy.data\nfrom toyish import thing\n")
    (package / "data").mkdir()
    assert set(found(package, "toy.stages.c")) == {"toy", "toy.stages", "toy.stages.c"}


def test_a_package_may_be_a_single_file(tmp_path: Path, package: Path) -> None:
    single = written(tmp_path, {"single.py": "import toy.late\nimport single.inner\n"}) / "single.py"
    sources = source_files({"single": single}, {"toy": package, "single": single}, ())
    assert set(sources) == {"single", "toy", "toy.late"}


def test_several_modules_are_begun_with(package: Path) -> None:
    begun = {f"toy.{name}": package / f"{name}.py" for name in ("late", "hints")}
    assert {"toy.late", "toy.hints", "toy.stages.a"} <= set(source_files(begun, {"toy": package}, ()))


# Rooms that are left out


def test_a_room_that_is_left_out_is_not_even_looked_through(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from reasonmill import never\n",
        "stages/a.py": "from reasonmill.store.home import Home\nfrom reasonmill.errors import StoreError\n"
        "from reasonmill import algo\nimport reasonmill.storey\n",
        "store/home.py": "import reasonmill.behind\n",
        "errors.py": "",
        "behind.py": "",
        "storey.py": "",
        "never.py": "",
        "algo/__init__.py": "",
    }
    root = written(tmp_path / "reasonmill", files)
    begun = {"reasonmill.stages.a": root / "stages" / "a.py"}
    sources = source_files(begun, {"reasonmill": root}, {"store": 1, "errors": 1})
    assert set(sources) == {"reasonmill.stages.a", "reasonmill.algo", "reasonmill.storey"}


def test_only_rooms_of_this_package_are_left_out() -> None:
    assert is_left_out("reasonmill", ())
    assert is_left_out("reasonmill.store.home", {"store"})
    assert not is_left_out("reasonmill.algo.store", {"store"})
    assert not is_left_out("mylab.store", {"store"})
    assert not is_left_out("mylab", {"store"})


def test_the_rooms_that_are_left_out_exist_and_have_versions() -> None:
    rooms = {path.stem for path in PACKAGE_ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert set(room_versions()) <= rooms
    assert all(isinstance(version, int) and version >= 1 for version in room_versions().values())


def test_what_decides_results_is_not_left_out() -> None:
    deciding = (
        "algo",
        "curation",
        "learn",
        "model",
        "rewards",
        "rollouts",
        "sample",
        "stages",
        "tasks",
        "types",
        "world",
    )
    assert not set(deciding) & set(room_versions())


# Engines


@pytest.mark.parametrize("need", ENGINES)
def test_an_engine_is_code_that_exists(need: str) -> None:
    for name, path in engine_sources(need):
        assert path.is_file(), name


def test_a_stage_can_not_need_what_there_is_not() -> None:
    with pytest.raises(RecipeError, match="no stage can need 'luck'") as caught:
        engine_sources("luck")
    assert "sampler" in caught.value.fix


def test_a_stage_has_the_engines_that_it_needs_in_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = source_files(dict(engine_sources("sampler")), {"reasonmill": PACKAGE_ROOT}, room_versions())
    assert {"reasonmill.sample.engine", "reasonmill.model.decoder"} <= set(reached)
    before = Catalogue().plugin("stages", "evaluate").code
    monkeypatch.setattr(installed().plugin("stages", "evaluate").made, "NEEDS", ())
    assert Catalogue().plugin("stages", "evaluate").code != before


def test_all_that_a_context_makes_is_covered_by_what_a_stage_says_it_needs() -> None:
    """What the native backend imports of the rooms that compute is covered by one need or another."""
    backend = source_files(
        {"reasonmill.backends.native": PACKAGE_ROOT / "backends" / "native.py"},
        {PACKAGE: PACKAGE_ROOT},
        room_versions().keys() - {"backends"},
    )
    needed = dict(pair for need in ENGINES for pair in engine_sources(need))
    covered = source_files(needed, {PACKAGE: PACKAGE_ROOT}, room_versions())
    computing = {name for name in backend if name.split(".")[1] in ("sample", "learn", "model", "algo")}
    assert computing > {"reasonmill.sample.engine", "reasonmill.learn.adamw", "reasonmill.model.attention"}
    assert computing <= covered.keys()


def test_a_stage_gets_what_it_says_it_needs_and_nothing_else(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        context = replace(a_context(home), needs=("sampler",))
        context.sampler(shipped_bases()["tiny-base-weak"])
        with pytest.raises(RecipeError, match="takes a learner and does not say so"):
            context.learner(shipped_bases()["tiny-base-weak"], OptimizerSettings())
