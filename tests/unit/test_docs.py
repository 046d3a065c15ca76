"""The pages of the stages say what the code says: every setting with its type and default, and examples that load."""

import dataclasses
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from reasonmill.plugins.catalogue import TaskUse, installed
from reasonmill.plugins.plugin import Group
from reasonmill.recipe.cycle import Cycle
from reasonmill.recipe.deadlines import Deadlines
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.load import load_recipe, shipped_recipes
from reasonmill.recipe.models import RecipeModel
from reasonmill.recipe.reference import Reference

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.stem: path for path in sorted((DOCS / "stages").glob("*.md"))}
# Each with the files that its page has beside it.
EXAMPLES = [
    pytest.param(
        text, dict(re.findall(r"In `([\w.-]+)`[^\n]*\n\n```python\n(.*?)```", page, re.DOTALL)), id=f"{name}-{place}"
    )
    for name, page in ((path.stem, path.read_text(encoding="utf-8")) for path in PAGES.values())
    for place, text in enumerate(re.findall(r"```toml\n(.*?)```", page, re.DOTALL))
]
# Pages of tables that are no stages.
TABLES: dict[str, Any] = {"cycle": Cycle, "models": RecipeModel, "plugins": TaskUse, "watchdog": Deadlines}
REQUIRED = object()
_TYPES: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "true or false"}

Row = tuple[str, str, str]


# The settings as the code has them


def rows(model: Any, defaults: Any = None, prefix: str = "") -> Iterator[Row]:
    """Name, type and default of each setting; those of a nested table follow under dotted names.

    Args:
        model: a pydantic model or a dataclass.
        defaults: an instance of it, where the table that it stands for has one as its default.
    """
    for name, alias, default in _fields(model):
        if defaults is not None:
            default = getattr(defaults, name)
        annotation = get_type_hints(model, include_extras=True)[name]
        inner = next((kind for kind in map(_plain, (annotation, *get_args(annotation))) if _is_table(kind)), None)
        key = prefix + alias
        if inner is None or default is None:
            yield key, type_text("table" if inner else annotation), default_text(default)
        if inner is not None:
            yield from rows(inner, default if _is_table(type(default)) else None, f"{key}.")


def _fields(model: Any) -> Iterator[tuple[str, str, Any]]:
    """Name, the key in a recipe, and the default."""
    if dataclasses.is_dataclass(model):
        yield from ((field.name, field.name, field.default) for field in dataclasses.fields(model))
        return
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        yield name, field.alias or name, REQUIRED if default is PydanticUndefined else default


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def _plain(annotation: Any) -> Any:
    """Without what it is annotated with."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def type_text(annotation: Any) -> str:
    """The type as the pages name it."""
    if isinstance(annotation, str):
        return annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        marker = next((extra for extra in arguments[1:] if isinstance(extra, Reference)), None)
        return marker.kinds[0] if marker else type_text(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in arguments)
    if origin in (list, tuple):  # tuples of any length
        return f"list of {_plural(type_text(arguments[0]))}"
    if origin is dict:
        return "table" if arguments[1] is Any else f"table of {_plural(type_text(arguments[1]))}"
    if arguments and NoneType not in arguments:  # X | Y
        return ", or ".join(type_text(kind) for kind in arguments)
    if NoneType in arguments:  # X | None
        return type_text(next(kind for kind in arguments if kind is not NoneType))
    return _TYPES[annotation]


def _plural(word: str) -> str:
    first, *rest = word.split(", or ")
    return ", or ".join([first if first.endswith(("s", "`")) else f"{first}s", *rest])


def default_text(default: Any) -> str:
    """The default as a recipe would write it."""
    if default is REQUIRED:
        return "required"
    return "unset" if default is None else f"`{_toml(default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())} }}" if value else "{}"
    return repr(value) if isinstance(value, float) else json.dumps(value)


# The pages


def test_every_kind_has_a_page_and_every_page_a_kind() -> None:
    assert PAGES.keys() == {*installed().names("stages"), *TABLES}


@pytest.mark.parametrize("page", PAGES)
def test_the_settings_of_a_page_are_those_of_the_code(page: str) -> None:
    model = TABLES[page] if page in TABLES else installed().plugin("stages", page).made.Settings
    lines = [line for line in PAGES[page].read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(name.strip("`"), kind, default) for name, kind, default, _ in cells] == list(rows(model))
    assert all(meaning for *_, meaning in cells)


@pytest.mark.parametrize(("example", "beside"), EXAMPLES)
def test_an_example_loads(example: str, beside: Mapping[str, str], tmp_path: Path) -> None:
    """Stages that it refers to and does not hold are taken from r1-tiny."""
    for name, text in beside.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    loaded = load_example(example, tmp_path)
    written = tomllib.loads(example)
    assert {stage["name"] for stage in written.get("stage", [])} <= {node.settings.name for node in loaded.nodes}


@pytest.mark.parametrize("page", ["rewritings", "conversations"])
def test_the_page_of_curate_has_the_arguments_of_all_that_can_be_used(page: Group) -> None:
    text = PAGES["curate"].read_text(encoding="utf-8")
    for name in installed().names(page):
        arguments = installed().plugin(page, name).arguments.model_fields
        told = [f"`{key}` (`{_toml(field.default)}`)" for key, field in arguments.items()]
        assert [each for each in (f"`{name}`", *told) if each not in text] == []


@pytest.mark.parametrize(("example", "beside"), EXAMPLES)
def test_a_stage_that_bears_a_name_of_a_shipped_recipe_is_the_one_that_ships(
    example: str, beside: Mapping[str, str]
) -> None:
    shipped = [stage for name in ("tiny-base", "r1-tiny") for stage in parsed(name)["stage"]]
    by_name = {stage["name"]: stage for stage in shipped}
    for stage in tomllib.loads(example).get("stage", []):
        assert by_name.get(stage["name"], stage) == stage


def test_the_commands_for_teacher_and_judge_are_ones_that_load() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / "teacher-judge.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if "reasonmill run" in line]
    assert len(commands) == 4
    for program, run, recipe, *options in commands:
        assert (program, run) == ("reasonmill", "run")
        assert set(options[0::2]) <= {"--set"}
        load_recipe(recipe, options[1::2])


def parsed(name: str) -> dict[str, Any]:
    return tomllib.loads(shipped_recipes()[name].read_text(encoding="utf-8"))


@cache
def inputs_of_r1_tiny() -> dict[str, tuple[str, ...]]:
    return {node.settings.name: tuple(node.stage_inputs) for node in load_recipe("r1-tiny").nodes}


def load_example(example: str, folder: Path) -> Recipe:
    """The example as a recipe: with a name, and behind the stages of r1-tiny that it refers to; one without any stage
    is put before the first."""
    head, *blocks = re.split(
        r"^(?=\[\[stage\]\])", shipped_recipes()["r1-tiny"].read_text(encoding="utf-8"), flags=re.M
    )
    assert head.startswith("#")
    inputs = inputs_of_r1_tiny()
    written = tomllib.loads(example)
    own = {stage["name"] for stage in written.get("stage", [])}
    waiting = [text for text in texts(written) if text in inputs]
    if not own and not waiting:
        waiting = [next(iter(inputs))]
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in needed | own:
            needed.add(name)
            waiting += inputs[name]
    prelude = [block for block in blocks if tomllib.loads(block)["stage"][0]["name"] in needed]
    tables, stages = re.match(r"(.*?)((?:^\[\[stage\]\].*)?)\Z", example, re.DOTALL | re.M).groups()  # type: ignore[union-attr]
    path = folder / "example.toml"
    path.write_text("\n".join(['name = "example"', tables, *prelude, stages]), encoding="utf-8")
    return load_recipe(str(path))


def texts(value: Any) -> Iterator[str]:
    """All texts in parsed TOML, whatever they mean."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)
