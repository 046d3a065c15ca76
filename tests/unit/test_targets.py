"""What the text of a `use` names, and what users' code can be constructed with."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from reasonmill.plugins.arguments import arguments_of, keywords
from reasonmill.plugins.target import Importer, Target, read_target
from users_code import refused, write

Load = Callable[[str], Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads the text of a `use` beside the test's files."""
    importer = Importer()
    return lambda text: importer.load(read_target(text, tmp_path))


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
        ("import sys\nsys.exit(3)\n", "module 'mine' can't be imported: SystemExit: 3", 2),
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
