"""The commands on a home that can't be reached: each says so, and none ends with a traceback or changes anything."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from command_line import Call
from failing_disk import UNREACHABLE, fail_reading
from reasonmill.store.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with Home.open(tmp_path / "above" / "home") as home:
        home.ledger.begin_run("r", {"stage": []}, [])
    return home.path


@pytest.mark.parametrize("is_above", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["verify"],
        ["gc"],
        ["run", "RECIPE", "--device", "cpu"],
        ["run", "RECIPE", "--dry-run"],
        ["eval", "r/zero", "--task", "countdown-3"],
        ["chat", "r/zero"],
        ["lineage", "r/zero"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("stages")
def test_a_home_that_can_not_be_reached_is_told(
    call: Call, recipe_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], is_above: bool
) -> None:
    fail_reading(monkeypatch, errno.EACCES, home.parent if is_above else home)
    code, _, err = call(*(recipe_file if it == "RECIPE" else it for it in command), "--home", home)
    assert err.lstrip().startswith("error: the home can't be read or written: Permission denied\n  where: ")
    assert "  fix:   check the disk, the path and its permissions" in err
    assert code == 3


@pytest.mark.parametrize("number", UNREACHABLE)
def test_a_file_of_others_that_can_not_be_read_is_told(
    call: Call, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    fail_reading(monkeypatch, number, tmp_path / "model")
    code, _, err = call("eval", tmp_path / "model", "--task", "countdown-3")
    assert err.startswith(f"error: a file can't be read or written: {os.strerror(number)}\n  where: ")
    assert code == 3


def test_a_directory_that_is_no_home_yet_can_be_planned_for(
    call: Call, recipe_file: Path, tmp_path: Path, stages: Any
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    assert call("run", recipe_file, "--dry-run", "--home", tmp_path / "mine")[0] == 0
    (tmp_path / "mine" / "tmp").mkdir()
    (tmp_path / "mine" / "tmp" / "notes").write_text("mine")
    for more in ("--dry-run", "--device=cpu"):
        code, _, err = call("run", recipe_file, more, "--home", tmp_path / "mine")
        assert (code, "it is no home of reasonmill" in err) == (3, True)
