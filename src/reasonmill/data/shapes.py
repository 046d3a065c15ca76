"""What the columns of rows mean: recognised by their names, or as a recipe's `columns` say."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from reasonmill.data.values import BadRow, Row
from reasonmill.errors import RecipeError, suggestion

Kind = Literal["problems", "conversations", "pairs", "labels", "texts"]
AnswerForm = Literal["column", "hashes", "box"]

# By the roles of its columns: what a row is made into. Roles that every one of a kind has, and others that it may have.
_KINDS: tuple[tuple[Kind, frozenset[str], frozenset[str]], ...] = (
    ("pairs", frozenset({"chosen", "rejected"}), frozenset({"prompt", "system"})),
    ("labels", frozenset({"prompt", "response", "label"}), frozenset({"system"})),
    ("labels", frozenset({"prompt", "steps", "label"}), frozenset({"system"})),
    ("conversations", frozenset({"messages"}), frozenset({"system"})),
    ("conversations", frozenset({"prompt", "response"}), frozenset({"context", "system"})),
    ("texts", frozenset({"text"}), frozenset()),
    ("problems", frozenset({"prompt"}), frozenset({"answer", "choices", "system"})),
)
_EVERYWHERE = frozenset({"split"})
# What the last "####" and the last \boxed{} are looked for with, to see what a column holds.
_HASHES = "####"
_BOX = re.compile(r"\\boxed\b")


@dataclass(frozen=True)
class Refused:
    """A column that asks for something that is not done here, unless it holds nothing, or one of `fine`.

    Attributes:
        only: the values that do; any if empty.
    """

    column: str
    why: str
    fine: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def asks(self, value: Any) -> bool:
        """Whether a value of the column asks for it."""
        return value in self.only if self.only else not is_empty(value) and value not in self.fine


@dataclass(frozen=True)
class Shape:
    """What the columns of rows mean.

    Attributes:
        kind: what a row is made into.
        columns: the columns by their roles; "a.b" is the entry b of the column a.
        answer: how the answer stands in its column.
        refused: columns that ask for what is not done here.
    """

    name: str
    kind: Kind
    columns: Mapping[str, str]
    answer: AnswerForm = "column"
    refused: tuple[Refused, ...] = ()

    def ignoring(self, ignored: Iterable[str]) -> Shape:
        """The shape for a user who knows that these columns have no effect."""
        known = set(ignored)
        return replace(self, refused=tuple(each for each in self.refused if each.column not in known))


def value_at(columns: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of an entry within it; None where there is none."""
    if path in columns:
        return columns[path]
    head, dot, rest = path.partition(".")
    inner = columns.get(head)
    return value_at(inner, rest) if dot and isinstance(inner, dict) else None


def is_empty(value: Any) -> bool:
    """Whether there is nothing in a value: null, an empty text or list, or an object of such values only."""
    return value is None or value in ("", []) or (isinstance(value, dict) and all(map(is_empty, value.values())))


def said_shape(
    columns: Mapping[str, str], answer: AnswerForm | None, sample: Sequence[Row], names: Iterable[str]
) -> Shape:
    """The shape that `columns` of a recipe say.

    Args:
        sample: the rows seen first.
        names: those of the file's columns.

    Raises:
        RecipeError: the roles make no kind of row, or there is no such column.
    """
    kind = next((name for name, needs, may in _KINDS if needs <= columns.keys() <= needs | may | _EVERYWHERE), None)
    if kind is None:
        known = "; ".join(f"{name}: {' and '.join(sorted(needs))}" for name, needs, _ in _KINDS)
        raise RecipeError(f"columns of {', '.join(columns)} make nothing", fix=f"name those of one kind: {known}")
    for role, path in columns.items():
        if all(value_at(row.columns, path) is None for row in sample):
            raise RecipeError(
                f"columns.{role} names {path!r}, and the rows have no such column",
                fix=suggestion(path, list(names)) or f"they have {', '.join(names)}",
            )
    if answer is not None and "answer" not in columns:
        raise RecipeError("answer says how a column is read, and columns name none for the answer", fix="remove it")
    form = answer or _form(columns.get("answer"), sample)
    return Shape("as columns say", kind, columns, form, _refused_everywhere())


def known_shape(answer: AnswerForm | None, sample: Sequence[Row], names: Iterable[str]) -> Shape:
    """The first of the known shapes that rows fit by the names of their columns.

    Raises:
        RecipeError: they fit none.
    """
    for described in _table()["shape"]:
        wanted: dict[str, str] = described["columns"]
        if not all(_is_there(path, sample) for path in (*wanted.values(), *described.get("beside", ()))):
            continue
        columns = dict(wanted)
        for role, candidates in described.get("maybe", {}).items():
            found = next((path for path in candidates if _is_there(path, sample)), None)
            columns |= {role: found} if found else {}
        kind = next(name for name, needs, may in _KINDS if needs <= columns.keys() <= needs | may)
        if answer is not None and "answer" not in columns:
            raise RecipeError(f"answer has no effect on {described['name']}: they have no answers", fix="remove it")
        form = answer or described.get("answer") or _form(columns.get("answer"), sample)
        why = f"rows of the shape {described['name']!r} ask for something that is not done here"
        own = tuple(Refused(column, why) for column in described.get("refused", ()))
        return Shape(described["name"], kind, columns, form, (*own, *_refused_everywhere()))
    listed = ", ".join(names)
    raise RecipeError(
        f"rows with the columns {listed} are of no known shape",
        fix='say what they are, for example columns = { prompt = "question", answer = "result" }',
    )


def names_of(sample: Iterable[Row]) -> tuple[str, ...]:
    """The names of the columns of rows, and of the entries one level below, as far as something stands in them."""
    found: dict[str, None] = {}
    for row in sample:
        for name, value in row.columns.items():
            if isinstance(value, dict):
                found |= {f"{name}.{inner}": None for inner, each in value.items() if each is not None}
            elif value is not None:
                found[name] = None
    return tuple(found)


def require_nothing_refused(shape: Shape, row: Row) -> None:
    """Refuses a row that asks for what is not done here.

    Raises:
        BadRow: it does.
    """
    for refused in shape.refused:
        if refused.column in shape.columns.values():
            continue
        value = value_at(row.columns, refused.column)
        if refused.asks(value):
            raise BadRow(f"{refused.why}; without it: ignore = [{refused.column!r}]", refused.column)


def _is_there(path: str, sample: Sequence[Row]) -> bool:
    return any(value_at(row.columns, path) is not None for row in sample)


def _form(path: str | None, sample: Sequence[Row]) -> AnswerForm:
    """How answers stand in a column: behind hashes or in a box where those of some rows do."""
    texts = [value for row in sample if path and isinstance(value := value_at(row.columns, path), str)]
    if any(_HASHES in text for text in texts):
        return "hashes"
    if path and path.rpartition(".")[2] == "solution" and any(_BOX.search(text) for text in texts):
        return "box"
    return "column"


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@cache
def _refused_everywhere() -> tuple[Refused, ...]:
    return tuple(
        Refused(each["column"], each["why"], tuple(each.get("fine", ())), tuple(each.get("only", ())))
        for each in _table()["refused"]
    )
