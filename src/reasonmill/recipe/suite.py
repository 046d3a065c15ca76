"""Suites: recipes of evaluations that do not say which model is asked. The command `eval` does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from reasonmill.errors import RecipeError, suggestion
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.load import checked, find_recipe, parse
from reasonmill.recipe.origin import Origins
from reasonmill.recipe.overrides import TABLES

# How the R1 paper draws (section on evaluation), where a suite says nothing else.
PROTOCOL: Mapping[str, Any] = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 32_768}
# What of a recipe stays where only its tasks are asked.
_OF_RECIPES = ("models", "trust_remote_code", "watchdog", *TABLES)
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Asked:
    """Which model a suite is put to.

    Attributes:
        title: as the user named it.
        directory: where it is; None for a model of a server, or of the suite's own `[models]`.
        server: address and name, as the setting `server` has them.
        prompting: `template`, `system` and `stop`, as `[models.NAME]` has them.
    """

    title: str
    directory: Path | None = None
    server: Mapping[str, Any] | None = None
    prompting: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A suite as it is written: its tables, the places of its keys, and what its paths are relative to."""

    table: dict[str, Any]
    origins: Origins
    folder: Path

    @property
    def name(self) -> str:
        """That of the suite; empty where it has none, which is a mistake."""
        return str(self.table.get("name", ""))

    @property
    def models(self) -> Mapping[str, Any]:
        """Its own `[models]`."""
        found = self.table.get("models")
        return found if isinstance(found, dict) else {}


def shipped_suites() -> dict[str, Path]:
    """The suites that ship with the package, by name."""
    folder = Path(str(files("reasonmill"))) / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_suite(name_or_path: str) -> Suite:
    """A shipped suite, whose files are looked for in the working directory, or one of the user's.

    Raises:
        RecipeError: there is none, it is no TOML, or it has stages that are no evaluations or name a model.
    """
    shipped = shipped_suites()
    path = shipped.get(name_or_path, Path(name_or_path).expanduser())
    if not path.is_file():
        known = f"shipped suites: {', '.join(shipped)}"
        raise RecipeError(
            f"missing suite: {name_or_path!r} is neither a shipped suite nor a file",
            fix=" ".join(part for part in (suggestion(name_or_path, shipped), known) if part),
        )
    table, origins = parse(path)
    entries = table.get("stage")
    for place, stage in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(stage, dict) or stage.get("kind", "evaluate") != "evaluate":
            raise RecipeError(
                "a suite holds evaluations alone", where=origins.place(("stage", place)), fix='kind = "evaluate"'
            )
        if "from" in stage or "server" in stage:
            raise RecipeError(
                "a suite does not say which model it is put to",
                where=origins.place(("stage", place)),
                fix="leave `from` and `server` out: `reasonmill eval MODEL --suite ...` names the model",
            )
        stage.setdefault("kind", "evaluate")
    return Suite(table, origins, Path.cwd() if name_or_path in shipped else path.absolute().parent)


def suite_of_tasks(tasks: Sequence[str], problems: int, samples: int, recipe: str | None) -> Suite:
    """A suite of one evaluation.

    Args:
        tasks: their names.
        problems, samples: of each task, and of each problem.
        recipe: one whose own tasks may be named, too.
    """
    table: dict[str, Any] = {}
    origins, folder = Origins("", "--task"), Path.cwd()
    if recipe is not None:
        path = find_recipe(recipe)
        whole, origins = parse(path)
        table = {key: whole[key] for key in _OF_RECIPES if key in whole}
        folder = path.absolute().parent
    stage = {"name": "eval", "kind": "evaluate", "tasks": dict.fromkeys(tasks, problems), "samples": samples}
    return Suite({"name": slug("-".join(tasks)), **table, "stage": [stage]}, origins, folder)


def put_to(suite: Suite, asked: Asked, name: str, changes: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """The recipe that puts a suite to a model. Of drawing, what nothing says is the paper's.

    Args:
        name: of the run that it is.
        changes: settings of all its stages, and of their `sampling`, that an option names; `problems` is of each task.
        overrides: as of `load_recipe`; they go before the options.

    Raises:
        RecipeError: a setting is wrong.
    """
    table, origins = suite.table, suite.origins
    table["name"] = name
    if asked.server is None:
        models = table.setdefault("models", {})
        model = models.setdefault(asked.title, {} if asked.directory is None else {"path": str(asked.directory)})
        model.update(asked.prompting)
    entries = table.get("stage")
    for place, stage in enumerate(entries if isinstance(entries, list) else []):
        _change(stage, asked, changes)
        for key, value in changes.items():
            inner = ("sampling", key) if key in PROTOCOL else ("tasks",) if key == "problems" else (key,)
            origins.override(("stage", place, *inner), value, f"--{key.replace('_', '-')} {value}")
    return checked(table, origins, suite.folder, overrides)


def _change(stage: dict[str, Any], asked: Asked, changes: Mapping[str, Any]) -> None:
    """Makes a stage of a suite one of a recipe."""
    sampling = {**PROTOCOL, **stage.get("sampling", {})}
    sampling.update({key: value for key, value in changes.items() if key in PROTOCOL})
    stage["sampling"] = sampling
    stage.update({key: value for key, value in changes.items() if key not in PROTOCOL and key != "problems"})
    if "problems" in changes and isinstance(stage.get("tasks"), dict):
        stage["tasks"] = dict.fromkeys(stage["tasks"], changes["problems"])
    if asked.server is not None:
        stage["server"] = dict(asked.server)
        return
    stage["from"] = asked.title
    stage.setdefault("resume", "samples")
    # A limit that the user names is kept to; the paper's is one for models that reach it.
    stage.setdefault("up_to_context", "max_tokens" not in changes)


def slug(text: str) -> str:
    """A text as a name of a run."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:_LONGEST_NAME] or "model"
