"""The catalogue of plug-ins: who offers which name, and what they are made with and read."""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from reasonmill.plugins import catalogue as catalogue_module
from reasonmill.plugins.catalogue import (
    Catalogue,
    ConversationsTable,
    ProblemCounts,
    RewardShares,
    RewritingTable,
    TaskShares,
    TaskUse,
    Use,
    installed,
    require_split,
)
from users_code import refused, write

MINE = """
from pathlib import Path
from reasonmill.types import Completion, Grade, Message, Problem

class Mine:
    domain = "reasoning"

    def __init__(self, answer: str = "42", file: Path | None = None) -> None:
        self.answer = answer
        self.file = file

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem("mine", (Message("user", f"{split} {seed} {index}"),), self.answer)

    def problems(self, split: str, seed: int):
        return (self.problem(split, seed, index) for index in range(3))

    def grade(self, problem, completions):
        return [Grade(1.0, {"accuracy": 1.0}) for _ in completions]

def broken(share: float) -> Mine:
    return 1 / share

class Reward:
    def measure(self, attempt):
        return 1.0

class Room:
    max_turns = 2
    def start(self, problem): ...
    async def reply(self, episode, completion): ...

class Nothing: ...

VALUE = 1
"""


@pytest.fixture
def brought(tmp_path: Path) -> Callable[..., Catalogue]:
    """A catalogue of a recipe's own tables, as in `brought(tasks={"mine": {"use": ...}})`."""
    write(tmp_path, mine=MINE)

    def brought(**tables: Mapping[str, Mapping[str, Any]]) -> Catalogue:
        made: dict[Any, Mapping[str, Use]] = {
            group: {name: (TaskUse if group == "tasks" else Use)(**table) for name, table in named.items()}
            for group, named in tables.items()
        }
        return Catalogue(made, tmp_path)

    return brought


Brought = Callable[..., Catalogue]


def test_a_recipe_s_own_go_before_what_is_offered(brought: Brought) -> None:
    own = brought(tasks={"arithmetic": {"use": "mine.py:Mine"}, "plain": {"use": "arithmetic"}})
    assert own.task("arithmetic").problem("train", 0, 0).answer == "42"
    assert own.task("plain").problem("train", 0, 0).task == "plain"
    assert own.names("tasks")[:2] == ("arithmetic", "plain")
    assert set(own.names("tasks")) == {"plain", *installed().names("tasks")}
    assert "plain" not in installed().names("tasks")


def test_a_name_that_is_offered_may_take_arguments(brought: Brought) -> None:
    own = brought(
        tasks={
            "sums": {"use": "arithmetic", "name": "chains"},
            "countdown-5": {"use": "reasonmill.world.countdown:Countdown", "name": "five", "counts": [5]},
        }
    )
    assert own.task("sums").problem("train", 0, 0).task == "sums"
    assert own.task("sums").task.name == "chains"  # type: ignore[attr-defined]
    assert len(own.task("countdown-5").problem("train", 0, 0).meta["numbers"]) == 5
    error = refused(lambda: brought(tasks={"few": {"use": "countdown-3", "counts": [2]}}).task("few"))
    assert error.what.startswith("task 'few' refuses its arguments: counts: Extra inputs")
    assert error.fix == "it takes none"


def test_paths_are_relative_to_the_recipe(brought: Brought, tmp_path: Path) -> None:
    (tmp_path / "data.txt").touch()
    own = brought(tasks={"mine": {"use": "mine.py:Mine", "file": "data.txt"}})
    assert own.task("mine").task.file == tmp_path / "data.txt"  # type: ignore[attr-defined]


def test_a_task_has_the_environment_that_its_table_names(brought: Brought) -> None:
    own = brought(
        tasks={"mine": {"use": "mine.py:Mine", "environment": "room"}},
        environments={"room": {"use": "mine.py:Room"}},
    )
    assert own.task("mine").environment is own.plugin("environments", "room").made
    assert own.task("arithmetic").environment is None
    bare = brought(tasks={"mine": {"use": "mine.py:Mine", "environment": "rom"}})
    assert refused(lambda: bare.task("mine")).what == "unknown environment 'rom'"


def test_what_is_unknown_is_refused_with_what_is_known() -> None:
    error = refused(lambda: installed().task("countdwn"))
    assert (error.what, error.fix) == ("unknown task 'countdwn'", "did you mean 'countdown'?")
    error = refused(lambda: installed().reward("xyz"))
    known = "use one of format, language, random, length, pairwise, rubric"
    assert (error.what, error.fix) == ("unknown reward 'xyz'", known)


@pytest.mark.parametrize(
    ("group", "use", "what"),
    [
        ("tasks", "mine.py:Nothing", "'Nothing' is no task: it has no domain and no problem and no problems and no gr"),
        ("tasks", "mine.py:Reward", "'Reward' is no task"),
        ("tasks", "mine.py:VALUE", "task 'x': 'VALUE' is neither a class nor a function"),
        ("tasks", "mine.py", "task 'x': 'mine' is neither a class nor a function"),
        ("rewards", "mine.py:Mine", "'Mine' is no reward: it has no measure"),
        ("environments", "mine.py:Mine", "'Mine' is no environment: it has no max_turns and no start and no reply"),
        ("stages", "mine.py", "'mine' is no kind of stage: it has no MAKES and no Settings and no run"),
        ("conversations", "mine.py:Mine", "'Mine' is no source of conversations: it has no conversation"),
        ("rewritings", "mine.py:Mine", "'Mine' is no rewriting: it has no rewrite"),
    ],
)  # fmt: skip
def test_what_is_of_another_kind_is_refused_with_what_it_lacks(
    brought: Brought, group: Any, use: str, what: str
) -> None:
    own = brought(**{group: {"x": {"use": use}}})
    error = refused(lambda: own.plugin(group, "x").made)
    assert error.what.startswith(what)
    assert error.fix


def test_an_error_of_a_constructor_is_told(brought: Brought) -> None:
    own = brought(tasks={"mine": {"use": "mine.py:broken", "share": 0.0}})
    assert refused(lambda: own.task("mine")).what == (
        "task 'mine' can't be made: ZeroDivisionError: float division by zero"
    )


def test_what_is_named_is_made_once_and_not_before(
    brought: Brought, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADED", "no")
    write(tmp_path, noisy="import os\nos.environ['LOADED'] = 'yes'\n" + MINE)
    own = brought(tasks={"mine": {"use": "noisy.py:Mine"}})
    own.plugin("tasks", "mine")
    assert os.environ["LOADED"] == "no"
    assert own.plugin("tasks", "mine").made is own.plugin("tasks", "mine").made
    assert os.environ["LOADED"] == "yes"


READING = """
from pathlib import Path
from .mine import Mine

HERE = Path(__file__).parent

class AtOnce(Mine):
    def __init__(self) -> None:
        (HERE / "data.txt").read_text()

class Later(Mine):
    def __init__(self) -> None: ...
    def problem(self, split: str, seed: int, index: int):
        (HERE / "data.txt").read_text()

class Declared(AtOnce):
    files = [HERE / "data.txt"]

class Folder(AtOnce):
    files = [HERE]

class Given(AtOnce):
    def __init__(self, data: Path) -> None:
        data.read_text()

class Sources(Mine):
    def __init__(self) -> None:
        (HERE / "mine.py").read_text()

class Absent(AtOnce):
    files = [HERE / "data.txt", HERE / "other.txt"]
"""


@pytest.mark.parametrize(
    ("name", "arguments", "what"),
    [
        ("AtOnce", {}, "task 'x' reads data.txt, and does not declare it"),
        ("Later", {}, "task 'x' reads data.txt, and does not declare it"),
        ("Absent", {}, "task 'x' reads a file that is not there: "),
        ("Given", {"data": "other.txt"}, "task 'x' can't be made: FileNotFoundError"),
        ("Declared", {}, None),
        ("Folder", {}, None),
        ("Given", {"data": "data.txt"}, None),
        ("Sources", {}, None),
    ],
)
def test_files_that_are_read_have_to_be_declared(
    brought: Brought, tmp_path: Path, name: str, arguments: dict[str, str], what: str | None
) -> None:
    write(tmp_path, reading=READING)
    (tmp_path / "data.txt").write_text("x")
    own = brought(tasks={"x": {"use": f"reading.py:{name}", **arguments}})
    if what is None:
        assert own.task("x")
    else:
        error = refused(lambda: own.task("x"))
        assert error.what.startswith(what)
        assert "declare" not in what or (error.where, error.fix[:7]) == (str(tmp_path / "data.txt"), "list it")


def test_every_name_that_is_offered_can_be_made() -> None:
    for group in ("tasks", "rewards", "environments", "stages", "conversations", "rewritings"):
        for name in installed().names(group):  # type: ignore[arg-type]
            plugin = installed().plugin(group, name)  # type: ignore[arg-type]
            if not any(field.is_required() for field in plugin.arguments.model_fields.values()):
                assert plugin.made


# Installed packages


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Catalogue]]:
    """Offers entry points, as in `offer(tasks={"mine": "lab_of_tests:Mine"})`."""
    write(tmp_path, lab_of_tests=MINE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def offer(**groups: Mapping[str, str] | list[tuple[str, str]]) -> Catalogue:
        found = EntryPoints(
            EntryPoint(name, value, f"reasonmill.{group}")
            for group, entries in groups.items()
            for name, value in (entries.items() if isinstance(entries, Mapping) else entries)
        )
        monkeypatch.setattr(catalogue_module, "_entry_points", lambda: found)
        catalogue_module._offered.cache_clear()
        return Catalogue({}, tmp_path)

    assert catalogue_module.entry_points is importlib.metadata.entry_points
    yield offer
    catalogue_module._offered.cache_clear()
    sys.modules.pop("lab_of_tests", None)


def test_installed_packages_offer_theirs_as_entry_points(offer: Callable[..., Catalogue]) -> None:
    found = offer(tasks={"mine": "lab_of_tests:Mine"}, rewards={"always": "lab_of_tests:Reward"})
    assert found.task("mine").problem("train", 1, 2).messages[0].content == "train 1 2"
    assert found.names("tasks")[-1] == "mine"
    assert found.names("rewards") == ("format", "language", "random", "length", "pairwise", "rubric", "always")
    assert found.names("environments") == installed().names("environments")
    assert "lab_of_tests" in sys.modules


def test_an_entry_point_is_not_imported_before_it_is_named(offer: Callable[..., Catalogue]) -> None:
    found = offer(tasks={"mine": "lab_of_tests:Mine", "broken": "nowhere_lab:Task"})
    assert {"mine", "broken"} <= set(found.names("tasks"))
    assert found.task("arithmetic")
    assert "lab_of_tests" not in sys.modules
    assert refused(lambda: found.task("broken")).what.startswith("missing module: 'nowhere_lab'")


@pytest.mark.parametrize(
    ("entries", "both"),
    [
        ([("mine", "one_lab:A"), ("mine", "other_lab:B")], "one_lab:A and other_lab:B"),
        ([("arithmetic", "other_lab:B")], "reasonmill.world.arithmetic:Arithmetic and other_lab:B"),
    ],
)
def test_two_packages_that_offer_one_name_are_a_mistake(
    offer: Callable[..., Catalogue], entries: list[tuple[str, str]], both: str
) -> None:
    error = refused(lambda: offer(tasks=entries).names("tasks"))
    assert error.what == f"two installed packages offer the task {entries[0][0]!r}: {both}"
    assert error.fix


# Settings that name plug-ins


class Naming(BaseModel):
    tasks: TaskShares = {}
    problems: ProblemCounts = {}
    rewards: RewardShares = {}
    general: ConversationsTable | None = None
    rewrite: RewritingTable | None = None


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"tasks": {"arithmetics": 1.0}}, "unknown task 'arithmetics'; did you mean 'arithmetic'?"),
        ({"tasks": {"arithmetic": 0.0}}, "greater than 0"),
        ({"tasks": {"arithmetic": float("inf")}}, "finite"),
        ({"problems": {"arithmetic": 0}}, "greater than or equal to 1"),
        ({"rewards": {"speed": 1.0}}, "unknown reward 'speed'; use one of format, language, random, "),
        ({"rewards": {"format": float("nan")}}, "finite"),
        ({"general": {"use": "talk", "conversations": 1}}, "unknown source of conversations 'talk'"),
        ({"general": {"use": "world-talk"}}, "conversations"),
        ({"rewrite": {"use": "world-style", "shout": True}}, "refuses its arguments: shout"),
    ],
)
def test_settings_that_name_what_there_is_not_are_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Naming.model_validate(given)
    assert what in str(caught.value)


def test_settings_are_checked_against_the_catalogue_of_their_recipe(brought: Brought) -> None:
    given = {"tasks": {"mine": 1.0}, "rewards": {"own": 1.0, "accuracy": 1.0}}
    own = brought(tasks={"mine": {"use": "mine.py:Mine"}}, rewards={"own": {"use": "mine.py:Reward"}})
    assert Naming.model_validate(given, context={"catalogue": own}).rewards == given["rewards"]
    with pytest.raises(ValidationError, match="unknown task 'mine'"):
        Naming.model_validate(given)


def test_a_split_that_a_task_has_no_problem_in_is_refused() -> None:
    require_split({"arithmetic": 1, "facts": 1}, "test", installed())
    with pytest.raises(ValueError, match="'facts' has no split 'dev'"):
        require_split({"arithmetic": 1, "facts": 1}, "dev", installed())
