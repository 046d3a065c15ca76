"""Kills and disk faults at every operation of the store; `crash_points` says how."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import reasonmill
from chaos.own_process import answers
from chaos.sabotage import SEEN_BY_KILLS
from reasonmill.store import disk

SOURCE = Path(reasonmill.__file__).parent

# By the function that is called, in the code of the store, with what it is for: the operations that it makes, each as
# the verbs of which it has one.
VERBS = {
    "write_file": [["write"]],
    "_write_durably": [["write"], ["fsync"]],
    "copy_file": [["copy"]],
    "fill_directory": [["fill"]],
    "fsync_file": [["fsync"]],
    "fsync_directory": [["fsync directory"]],
    "rename": [["rename"]],
    "replace": [["replace"]],
    "make_directory": [["make directory"]],
    "unlink": [["unlink"]],
    "remove_tree": [["unlink"], ["remove directory"]],
    "start_log": [["start log"]],
    "_transaction": [["commit", "commit unsynced"]],
    "empty_log": [["empty log"]],
    "close": [["close"]],
}


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.check)])
def test_every_operation_survives_every_fault(chaos_long: bool, chaos_jobs: int, every: int) -> None:
    if chaos_long and every > 1:
        pytest.skip("the long form takes every case")
    long = ["--long"] if chaos_long else []
    parts = answers("chaos.crash_points", *long, "--every", str(every), jobs=chaos_jobs)

    assert [problem for part in parts for problem in part["problems"]] == []
    assert sum(part["cases"] for part in parts) > (10000 if chaos_long else 250 // every)
    # What the scenario does not come by would not be tested: then it is the scenario that lacks something. One recovery
    # follows a single case, which fewer leave out.
    hit = {name for part in parts for name in part["hit"]} | ({"rename unreadable ledger"} if every > 1 else set())
    assert [operation for operation in operations_in_the_code() if not operation & hit] == []


def operations_in_the_code() -> Iterator[set[str]]:
    """Names of the operations that the source speaks of; one of each set has to come up."""
    for path in [*(SOURCE / "store").glob("*.py"), *(SOURCE / "mill").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            receiver = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            function = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if function in VERBS and (receiver == "disk" or function.startswith("_")):
                for what in (argument.value for argument in node.args if isinstance(argument, ast.Constant)):
                    if isinstance(what, str):
                        yield from ({f"{verb} {what}" for verb in verbs} for verbs in VERBS[function])


def test_the_code_is_searched_for_all_operations() -> None:
    assert {verb for alternatives in VERBS.values() for verbs in alternatives for verb in verbs} == set(
        get_args(disk.Verb)
    )
    assert {"commit groups", "commit unsynced groups"} in list(operations_in_the_code())
    assert {"fsync manifest"} in list(operations_in_the_code())


def test_wrong_stores_are_noticed() -> None:
    (found,) = answers("chaos.crash_points", "--controls")
    assert found.keys() == set(SEEN_BY_KILLS)
    assert [name for name, problem in found.items() if problem is None] == []
