"""Graders for logic puzzles: knights and knaves, 24 from four numbers, and who lives in which house."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from reasonmill.grading.places import takes_back
from reasonmill.grading.reply import reply_of, without_fence
from reasonmill.grading.verdict import Isolation, Verdict
from reasonmill.tasks.expression import Expression, ExpressionError, read_expression
from reasonmill.tasks.spelling import plain_sides
from reasonmill.types import Problem

_CONCLUSION = re.compile(r"\bconclusion[*_]*[ \t]*:", re.IGNORECASE)
_SENTENCE = re.compile(r"[.;!?\n]+")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_ROLES = {"knight": True, "knave": False}
# What makes the rest of a sentence no statement of who somebody is.
_UNSURE = frozenset({"not", "isn't", "if", "or", "either", "neither", "nor", "suppose", "assume", "would", "rather"})
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*:?")
_LABEL = re.compile(r"^[^:=\n]{0,60}:")
# Objects that are looked for in a reply: more say nothing about which one is meant.
_MOST_OBJECTS = 100
_USUAL_TARGET = 24

People = Mapping[str, bool]
Grid = Mapping[str, Mapping[str, str]]


class _UnreadableError(ValueError):
    """A reference or a reply that can't be read; says why."""


class KnightsAndKnavesGrader:
    """Right if the reply says of everybody whether they are a knight, and is right about all of them.

    Who is one stands in `meta` as `names` and `solution` (a list of truth values), or in `answer`: in words, or as a
    JSON object of names and roles. Where they are called saints and sinners, for example, `knight_knave` in `meta` says
    so: `{"knight": "a saint", "knave": "a sinner"}`. What a reply says stands after its last "CONCLUSION:", in its
    answer block, or in its last paragraph. Sentences that only suppose, deny or offer a choice say nothing; a
    contradiction is wrong.
    """

    isolation: Isolation = "none"
    asks = "End with CONCLUSION: and then one line for each person, such as (1) Ann is a knight."

    def judge(self, problem: Problem, response: str) -> Verdict:
        words = _role_words(problem)
        try:
            people = _people(problem, words)
        except _UnreadableError as error:
            return Verdict.could_not_tell(str(error))
        reply = reply_of(response)
        if not reply:
            return Verdict.wrong("there is no reply")
        said = _CONCLUSION.split(reply)[-1].strip()
        if said == reply:
            said = _PARAGRAPH.split(reply)[-1]
        if any(takes_back("", sentence) for sentence in _SENTENCE.split(said)):
            return Verdict.wrong("takes its conclusion back")
        roles = _roles(said, set(people), words)
        torn = [name for name, role in roles.items() if len(role) > 1]
        missing = [name for name in people if name not in roles]
        if torn or missing:
            return Verdict.wrong(f"contradicts itself about {torn[0]}" if torn else f"says nothing of {missing[0]}")
        mistaken = [name for name, is_knight in people.items() if roles[name] != {is_knight}]
        return Verdict.wrong(f"is mistaken about {mistaken[0]}") if mistaken else Verdict.right()


def _role_words(problem: Problem) -> People:
    """The words for knights (True) and knaves (False), in lower case, also for several of them."""
    called = problem.meta.get("knight_knave")
    words = dict(_ROLES)
    if isinstance(called, Mapping):
        words |= {str(called.get(role, role)).lower().split()[-1]: is_knight for role, is_knight in _ROLES.items()}
    return words | {f"{word}s": is_knight for word, is_knight in words.items()}


def _people(problem: Problem, words: People) -> People:
    """Who is a knight, by their names in lower case."""
    names, solution = problem.meta.get("names"), problem.meta.get("solution")
    if isinstance(names, list) and isinstance(solution, list) and len(names) == len(solution):
        return {str(name).lower(): bool(is_knight) for name, is_knight in zip(names, solution, strict=True)}
    roles = {str(name).lower(): words.get(str(role).lower(), role) for name, role in _object(problem.answer).items()}
    known = {name: role for name, role in roles.items() if isinstance(role, bool)}
    if known and len(known) == len(roles):
        return known
    # A name is what stands before "is a knight".
    names = [
        name for name, word in re.findall(r"([A-Z][\w'’-]*) is an? (\w+)", problem.answer) if word.lower() in words
    ]
    found = _roles(problem.answer, {name.lower() for name in names}, words)
    if not names or len(found) < len(set(names)) or any(len(role) != 1 for role in found.values()):
        raise _UnreadableError(f"the reference does not say who is a knight: {problem.answer[:80]!r}")
    return {name: role == {True} for name, role in found.items()}


def _roles(text: str, names: set[str], words: People) -> dict[str, set[bool]]:
    """What a text says of each of the names (in lower case): "A is a knave", "A and B are knaves", "knaves: A, B"."""
    found: dict[str, set[bool]] = {}
    # "Will" is a name, and "will" is none, unless nobody's name is written with a capital.
    lower = text == text.lower()
    for sentence in _SENTENCE.split(text):
        named: list[str] = []
        is_said = False  # of those named: who is a knight and a knave contradicts himself
        listed: bool | None = None  # the role of a list that names follow
        unsure = False
        for match in _WORD.finditer(sentence):
            word = match[0].lower().replace("’", "'")
            plain = word.rstrip(":")
            unsure |= plain in _UNSURE
            if plain in names and (lower or match[0][0].isupper()):
                if listed is not None:
                    found.setdefault(plain, set()).add(listed)
                    continue
                named = [*([] if is_said else named), plain]
                is_said = False
            elif plain in words and word.endswith(":") and not named and not unsure:
                listed = words[plain]
            elif plain in words and not unsure:
                is_said = True
                for name in named:
                    found.setdefault(name, set()).add(words[plain])
    return found


class TwentyFourGrader:
    """Right if the answer is an expression that uses each of the numbers once and has the target's value.

    `meta`, or `answer` as a JSON object, has the `numbers` (or `nums`) and the `target`, which is 24 if nothing says
    otherwise; without numbers, `answer` is a solution, whose numbers and value are meant. The expression stands in the
    answer block or in the last line. Operations are + - * / and parentheses, and values are exact.
    """

    isolation: Isolation = "none"
    asks = "Give the expression alone in the last line."

    def judge(self, problem: Problem, response: str) -> Verdict:
        try:
            numbers, target = _wanted(problem)
        except _UnreadableError as error:
            return Verdict.could_not_tell(str(error))
        reply = reply_of(response)
        if not reply:
            return Verdict.wrong("there is no reply")
        line = _LABEL.sub("", reply.splitlines()[-1]).strip().strip("*").strip()
        try:
            sides = [read_expression(side) for side in plain_sides(line)]
        except ExpressionError as error:
            return Verdict.wrong(f"the last line is no expression: {error}")
        if Counter(sides[0].numbers) != numbers:
            return Verdict.wrong("does not use each of the numbers once")
        if any(side.value != target for side in sides):
            return Verdict.wrong(f"is {sides[0].value} and not {target}")
        return Verdict.right()


def _wanted(problem: Problem) -> tuple[Counter[int], Fraction]:
    """The numbers to use, and the value to reach."""
    source = problem.meta if {"numbers", "nums"} & problem.meta.keys() else _object(problem.answer)
    numbers = source.get("numbers", source.get("nums"))
    if numbers is None:
        solution = _solution(problem.answer)
        return Counter(solution.numbers), solution.value
    if not isinstance(numbers, list) or not numbers or any(type(number) is not int for number in numbers):
        raise _UnreadableError("'numbers' is no list of whole numbers")
    try:
        target = read_expression(str(source.get("target", _USUAL_TARGET))).value
    except ExpressionError as error:
        raise _UnreadableError(f"'target' is no number: {error}") from error
    return Counter(numbers), target


def _object(text: str) -> Mapping[str, Any]:
    """The JSON object that a text is; an empty one where it is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _solution(answer: str) -> Expression:
    try:
        solution = read_expression(plain_sides(answer)[0])
    except ExpressionError as error:
        raise _UnreadableError(f"the problem has no numbers, and its answer is no expression: {error}") from error
    if len(solution.numbers) < 2:
        raise _UnreadableError("the problem has no numbers, and its answer is no expression of several")
    return solution


class ZebraGrader:
    """Right if each cell of the grid is right; the part `cells` is the share of them that are.

    The grid stands in `meta["solution"]` or as JSON in `answer`: as objects, `{"House 1": {"Name": "Ann"}}`, or as
    ZebraLogic has it, with `header` and `rows`. The reply holds one JSON object of that first form, alone or under the
    key "solution". Letters' case and spaces do not matter; an object that has a key twice is refused.
    """

    isolation: Isolation = "none"
    asks = (
        'End with one JSON object such as {"solution": {"House 1": {"Name": "Ann", ...}, "House 2": {...}}} '
        "that has every house and every attribute."
    )

    def judge(self, problem: Problem, response: str) -> Verdict:
        try:
            wanted = _grid(problem.meta.get("solution") or json.loads(problem.answer, object_pairs_hook=_once))
        except (ValueError, RecursionError) as error:
            return Verdict.could_not_tell(f"the reference is no grid: {error}")
        try:
            said = _grid(_only_object(reply_of(response) or ""))
        except _UnreadableError as error:
            return Verdict.wrong(str(error), {"cells": 0.0})
        cells = [said.get(house, {}).get(name) == value for house, row in wanted.items() for name, value in row.items()]
        parts = {"cells": sum(cells) / len(cells)}
        return Verdict.right("", parts) if all(cells) else Verdict.wrong("not every cell is right", parts)


def _only_object(reply: str) -> Any:
    """The one JSON object of a reply."""
    text = without_fence(reply)
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    found: list[tuple[Any, str, str]] = []  # with what stands before and behind it
    place = text.find("{")
    for _ in range(_MOST_OBJECTS):
        if place < 0:
            break
        try:
            value, end = decoder.raw_decode(text, place)
            found.append((value, text[:place], text[end:]))
        except _UnreadableError:
            raise
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)
    if len(found) != 1 or place >= 0:
        raise _UnreadableError(f"the reply holds {'several JSON objects' if found else 'no JSON object'}")
    if takes_back(*found[0][1:]):
        raise _UnreadableError("the reply takes its JSON object back")
    return found[0][0]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({_plain(name) for name, _ in pairs}) < len(pairs):
        raise _UnreadableError("a JSON object has a key twice")
    return dict(pairs)


def _grid(value: Any) -> Grid:
    """Attributes by house, all spelled plainly."""
    if isinstance(value, Mapping) and isinstance(value.get("solution"), Mapping):
        value = value["solution"]
    if not isinstance(value, Mapping) or not value:
        raise _UnreadableError("there is no object of houses")
    if isinstance(value.get("header"), list) and isinstance(value.get("rows"), list):
        header, rows = [str(name) for name in value["header"]], value["rows"]
        if not rows or len(header) < 2 or any(not isinstance(row, list) or len(row) != len(header) for row in rows):
            raise _UnreadableError("the rows do not fit the header")
        value = {str(row[0]): dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    if not all(isinstance(row, Mapping) and row for row in value.values()):
        raise _UnreadableError("a house is no object of attributes")
    return {
        _plain(house).removeprefix("house").strip(): {_plain(name): _plain(cell) for name, cell in row.items()}
        for house, row in value.items()
    }


def _plain(value: Any) -> str:
    """A text in lower case with single spaces; lists and objects are no cell of a grid, and equal none."""
    if isinstance(value, list | dict):
        return "\0"
    return " ".join(str(value).replace("_", " ").lower().split())
