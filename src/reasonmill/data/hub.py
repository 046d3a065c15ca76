"""Data sets of the Hugging Face hub, through `datasets`, which the extra `hub` installs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from reasonmill.data.values import BadRow, Row, json_value
from reasonmill.errors import RecipeError
from reasonmill.tasks.splits import SPLITS

# What data sets call their splits, where a recipe does not say so.
_USUAL = {"train": "train", "validation": "dev", "test": "test"}


def _a_commit(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", value):
        raise ValueError(f"{value!r} is no commit of 40 hexadecimal digits; a branch or a tag can move")
    return value


class HubRows(BaseModel):
    """A data set of the hub. Its commit identifies the rows, so that a stage's key is known without them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="owner/name of the data set")
    revision: Annotated[str, AfterValidator(_a_commit)] = Field(description="the commit, 40 hexadecimal digits")
    config: str | None = Field(default=None, description="the configuration, where there are several")
    splits: dict[str, str] = Field(
        default={}, description="the data set's split of each of ours; those with the usual names if empty"
    )


def read_hub(hub: HubRows) -> Mapping[str, Iterator[Row | BadRow]]:
    """The rows of a data set by our splits; pictures and sounds in them stay undecoded.

    Raises:
        RecipeError: `datasets` is not installed, or the data set can't be had.
    """
    if Path(hub.name).exists():  # `datasets` would read it in place of the hub's, whatever the commit
        raise RecipeError(
            f"there is a directory {hub.name!r} here, which would be taken for the data set of the hub",
            fix="run from another directory, or name its files by file, train, dev and test",
        )
    try:
        import datasets
    except ImportError as error:
        raise RecipeError(
            f"the data set {hub.name!r} of the hub needs the package datasets, which is not installed",
            fix="pip install 'reasonmill[hub]', or name a file",
        ) from error
    try:
        datasets.disable_progress_bars()  # reasonmill shows its own
        found = datasets.load_dataset(hub.name, hub.config, revision=hub.revision)
    except Exception as error:  # whatever the hub, the network or the cache raise
        raise RecipeError(f"the data set {hub.name!r} can't be had: {error}") from error
    wanted = hub.splits or {ours: theirs for theirs, ours in _USUAL.items() if theirs in found}
    if not wanted or any(ours not in SPLITS or theirs not in found for ours, theirs in wanted.items()):
        raise RecipeError(
            f"the data set {hub.name!r} has the splits {', '.join(found)}",
            fix=f'say which is which, as in splits = {{ test = "{next(iter(found))}" }}; ours are {", ".join(SPLITS)}',
        )
    return {ours: _rows(found[theirs], f"{hub.name}, {theirs}") for ours, theirs in wanted.items()}


def _rows(rows: Any, name: str) -> Iterator[Row | BadRow]:
    for number, columns in enumerate(rows, 1):
        place = f"{name}, row {number}"
        try:
            yield Row(place, {column: json_value(value, column) for column, value in columns.items()})
        except BadRow as bad:
            yield BadRow(bad.what, bad.column, place)
