"""`[data.NAME]`: the rows of files or of a hub data set, as a recipe describes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from reasonmill.data.files import read_rows
from reasonmill.data.hub import HubRows, read_hub
from reasonmill.data.items import Item, item_of
from reasonmill.data.shapes import AnswerForm, Kind, Shape, is_empty, known_shape, names_of, said_shape, value_at
from reasonmill.data.splits import DEFAULT_SHARES, Counts, Sorted, in_split, sort
from reasonmill.data.values import BadRow, Row
from reasonmill.errors import RecipeError
from reasonmill.tasks.splits import SPLITS
from reasonmill.types import Conversation, Group, Problem

Wanted = TypeVar("Wanted")

# So many rows are looked at to see what the columns are.
_SEEN_FIRST = 100
# So many bad rows are named in an error.
_NAMED = 5


@dataclass(frozen=True)
class Source:
    """Rows of one origin, with what their columns mean, and their split; None where the content decides."""

    shape: Shape
    names: tuple[str, ...]
    rows: Iterator[Row | BadRow]
    split: str | None


class Rows:
    """Rows that somebody wrote down.

    Args:
        file: a file or a directory of files; the content of a row's prompt decides its split.
        train, dev, test: a file or a directory for each split, in place of `file`.
        hub: a data set of the Hugging Face hub, in place of files.
        columns: the columns by what they are, for rows of no known shape.
        answer: how the answer stands in its column, where the shape does not say so.
        shares: of the splits of `file`: 0.8, 0.1 and 0.1 if unset.
        ignore: columns that ask for something that is not done here, and may be ignored.
        bad_rows: whether rows that are not understood are refused, or dropped and counted.

    Raises:
        RecipeError: a file can't be read, or a row is not understood and is not to be dropped.
    """

    def __init__(
        self,
        file: Path | None = None,
        train: Path | None = None,
        dev: Path | None = None,
        test: Path | None = None,
        hub: HubRows | None = None,
        columns: dict[str, str] | None = None,
        answer: AnswerForm | None = None,
        shares: dict[str, float] | None = None,
        ignore: list[str] | None = None,
        bad_rows: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        self._files = {name: path for name, path in zip(SPLITS, (train, dev, test), strict=True) if path is not None}
        given = [name for name, value in (("file", file), ("hub", hub), ("/".join(SPLITS), self._files)) if value]
        if len(given) != 1:
            raise RecipeError(
                f"rows come from one of file, {'/'.join(SPLITS)} and hub, and {' and '.join(given) or 'none'} is given",
                fix='name a file, as in file = "rows.jsonl"',
            )
        if shares is not None and file is None:
            raise RecipeError("shares divide the rows of `file`, and there is none", fix="remove shares")
        self._shares = DEFAULT_SHARES if shares is None else _checked(shares)
        self._file = file
        self._hub = hub
        self._columns = columns
        self._answer: AnswerForm | None = answer
        self._ignore = ignore or []
        self._idle = set(self._ignore)  # what no row so far has
        self.bad: list[BadRow] = []
        self._sorted = self._read()
        if self.bad and (bad_rows == "refuse" or not self._sorted.items):
            raise refusal(self.bad)
        if not self._sorted.items:
            place, why = self.left_out[0]
            raise RecipeError(f"none of the rows can be used: for example, {why}", where=place)

    @property
    def kind(self) -> Kind:
        """What the rows were made into."""
        return self.shape.kind

    @property
    def counts(self) -> Counts:
        """What became of the rows."""
        return self._sorted.counts

    @property
    def left_out(self) -> Sequence[tuple[str, str]]:
        """(place, why) of the first rows that were understood and are not used."""
        return self._sorted.left_out

    @property
    def items(self) -> Mapping[str, Sequence[Item]]:
        """What the rows were made into, by split, with their places."""
        return self._sorted.items

    def problems(self) -> Mapping[str, Sequence[Problem]]:
        """The problems of each split, in the order of their rows.

        Raises:
            RecipeError: the rows are something else.
        """
        self._require("problems")
        return self._problems

    def conversations(self) -> Sequence[Conversation]:
        """All conversations; each knows its split.

        Raises:
            RecipeError: the rows are something else.
        """
        self._require("conversations")
        return [each for split in self.items for each in self._made(split, Conversation)]

    def labelled(self) -> Sequence[Group]:
        """All labelled responses: for each row a group, whose grades have the label as a part, `chosen` or `label`.

        Raises:
            RecipeError: the rows are something else.
        """
        self._require("pairs", "labels")
        return [each for split in self.items for each in self._made(split, Group)]

    @cached_property
    def _problems(self) -> Mapping[str, Sequence[Problem]]:
        return {split: self._made(split, Problem) for split in self.items}

    def _made(self, split: str, kind: type[Wanted]) -> list[Wanted]:
        made = (in_split(item.make(), split) for item in self.items[split])
        return [each for each in made if isinstance(each, kind)]

    def _require(self, *kinds: Kind) -> None:
        if self.kind not in kinds:
            raise RecipeError(
                f"the rows hold {self.kind} ({self.shape.name}: {', '.join(self.shape.columns.values())}), "
                f"and {' or '.join(kinds)} are needed",
                fix="give conversations: a text that a template has already formatted is not learned here"
                if self.kind == "texts"
                else "say by `columns` what else they are, or name other data",
            )

    # Reading

    def _read(self) -> Sorted:
        sources = list(self._sources())
        self.shape, self.names = sources[0].shape, sources[0].names
        other = next((source for source in sources if source.shape.kind != self.shape.kind), None)
        if other is not None:
            raise RecipeError(
                f"split {sources[0].split!r} holds {self.shape.kind}, and {other.split!r} holds {other.shape.kind}",
                fix="give each its own table, or say by `columns` what they are",
            )
        found = sort(((source.split, item) for source in sources for item in self._items(source)), self._shares)
        found.counts.bad = len(self.bad)
        if self._idle:
            raise RecipeError(f"ignore names {min(self._idle)!r}, and no row has it", fix="remove it")
        return found

    def _items(self, source: Source) -> Iterator[Item]:
        for row in source.rows:
            if isinstance(row, BadRow):
                self.bad.append(row)
                continue
            self._idle = {path for path in self._idle if is_empty(value_at(row.columns, path))}
            try:
                yield item_of(row, source.shape)
            except BadRow as bad:
                self.bad.append(bad)

    def _sources(self) -> Iterator[Source]:
        if self._hub is not None:
            for split, rows in read_hub(self._hub).items():
                yield self._source(rows, split, self._hub.name)
        elif self._file is not None:
            yield self._source(read_rows(self._file), None, str(self._file))
        else:
            for split, path in self._files.items():
                yield self._source(read_rows(path), split, str(path))

    def _source(self, rows: Iterator[Row | BadRow], split: str | None, where: str) -> Source:
        first = list(itertools.islice(rows, _SEEN_FIRST))
        sample = [row for row in first if isinstance(row, Row)]
        if not sample:
            raise refusal([row for row in first if isinstance(row, BadRow)], where)
        names = names_of(sample)
        try:
            if self._columns is None:
                shape = known_shape(self._answer, sample, names)
            else:
                shape = said_shape(self._columns, self._answer, sample, names)
        except RecipeError as error:
            raise RecipeError(error.what, fix=error.fix, where=where) from error
        return Source(shape.ignoring(self._ignore), names, itertools.chain(first, rows), split)


def _checked(shares: Mapping[str, float]) -> Mapping[str, float]:
    unknown = [name for name in shares if name not in SPLITS]
    if unknown or not all(0 <= share <= 1 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        raise RecipeError(
            f"shares are of {', '.join(SPLITS)}, from 0 to 1, and add up to 1, and these are {dict(shares)}",
            fix="for example shares = { train = 0.9, test = 0.1 }",
        )
    return shares


def refusal(bad: Sequence[BadRow], where: str = "") -> RecipeError:
    """One error for rows that are not understood."""
    if not bad:
        return RecipeError("there are no rows", where=where, fix="name a file that has some")
    listed = [f"  {row.where}: {row.what}" for row in bad[:_NAMED]]
    more = [f"  and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []
    return RecipeError(
        "\n".join([f"{len(bad)} {'row is' if len(bad) == 1 else 'rows are'} not understood:", *listed, *more]),
        where=bad[0].where,
        fix='correct them, or leave them out, counted: bad_rows = "drop"',
    )
