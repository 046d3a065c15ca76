"""One plug-in: code with a name, what it is constructed with, and what identifies its results."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ValidationError

from reasonmill.content import path_digest
from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.plugins.arguments import arguments_of, keywords
from reasonmill.plugins.reads import files_read, undeclared
from reasonmill.plugins.sources import PACKAGE, PACKAGE_ROOT, code_digest, engine_sources, room_versions, source_files
from reasonmill.plugins.target import Importer, Target
from reasonmill.rewards.functions.function import (
    FunctionReward,
    function_settings,
    is_reward_function,
    no_reward_function,
)
from reasonmill.settings import Naming, decisive, marks

Group = Literal["data", "tasks", "rewards", "environments", "stages", "conversations", "rewritings"]
GROUPS: tuple[Group, ...] = get_args(Group)

# What one of a group is called in messages, and what it must have.
_KINDS: Mapping[Group, tuple[str, tuple[str, ...]]] = {
    "data": ("table of data", ("problems",)),
    "tasks": ("task", ("domain", "problem", "problems", "grade")),
    "rewards": ("reward", ("measure",)),
    "environments": ("environment", ("max_turns", "start", "reply")),
    "stages": ("kind of stage", ("MAKES", "Settings", "run")),
    "conversations": ("source of conversations", ("conversation",)),
    "rewritings": ("rewriting", ("rewrite",)),
}
ONE: Mapping[Group, str] = {group: one for group, (one, _) in _KINDS.items()}
# What a constructor gets of a plug-in that its recipe names for a parameter; of others it gets what is made of them.
_GIVEN: Mapping[Group, Callable[[Any], Any]] = {"data": lambda data: data.problems()}


def _nothing_named(group: Group, name: str) -> Plugin:
    raise RecipeError(f"there is no catalogue that the {ONE[group]} {name!r} could be in")


@dataclass(frozen=True)
class Plugin:
    """A task, a reward, an environment, a kind of stage or a source of data.

    Attributes:
        given: the arguments as the recipe gives them.
        folder: the recipe's folder, which paths among the arguments are relative to.
        environment: the name of the environment in which a task's problems are solved.
        find: finds the plug-ins that it names, by group and name.
    """

    group: Group
    name: str
    target: Target
    importer: Importer
    folder: Path
    given: Mapping[str, Any] = field(default_factory=dict)
    environment: str | None = None
    find: Callable[[Group, str], Plugin] = _nothing_named

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is what the recipe says of it: in another process, which grades, it is imported and made again.

        What grades needs no environment, and no problems but the one that it is asked about: the data of a task stay
        behind where it can be made without any.
        """
        spared = self._spared
        given = {each.name: getattr(self, each.name) for each in fields(self)} | {
            "given": {key: value for key, value in self.given.items() if key not in spared},
            "environment": None,
        }
        kept = {self.named[key]: part for key, part in self.parts.items() if key not in spared}
        return _restored, ({key: value for key, value in given.items() if key not in ("importer", "find")}, kept)

    @property
    def _spared(self) -> set[str]:
        """The keys that name what it can grade without."""
        data = {key for key, (group, _) in self.named.items() if group == "data"}
        return {"environment"} | {key for key in data if not self.arguments.model_fields[key].is_required()}

    @property
    def readable(self) -> set[Path]:
        """The files and folders that it needs where it grades: its sources beside the recipe, what it declares that it
        reads, and what the plug-ins need that belong to it."""
        root, place = self.target.root
        name, file = self.target.source
        found = set(source_files({name: file}, {root: place}, ()).values()) if root != PACKAGE else set()
        found.update(self._files.values(), map(Path, getattr(self.made, "files", ())))
        return found.union(*(part.readable for key, part in self.parts.items() if key not in self._spared))

    @property
    def title(self) -> str:
        return f"{ONE[self.group]} {self.name!r}"

    @cached_property
    def arguments(self) -> type[BaseModel]:
        """The arguments that it takes.

        Raises:
            RecipeError: it can't be imported, or nothing can be constructed of it.
        """
        if self.group == "stages":  # a module, of which nothing is made
            return arguments_of(lambda: None, self.title)
        made_by = self.importer.load(self.target)
        if self._is_function:
            return function_settings(made_by, self.title)
        if not callable(made_by):
            raise RecipeError(
                f"{self.title}: {self.target.attribute or self.target.module!r} is neither a class nor a function",
                fix="name a class, or a function that makes the object",
            )
        try:
            return arguments_of(cast(Callable[..., Any], made_by), self.title)
        except RecipeError as error:
            if self.group == "rewards" and inspect.isroutine(made_by):
                raise no_reward_function(made_by, self.title) from error
            raise

    @cached_property
    def named(self) -> Mapping[str, tuple[Group, str]]:
        """The plug-ins that belong to it, as group and name, by the keys that name them: the environment of a task, and
        what parameters with the mark `Naming` are given, for example the data that problems come from.

        Raises:
            RecipeError: its arguments are wrong.
        """
        found: dict[str, tuple[Group, str]] = {}
        if self.environment is not None:
            found["environment"] = ("environments", self.environment)
        for mention in marks(self._arguments, Naming):
            found[mention.key] = (cast(Group, mention.mark.group), mention.value)
        return found

    @cached_property
    def parts(self) -> Mapping[str, Plugin]:
        """The plug-ins that belong to it, by the keys that name them.

        Raises:
            RecipeError: there is no such plug-in.
        """
        return {key: self.find(group, name) for key, (group, name) in self.named.items()}

    @cached_property
    def made(self) -> Any:
        """The object: what the class or function makes of the arguments; for a kind of stage its module.

        Raises:
            RecipeError: it can't be made, or is something else.
        """
        with files_read() as opened:
            made = self._make(lambda part: _GIVEN.get(part.group, lambda made: made)(part.made))
        one, members = _KINDS[self.group]
        missing = [member for member in members if not hasattr(made, member)]
        if missing:
            raise RecipeError(
                f"{self.target.attribute or self.target.module!r} is no {one}: it has no {' and no '.join(missing)}",
                fix="docs/extending.md shows one",
            )
        if self.group == "tasks":
            with files_read() as more, suppress(Exception):  # it may have no such split
                made.problem("train", 0, 0)
            opened += more
        self._require_declared(made, opened)
        return made

    def make_again(self) -> Any:
        """A new object, of which nothing is checked and whose data are read when they are looked at: for a process
        beside that which has `made` one. Graders seldom need the rows that their problems are from.

        Raises:
            RecipeError: it can't be made.
        """
        return self._make(lambda part: _WhenNeeded(part) if part.group == "data" else part.made)

    def _make(self, given_of: Callable[[Plugin], Any]) -> Any:
        """A new object.

        Args:
            given_of: what the constructor gets of a plug-in that is named for a parameter.

        Raises:
            RecipeError: it can't be made.
        """
        made_by = self.importer.load(self.target)
        if self.group == "stages":
            return made_by
        try:
            given = {key: given_of(part) for key, part in self.parts.items() if key != "environment"}
            if self._is_function:
                return FunctionReward(made_by, self.name, self._settings)
            made = made_by(**{**self._keywords, **given})
            # Functions may make reward functions, with what the recipe says in them.
            is_function = self.group == "rewards" and is_reward_function(made)
            return FunctionReward(made, self.name, {}) if is_function else made
        except ReasonmillError:
            raise
        except Exception as error:  # whatever a user's constructor raises
            raise RecipeError(f"{self.title} can't be made: {type(error).__name__}: {error}") from error

    def _require_declared(self, made: Any, opened: list[str]) -> None:
        """Refuses a plug-in that reads files beside it without saying so: their content would not count."""
        name, root = self.target.root
        if name == PACKAGE:
            return
        declared = [*self._files.values(), *map(Path, getattr(made, "files", ()))]
        absent = [path for path in declared if not path.exists()]
        if absent:
            raise RecipeError(f"{self.title} reads a file that is not there: {absent[0]}")
        hidden = undeclared(opened, root.resolve(), self.folder.resolve(), declared)
        if hidden:
            raise RecipeError(
                f"{self.title} reads {hidden[0].name}, and does not declare it",
                fix="list it in its `files`, or take its path as an argument of type Path: then its content counts",
                where=str(hidden[0]),
            )

    @property
    def _files(self) -> dict[str, Path]:
        """The arguments that are paths: what they name counts by its content."""
        return {name: value for name, value in self._keywords.items() if isinstance(value, Path)}

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about its results, for keys: its code, its arguments and the content of its files.

        Paths don't count, neither of the code nor of files: the same bytes elsewhere are the same.
        """
        content = {
            "code": self.code,
            "attribute": self.target.attribute,
            "arguments": {
                name: value
                for name, value in decisive(self._arguments).items()
                if name not in self._files and name not in self.parts
            },
            "files": {name: path_digest(path) for name, path in self._files.items()},
            "declared": [path_digest(Path(path)) for path in getattr(self.made, "files", ())],
        }
        return content | {name: part.identity for name, part in self.parts.items()}

    @cached_property
    def _arguments(self) -> BaseModel:
        try:
            # As JSON, because in strict mode only JSON's lists may become tuples.
            return self.arguments.model_validate_json(json.dumps(dict(self.given), default=str), strict=True)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
            taken = ", ".join(self.arguments.model_fields) or "none"
            raise RecipeError(
                f"{self.title} refuses its arguments: {'; '.join(wrong)}", fix=f"it takes {taken}"
            ) from error

    @property
    def _is_function(self) -> bool:
        """Whether it is a function that gives rewards, and none that makes a reward."""
        return self.group == "rewards" and is_reward_function(self.importer.load(self.target))

    @property
    def _settings(self) -> dict[str, Any]:
        """What the recipe gives a reward function, and nothing else."""
        return {name: self._keywords[name] for name in self._arguments.model_fields_set}

    @cached_property
    def _keywords(self) -> dict[str, Any]:
        return keywords(self._arguments, self.folder)

    @cached_property
    def code(self) -> str:
        """Digest of the module's source and of what it imports of its own package and of this one; for a kind of stage
        also of the engines that it needs, which it does not import."""
        name, file = self.target.source
        roots = dict([(PACKAGE, PACKAGE_ROOT), self.target.root])
        needs = getattr(self.made, "NEEDS", ()) if self.group == "stages" else ()
        needed = [found for need in needs for found in engine_sources(need)]
        if isinstance(self.made, FunctionReward):  # whose module imports nothing of what calls it
            needed.append((FunctionReward.__module__, Path(inspect.getfile(FunctionReward))))
        modules = {name: file, **dict(needed)}
        seen = self.importer.seen
        return code_digest(source_files(modules, roots, room_versions(), seen), seen)


class _WhenNeeded(Mapping[str, Any]):
    """The splits of data, which are read as soon as somebody looks at one of them."""

    def __init__(self, data: Plugin) -> None:
        self._data = data

    @cached_property
    def _splits(self) -> Mapping[str, Any]:
        splits: Mapping[str, Any] = _GIVEN["data"](self._data.made)
        return splits

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, split: str) -> Any:
        return self._splits[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)


def _restored(given: Mapping[str, Any], parts: Mapping[tuple[Group, str], Plugin]) -> Plugin:
    """A plug-in that was pickled, with those that it names."""
    return Plugin(**given, importer=Importer(), find=lambda group, name: parts[group, name])
