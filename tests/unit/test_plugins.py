"""Plug-ins: what the text of a `use` names, what it is made with, and who offers which name."""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from reasonmill.errors import RecipeError
from reasonmill.plugins import catalogue as catalogue_module
from reasonmill.plugins.arguments import arguments_of, keywords
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
from reasonmill.plugins.target import Importer, Target, read_target

Load = Callable[[str], Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads the text of a `use` beside the test's files."""
    importer = Importer()
    return lambda text: importer.load(read_target(text, tmp_path))


def refused(ask: Callable[[], object]) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        ask()
    return caught.value


def write(folder: Path, **modules: str) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


# Targets


def test_a_dotted_name_is_an_attribute_of_an_installed_module(load: Load) -> None:
    assert load("json.decoder:JSONDecoder") is __import__("json").decoder.JSONDecoder
    assert load("json.decoder") is sys.modules["json.decoder"]


def test_a_file_is_relative_to_the_recipe_or_absolute(load: Load, tmp_path: Path) -> None:
    write(tmp_path / "deep", mine="class Mine: ...\n")
    assert load("./deep/mine.py:Mine") is load("deep/mine.py:Mine")
    assert load(f"{tmp_path}/deep/mine.py:Mine") is load("deep/mine.py:Mine")
    assert load("deep/mine.py").Mine is load("deep/mine.py:Mine")  # the module as a whole


def test_a_file_is_relative_to_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, mine="")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_target("~/mine.py", Path("/nowhere")) == Target("mine", "", tmp_path / "mine.py")


def test_files_import_their_neighbours_relatively_and_each_once(load: Load, tmp_path: Path) -> None:
    write(tmp_path, helpers="made = []\n", one="from .helpers import made\n", two="from . import helpers\n")
    write(tmp_path / "inner", __init__="from ..helpers import made\n", deep="from . import made\n")
    write(tmp_path, three="from .inner.deep import made\n")
    made = load("one.py:made")
    assert load("two.py").helpers.made is made
    assert load("three.py:made") is made
    assert str(tmp_path) not in sys.path
    assert "helpers" not in sys.modules


def test_two_folders_with_the_same_names_are_kept_apart(load: Load, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, helpers=f"NAME = {folder!r}\n", mine="from .helpers import NAME\n")
    assert (load("a/mine.py:NAME"), load("b/mine.py:NAME")) == ("a", "b")


def test_a_file_may_have_any_name_without_a_dot(load: Load, tmp_path: Path) -> None:
    write(tmp_path, **{"my-task": "from .helpers import X\n", "helpers": "X = 1\n", "json": "X = 2\n", "a.b": ""})
    assert load("my-task.py:X") == 1
    assert load("json.py:X") == 2
    error = refused(lambda: load("a.b.py:X"))
    assert (error.what, error.fix) == ("'a.b' is no name of a module: it has a dot", "rename the file a.b.py")


def test_a_changed_file_is_taken_anew_by_the_next_importer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where nothing but its content tells: the same size, and changed within one tick of the clock."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    for value in (1, 2, 3):
        file.write_text(f"from .helpers import Y\nX = {value}\n")
        (tmp_path / "helpers.py").write_text(f"Y = {value}\n")
        for path in (file, tmp_path / "helpers.py"):
            os.utime(path, (1_000_000_000, 1_000_000_000))
        importer = Importer()
        module = importer.load(read_target("mine.py", tmp_path))
        assert [value] * 2 == [module.X, module.Y]
        assert importer.load(read_target("mine.py", tmp_path)) is module


def test_what_names_no_code_is_refused(load: Load, tmp_path: Path) -> None:
    for text in ("two words", "mine:", ":Mine", "a..b:C", "a.b:C.D", "./mine:Mine"):
        assert refused(lambda text=text: load(text)).what == f"{text!r} names no code"  # type: ignore[misc]
    error = refused(lambda: load("./mine.py:Mine"))
    assert error.what == "missing module: there is no file './mine.py'"
    assert str(tmp_path / "mine.py") in error.fix


def test_a_missing_module_and_a_missing_package_are_told_apart(load: Load) -> None:
    assert refused(lambda: load("nowhere_lab.tasks:Mine")).what == (
        "missing module: 'nowhere_lab.tasks' can't be imported, because there is no 'nowhere_lab'"
    )
    error = refused(lambda: load("json.nothing:Mine"))
    assert "there is no 'json.nothing'" in error.what
    assert "install the package" in error.fix


def test_a_missing_attribute_is_told_with_those_that_there_are(load: Load, tmp_path: Path) -> None:
    write(tmp_path, mine="class Mine: ...\ndef make(): ...\nclass _Hidden: ...\n")
    error = refused(lambda: load("mine.py:Mein"))
    assert (error.what, error.where) == ("module 'mine' has no 'Mein'", str(tmp_path / "mine.py"))
    assert error.fix == "it has Mine, make"


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("x = 1\ndef f(:\n", "module 'mine' is not valid Python: ", 2),
        ("\n\nraise KeyError('x')\n", "module 'mine' can't be imported: KeyError: 'x'", 3),
        ("x = 1\nfrom json import nothing\n", "module 'mine' can't be imported: ImportError: ", 2),
        ("\nimport nowhere_lab\n", "module 'mine' imports 'nowhere_lab', which is not installed", 2),
        ("\nfrom .broken import x\n", "module 'mine' can't be imported: NameError: ", None),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_the_line(
    load: Load, tmp_path: Path, text: str, what: str, line: int | None
) -> None:
    write(tmp_path, mine=text, broken="\n\n\nunknown\n")
    error = refused(lambda: load("mine.py:Mine"))
    assert error.what.startswith(what)
    assert error.where == (f"{tmp_path}/mine.py:{line}" if line else f"{tmp_path}/broken.py:4")


def test_a_neighbour_that_is_imported_absolutely_is_told_how(load: Load, tmp_path: Path) -> None:
    write(tmp_path, mine="from helpers import x\n", helpers="x = 1\n")
    error = refused(lambda: load("mine.py:Mine"))
    assert error.what == "module 'mine' imports 'helpers', which is not installed"
    assert error.fix == "a neighbour is imported relatively: from .helpers import ..."


def test_a_mistake_of_a_package_is_told_with_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "broken_lab", __init__="", tasks="\nx = 1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    error = refused(lambda: Importer().load(read_target("broken_lab.tasks:Mine", tmp_path)))
    assert error.what == "module 'broken_lab.tasks' can't be imported: ZeroDivisionError: division by zero"
    assert error.where == f"{tmp_path}/broken_lab/tasks.py:2"


def test_a_target_knows_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "some_lab", __init__="", tasks="")
    write(tmp_path, single_lab="")
    monkeypatch.syspath_prepend(str(tmp_path))
    target = read_target("some_lab.tasks:Mine", tmp_path)
    assert target.root == ("some_lab", tmp_path / "some_lab")
    assert target.source == ("some_lab.tasks", tmp_path / "some_lab" / "tasks.py")
    assert read_target("single_lab:Mine", tmp_path).root == ("single_lab", tmp_path / "single_lab.py")
    assert read_target("single_lab.py", tmp_path).root == ("files", tmp_path)
    assert read_target("single_lab.py", tmp_path).source == ("files.single_lab", tmp_path / "single_lab.py")


# Arguments


class Typed:
    def __init__(
        self, path: Path, count: int, share: float = 0.5, names: tuple[str, ...] = (), extra: Path | None = None
    ) -> None: ...


def taken(made_by: Callable[..., Any], **given: Any) -> BaseModel:
    import json

    return arguments_of(made_by, "task 'mine'").model_validate_json(json.dumps(given), strict=True)


def test_arguments_have_the_types_and_defaults_of_the_parameters(tmp_path: Path) -> None:
    found = taken(Typed, path="data/x.jsonl", count=3, names=["a", "b"])
    assert keywords(found, tmp_path) == {
        "path": tmp_path / "data" / "x.jsonl",
        "count": 3,
        "share": 0.5,
        "names": ("a", "b"),
        "extra": None,
    }
    assert keywords(taken(Typed, path="/data/x", count=3), tmp_path)["path"] == Path("/data/x")


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"count": 3}, "path\n  Field required"),
        ({"path": "x", "count": "3"}, "count\n  Input should be a valid integer"),
        ({"path": "x", "count": True}, "count\n  Input should be a valid integer"),
        ({"path": "x", "count": 3, "cuont": 3}, "cuont\n  Extra inputs are not permitted"),
        ({"path": "x", "count": 3, "names": "ab"}, "names\n  Input should be a valid array"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        taken(Typed, **given)
    assert what in str(caught.value)


class Opaque: ...


def untyped(path, count: int = 1): ...  # type: ignore[no-untyped-def]
def starred(*names: str) -> None: ...
def doubly_starred(**options: int) -> None: ...
def opaque(thing: Opaque) -> None: ...
def unknown_type(thing: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("made_by", "why"),
    [
        (untyped, "its parameter 'path' has no type"),
        (starred, "so that nothing could be checked"),
        (doubly_starred, "so that nothing could be checked"),
        (opaque, "Opaque"),
        (unknown_type, "Missing"),
    ],
)
def test_parameters_that_nothing_can_be_checked_against_are_refused(made_by: Callable[..., Any], why: str) -> None:
    error = refused(lambda: arguments_of(made_by, "task 'mine'"))
    assert error.what.startswith("the arguments of task 'mine' can't be checked: ")
    assert why in error.what
    assert error.fix


# The catalogue

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
    assert (error.what, error.fix) == ("unknown reward 'xyz'", "use one of format, language, random")


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
    assert own.task("mine").task is own.task("mine").task
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
            assert installed().plugin(group, name).made  # type: ignore[arg-type]


# Installed packages


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Catalogue]]:
    """Offers entry points, as in `offer(tasks={"mine": "lab_of_tests:Mine"})`."""
    write(tmp_path, lab_of_tests=MINE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def offer(**groups: Mapping[str, str] | list[tuple[str, str]]) -> Catalogue:
        found = {
            f"reasonmill.{group}": [
                EntryPoint(name, value, f"reasonmill.{group}")
                for name, value in (entries.items() if isinstance(entries, Mapping) else entries)
            ]
            for group, entries in groups.items()
        }
        monkeypatch.setattr(catalogue_module, "entry_points", lambda group: found.get(group, []))
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
    assert found.names("rewards") == ("format", "language", "random", "always")
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
        ({"rewards": {"speed": 1.0}}, "unknown reward 'speed'; use one of format, language, random, accuracy, help"),
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
    require_split(["arithmetic", "facts"], "test", installed())
    with pytest.raises(ValueError, match="'facts' has no split 'dev'"):
        require_split(["arithmetic", "facts"], "dev", installed())
