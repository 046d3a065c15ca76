"""No dead knob: every argument that a recipe's tables can give to what ships does what it is there for."""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import pytest

from knobs.check import faults, misfits
from knobs.plugin_bench import Plugins, put_files, stood_in
from knobs.plugin_cases import NEEDS, PLUGINS
from knobs.tiny_stage import watched
from knobs.tree import Knob, knobs
from reasonmill.plugins.catalogue import installed
from reasonmill.store.home import Home

OFFERED = [
    (group, name)
    for group in ("data", "environments", "rewards", "tasks", "conversations", "rewritings")
    for name in installed().names(group)  # type: ignore[arg-type]
]


def knobs_of(group: str, name: str) -> dict[str, Knob]:
    return {knob.path: knob for knob in knobs(installed().plugin(group, name).arguments)}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugins]:
    folder = tmp_path_factory.mktemp("plugins")
    put_files(folder)
    with Home.open(folder / "home") as home, watched(), stood_in(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Plugins(home, folder)


@pytest.mark.parametrize(("group", "name"), OFFERED)
def test_every_argument_has_its_case(group: str, name: str) -> None:
    assert misfits(knobs_of(group, name), PLUGINS.get((group, name), ({}, {}))[1]) == []


# What `make test` looks at, too.
QUICK = (("rewards", "length"), ("tasks", "gsm8k"), ("rewritings", "world-style"))


@pytest.mark.parametrize(
    ("group", "name"), [pytest.param(*each, marks=() if each in QUICK else pytest.mark.check) for each in PLUGINS]
)
def test_every_argument_does_what_it_is_there_for(group: str, name: str, plugins: Plugins) -> None:
    base, cases = PLUGINS[group, name]
    see = partial(plugins.see, group, name)
    tried = {path: flip for path, flip in cases.items() if _is_installed(group, name, path)}
    found = {path: faults(base, path, flip, see) for path, flip in tried.items()}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def _is_installed(group: str, name: str, path: str) -> bool:
    """Whether the extra is there that an argument, or all of them, need."""
    needed = NEEDS.get((group, name, path), NEEDS.get((group, name, "")))
    return needed is None or find_spec(needed) is not None
