"""The command `data`: what is understood of a file, row by row, and what not and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from reasonmill.errors import RecipeError
from reasonmill.history import note_on, table_of
from reasonmill.options import JsonOption
from reasonmill.types import Conversation, Group, Problem

if TYPE_CHECKING:
    from reasonmill.data.items import Item
    from reasonmill.data.table import Rows

# So many of the rows that are not used are named; --json names all.
_NAMED = 20
_FORMS = {"column": "", "hashes": ", behind ####", "box": r", in the last \boxed{}"}


def data(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A file or a directory, or a table of --recipe.")],
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="What a column is, as prompt=question; repeatable.")
    ] = None,
    answer: Annotated[
        Literal["column", "hashes", "box"] | None, typer.Option("--answer", help="How the answer stands in its column.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="A column to ignore; repeatable.")] = None,
    num: Annotated[int, typer.Option("--num", min=0, help="How many rows of each split are shown.")] = 5,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="A recipe, one of whose [data.NAME] is meant.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Shows what is understood of a user's rows, row by row, and what not and why. Exit code 2 if some are not."""
    if recipe is not None:
        if columns or answer or ignore:
            raise RecipeError("the recipe's table says what the columns are", fix="leave out --column and the like")
        rows = _table(source, recipe)
    else:
        from reasonmill.data.table import Rows

        said = dict(_column(text) for text in columns) if columns else None
        rows = Rows(file=Path(source).absolute(), columns=said, answer=answer, ignore=ignore, bad_rows="drop")
    if as_json:
        print(json.dumps(_as_json(rows, num), indent=2, ensure_ascii=False))
    else:
        _show(Console(), source, rows, num)
    if rows.bad:
        raise typer.Exit(RecipeError.exit_code)


def _table(name: str, recipe: str) -> Rows:
    from reasonmill.data.table import Rows
    from reasonmill.recipe.load import load_recipe

    made = load_recipe(recipe).catalogue.part("data", name).made
    if not isinstance(made, Rows):
        raise RecipeError(
            f"the table of data {name!r} is read by code of its own, which says nothing of its columns",
            fix="let a task name it, and see what it has by: reasonmill problems TASK --recipe RECIPE",
        )
    return made


def _column(text: str) -> tuple[str, str]:
    role, equals, path = text.partition("=")
    if not equals or not path:
        raise RecipeError(f"{text!r} does not say what a column is", fix="write --column prompt=question")
    return role, path


def _as_json(rows: Rows, num: int) -> dict[str, Any]:
    return {
        "shape": rows.shape.name,
        "makes": rows.kind,
        "columns": dict(rows.shape.columns),
        "answer": rows.shape.answer if "answer" in rows.shape.columns else None,
        "other_columns": _others(rows),
        "counts": asdict(rows.counts),
        "rows": [
            {"place": item.place, "split": split, **dict(zip(_HEADS[rows.kind], _cells(item), strict=True))}
            for split, items in rows.items.items()
            for item in items[:num]
        ],
        "not_understood": [{"place": bad.place, "column": bad.column, "why": bad.what} for bad in rows.bad],
        "not_used": [{"place": place, "why": why} for place, why in rows.left_out],
    }


def _show(console: Console, source: str, rows: Rows, num: int) -> None:
    meaning = table_of(f"{source}: {rows.shape.name}, which make {rows.kind}", "column", "is")
    for role, path in rows.shape.columns.items():
        meaning.add_row(Text(path), f"the {role}{_FORMS[rows.shape.answer] if role == 'answer' else ''}")
    fate = "kept for graders and rewards" if rows.kind == "problems" else "not used"
    for path in _others(rows):
        meaning.add_row(Text(path), fate)
    console.print(meaning)
    shown = table_of("", "row", "split", *_HEADS[rows.kind])
    for split, items in rows.items.items():
        for item in items[:num]:
            shown.add_row(Text(_short(item.place)), split, *(Text(cell) for cell in _cells(item)))
    console.print(shown)
    counts = asdict(rows.counts)
    for split, count in counts.pop("splits").items():
        note_on(console, f"{split}: {count}")
    for name, count in counts.items():
        if count:
            note_on(console, f"{_NAMES[name]}: {count}", style="yellow")
    _list(console, [f"{bad.where}: {bad.what}" for bad in rows.bad])
    _list(console, [f"{place}: {why}" for place, why in rows.left_out])


_HEADS = {
    "problems": ("prompt", "answer"),
    "conversations": ("prompt", "response"),
    "pairs": ("prompt", "responses and labels"),
    "labels": ("prompt", "responses and labels"),
    "texts": ("prompt", "text"),
}
_NAMES = {
    "duplicates": "the same as another row, dropped",
    "contradictory": "at odds with another row about the answer or the label, both dropped",
    "also_held_out": "asked by a held-out split, too, dropped from train",
    "bad": "not understood",
}


def _cells(item: Item) -> tuple[str, str]:
    """The prompt of a row, and what belongs to it."""
    prompt = (
        "\n".join(f"{m.role}: {m.content}" for m in item.prompt) if len(item.prompt) > 1 else item.prompt[0].content
    )
    made = item.make()
    if isinstance(made, Problem):
        return prompt, made.answer
    if isinstance(made, Conversation):
        return prompt, made.response
    if isinstance(made, Group):
        return prompt, "\n".join(f"{r.grade.reward:g}: {r.completion.text}" for r in made.rollouts)
    return "", made


def _others(rows: Rows) -> list[str]:
    """The columns that no role names."""
    taken = set(rows.shape.columns.values())
    return [name for name in rows.names if name not in taken and name.partition(".")[0] not in taken]


def _list(console: Console, lines: Sequence[str]) -> None:
    for line in lines[:_NAMED]:
        note_on(console, f"  {line}")
    if len(lines) > _NAMED:
        note_on(console, f"  and {len(lines) - _NAMED} more, which --json names")


def _short(place: str) -> str:
    """The place without the folder: each row of a table has it."""
    return place.rpartition("/")[2]
