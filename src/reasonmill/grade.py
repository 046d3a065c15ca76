"""The command `grade`: what a task says of responses that stand in a file, before anybody trains on its verdicts."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from reasonmill.errors import RecipeError
from reasonmill.grading.verdict import Verdict
from reasonmill.history import note_to_user, table_of
from reasonmill.lasting_streams import lasting
from reasonmill.options import AcceptOption
from reasonmill.rewards.grades import verdict_of
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Message, Problem
from reasonmill.workers.answers import Failed

# How many problems of a split are looked through for the id of a row.
_LOOKED_THROUGH = 10_000
_SPLITS = ("test", "dev", "train")
_ASKED = ("problem", "prompt", "question")
# Hidden tests, which stand in for an answer; what was asked may be a part of them.
_TESTS = ("tests", "test", "test_list", "input_output", "inputs")
# What else a grader may go by in place of an answer: instructions, puzzles.
_CHECKED = ("instruction_id_list", "numbers", "nums", "solution")
_COLOURS = {"right": "green", "wrong": "red", "could not tell": "yellow"}


@lasting("stdout")
def grade(
    task: Annotated[str, typer.Argument(help="Name of a task.")],
    file: Annotated[
        Path, typer.Argument(help="JSONL (or .gz): rows with a response, and an answer, tests or a problem's id.")
    ],
    seed: Annotated[int, typer.Option("--seed", min=0, help="The seed of the problems that ids are from.")] = 0,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="A recipe whose own tasks may be named, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    accept_unisolated_code: AcceptOption = False,
) -> None:
    """Grades responses in a file: right, wrong or could not tell, row by row, with the reason.

    A row has `response`, and `answer`, hidden tests or the `id` of a problem; `problem` is what was asked. All else in
    it is what the task's grader may need, such as `options`.
    """
    from reasonmill.plugins.catalogue import installed
    from reasonmill.recipe.load import load_recipe

    catalogue = installed() if recipe is None else load_recipe(recipe).catalogue
    named = catalogue.task(task)
    counts: Counter[str] = Counter()
    table = table_of(f"{task}, {file}", "row", "verdict", "reason", "parts")
    known = _Known(named, seed)
    with catalogue.workers.limited_to(1):
        for number, line in enumerate(_lines(file), start=1):
            verdict = _verdict(named, known, line)
            outcome, reason = verdict.outcome, verdict.reason
            counts[outcome] += 1
            if as_json:
                shown = {"row": number, "verdict": outcome, "reason": reason, "parts": dict(verdict.parts)}
                print(json.dumps(shown, ensure_ascii=False), flush=True)
            else:
                parts = " ".join(f"{name} {value:g}" for name, value in verdict.parts.items())
                table.add_row(str(number), Text(outcome, _COLOURS[outcome]), Text(reason), parts)
    if not as_json:
        Console().print(table)
        note_to_user(", ".join(f"{counts[outcome]} {outcome}" for outcome in _COLOURS))


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file that are not empty; "-" is the standard input."""
    if str(file) == "-":
        yield from (line for line in sys.stdin if line.strip())
        return
    if not file.is_file():
        raise RecipeError(f"there is no file {str(file)!r}", where="FILE")
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as opened:
        for place, line in enumerate(opened):
            try:
                text = line.decode("utf-8-sig" if place == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise RecipeError(
                    f"line {place + 1} is not UTF-8: {error.reason}", where=f"{file}:{place + 1}"
                ) from error
            if text.strip():
                yield text


class _Known:
    """The problems of a task by their ids, drawn as far as rows ask for them."""

    def __init__(self, task: NamedTask, seed: int) -> None:
        self._drawn = itertools.chain.from_iterable(_of_split(task, split, seed) for split in _SPLITS)
        self._problems: dict[str, Problem] = {}

    def __getitem__(self, identity: str) -> Problem | None:
        while identity not in self._problems:
            problem = next(self._drawn, None)
            if problem is None:
                return None
            self._problems.setdefault(problem.id, problem)
        return self._problems[identity]


def _of_split(task: NamedTask, split: str, seed: int) -> Iterator[Problem]:
    try:
        yield from itertools.islice(task.problems(split, seed), _LOOKED_THROUGH)
    except RecipeError:
        return  # it has no such split


def _verdict(task: NamedTask, known: _Known, line: str) -> Verdict:
    """What the task says of a row; a row that can't be understood can't be graded."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Verdict.could_not_tell(f"the row is no JSON: {error}")
    if not isinstance(row, dict):
        return Verdict.could_not_tell("the row is no JSON object")
    response = _response(row.get("response"))
    if response is None:
        return Verdict.could_not_tell("the row has no text under `response`")
    problem = _problem(task.name, known, row)
    if isinstance(problem, str):
        return Verdict.could_not_tell(problem)
    try:
        return verdict_of(task.task, problem, response)
    except Failed as failed:
        return Verdict.could_not_tell(str(failed))
    except Exception as error:  # whatever a user's grader raises
        return Verdict.could_not_tell(f"the grader failed: {type(error).__name__}: {error}")


def _response(given: Any) -> str | None:
    """The text of a response, or of the last turn of a conversation."""
    if isinstance(given, list) and given and isinstance(given[-1], Mapping):
        given = given[-1].get("content")
    return given if isinstance(given, str) else None


def _problem(task: str, known: _Known, row: Mapping[str, Any]) -> Problem | str:
    """The problem that a row is about, or why there is none."""
    has_tests = any(row.get(name) for name in _TESTS)
    if row.get("answer") is None and not has_tests and not any(row.get(name) for name in _CHECKED):
        if row.get("id") is None:
            return "the row has no `answer`, no tests and no `id`"
        found = known[str(row["id"])]
        return found or f"no problem of this task has the id {str(row['id'])[:40]!r}"
    answer = "" if row.get("answer") is None else row["answer"]
    texts = [_text(one) for one in (answer if isinstance(answer, list) else [answer])]
    if not texts or None in texts:
        return "the row's `answer` is neither text nor a number, nor a list of them"
    left_out = {"answer", "response", "id", "meta", *(() if has_tests else _ASKED)}
    meta = {name: value for name, value in row.items() if name not in left_out}
    meta |= row["meta"] if isinstance(row.get("meta"), dict) else {}
    if len(texts) > 1:
        meta["answers"] = texts[1:]
    return Problem(task, _messages(row), str(texts[0]), meta)


def _text(answer: Any) -> str | None:
    if isinstance(answer, str):
        return answer
    if isinstance(answer, (bool, int, float)):
        return str(answer)
    return None


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """What was asked, where the row says so."""
    asked = next((row[name] for name in _ASKED if row.get(name)), "")
    if isinstance(asked, list):
        turns = [turn for turn in asked if isinstance(turn, Mapping) and isinstance(turn.get("content"), str)]
        asked = "\n".join(turn["content"] for turn in turns)
    return (Message("user", str(asked)),)
