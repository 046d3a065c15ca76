"""The watchdog: what it says of a phase that hangs, when it gives up, and what it lets pass."""

import ast
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

import reasonmill
from reasonmill import activity
from reasonmill.activity import beat, each, may_wait, phase
from reasonmill.errors import Hung
from reasonmill.mill.watchdog import Watchdog, WatchedProgress
from reasonmill.recipe.deadlines import Deadlines

SOURCE = Path(reasonmill.__file__).parent


@pytest.fixture
def printed(tmp_path: Path) -> Iterator[IO[str]]:
    with (tmp_path / "printed").open("w+") as file:
        yield file


def watchdog(printed: IO[str], given_up: list[Hung], **deadlines: float) -> Watchdog:
    return Watchdog(Deadlines(**deadlines), "zero", give_up=given_up.append, stream=printed)  # type: ignore[arg-type]


def text(printed: IO[str]) -> str:
    printed.seek(0)
    return printed.read()


def a_place_that_hangs(watching: Watchdog) -> None:
    watching.look(1)


def test_stacks_are_printed_once_and_then_the_run_ends(printed: IO[str]) -> None:
    given_up: list[Hung] = []
    watching = watchdog(printed, given_up, sampling=60)
    watching.reached = ", after 3 of 40 steps"
    with phase("sampling"):
        watching.look(0)
        watching.look(59)
        assert text(printed) == ""
        a_place_that_hangs(watching)
        told = text(printed)
        assert told.startswith("stage 'zero', phase sampling, after 3 of 40 steps: no sign of progress for 60 s")
        assert "a_place_that_hangs" in told  # the stacks
        watching.look(59)
        assert text(printed) == told
        assert given_up == []
        watching.look(1)
    (error,) = given_up
    assert str(error).startswith("stage 'zero', phase sampling, after 3 of 40 steps: no sign of progress for 120 s")
    assert "watchdog.sampling" in error.fix
    assert error.exit_code == 75


def test_any_sign_of_progress_starts_the_deadline_again(printed: IO[str]) -> None:
    given_up: list[Hung] = []
    watching = watchdog(printed, given_up, update=60, reading=1e6)
    with phase("update"):
        for _ in range(5):
            watching.look(50)
            beat()
        watching.look(50)
        with phase("reading"):  # another phase, and back
            watching.look(50)
            watching.look(500)
        watching.look(50)
        watching.look(50)
    assert (text(printed), given_up) == ("", [])


def test_what_is_no_phase_or_has_no_deadline_may_take_for_ever(printed: IO[str]) -> None:
    given_up: list[Hung] = []
    watching = watchdog(printed, given_up, grading=0)
    for _ in range(3):
        watching.look(1e9)
    with phase("grading"):
        for _ in range(3):
            watching.look(1e9)
    assert (text(printed), given_up) == ("", [])


def test_a_wait_that_has_a_limit_of_its_own_comes_on_top(printed: IO[str]) -> None:
    given_up: list[Hung] = []
    watching = watchdog(printed, given_up, judging=60)
    with phase("judging"), may_wait(600):
        watching.look(0)
        watching.look(659)
        assert text(printed) == ""
        watching.look(1)
        assert text(printed) != ""
        watching.look(60)
    assert len(given_up) == 1


def test_the_watching_thread_finds_a_phase_that_hangs(printed: IO[str]) -> None:
    hung = threading.Event()
    deadlines = Deadlines(saving=0.02)
    with Watchdog(deadlines, "zero", give_up=lambda error: hung.set(), stream=printed), phase("saving"):
        assert hung.wait(timeout=60)
    assert "a_phase_that_hangs" in text(printed)
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_without_deadlines_nobody_watches(printed: IO[str]) -> None:
    with watchdog(printed, [], **dict.fromkeys(activity.PHASES, 0.0)):
        assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_items_are_fetched_in_a_phase_and_used_outside_of_it() -> None:
    seen = []

    def items() -> Iterator[int]:
        for item in range(2):
            seen.append(activity.current()[0])
            yield item
        seen.append(activity.current()[0])

    with phase("update"):
        for _ in each("reading", items()):
            seen.append(activity.current()[0])
    assert seen == ["reading", "update"] * 2 + ["reading"]
    assert activity.current()[0] is None


def test_a_phase_ends_with_an_error() -> None:
    with pytest.raises(ValueError, match="wrong"), phase("saving"):
        raise ValueError("wrong")
    assert activity.current()[0] is None


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def begin(self, *args: object) -> None:
        self.calls.append(("begin", *args))

    def advance(self, *args: object) -> None:
        self.calls.append(("advance", *args))

    def note(self, *args: object) -> None:
        self.calls.append(("note", *args))

    def end(self, *args: object) -> None:
        self.calls.append(("end", *args))


def test_progress_is_a_sign_and_says_how_far_a_stage_is(printed: IO[str]) -> None:
    recorder, begun = Recorder(), []
    watching = watchdog(printed, [], sampling=60)
    progress = WatchedProgress(recorder, watching, on_begin=lambda: begun.append(True))
    progress.begin("zero", 40, "steps")
    with phase("sampling"):
        watching.look(0)
        watching.look(59)
        progress.advance(3, {"loss/ce": 1.0})
        watching.look(59)
        assert text(printed) == ""
        watching.look(60)
    progress.note("read this")
    progress.end({})
    assert text(printed).startswith("stage 'zero', phase sampling, after 3 of 40 steps:")
    assert recorder.calls == [
        ("begin", "zero", 40, "steps"), ("advance", 3, {"loss/ce": 1.0}), ("note", "read this"), ("end", {}),
    ]  # fmt: skip
    assert begun == [True]


def entered_phases() -> set[str]:
    """The phases that the source enters, by a literal name."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("phase", "each"):
                found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def test_every_phase_is_entered_and_has_a_deadline() -> None:
    assert entered_phases() == set(activity.PHASES) == set(Deadlines.model_fields)
