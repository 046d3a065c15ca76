"""Everything that a recipe can name: what this package offers, what installed packages offer, and the recipe's own.

An installed package offers its data, tasks, rewards, environments, stages, conversations and rewritings as entry points
of the groups `reasonmill.tasks`, `reasonmill.rewards` and so on. A recipe brings its own in tables such as
`[tasks.mine]`, which go before all others of the same name. Nothing is imported before it is named.
"""

from __future__ import annotations

import json
import pickle
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from reasonmill.errors import RecipeError, suggestion
from reasonmill.grading.verdict import Isolation
from reasonmill.jail.found import found_level
from reasonmill.jail.launcher import jailed
from reasonmill.plugins.plugin import ONE, Group, Plugin
from reasonmill.plugins.sources import PACKAGE, PACKAGE_ROOT
from reasonmill.plugins.target import Importer, read_target
from reasonmill.protocols import Reward
from reasonmill.rewards.combination import NOT_RULES
from reasonmill.rewards.isolated import IsolatedReward, IsolatedTask
from reasonmill.rewards.read_ahead import ReadAhead
from reasonmill.settings import BY_CONTENT, Naming, Real
from reasonmill.tasks.named import NamedTask
from reasonmill.workers.answers import Answer, Call
from reasonmill.workers.limits import Limits
from reasonmill.workers.pool import Workers

# What rooms of this package offer, by group and name.
_OFFERS: list[dict[str, dict[str, str]]] = [
    tomllib.loads((PACKAGE_ROOT / room / "offers.toml").read_text(encoding="utf-8"))
    for room in ("stages", "rewards", "tasks", "published", "gym", "data", "worked", "world")
]

# From the least to the most.
_LEVELS: tuple[Isolation, ...] = get_args(Isolation)

AnyName = TypeVar("AnyName", bound="str | Use")


class Use(BaseModel):
    """A table that names code: `use` says which, every other key is an argument of it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: Annotated[str, BY_CONTENT] = Field(
        min_length=1, description="a name that is offered, package.module:Name, or ./file.py:Name"
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys but those that the table itself has."""
        return dict(self.__pydantic_extra__ or {})


class RewardUse(Use):
    """A `[rewards.NAME]` table, or one of a task.

    What stands here beside the arguments decides where verdicts are computed, and is no part of what they are.
    """

    isolation: Isolation | None = Field(default=None, description="none, worker or jail; users' code: worker")
    limits: Limits | None = Field(default=None, description="what one response may take in a worker")


class TaskUse(RewardUse):
    """A `[tasks.NAME]` table."""

    environment: str | None = Field(default=None, description="the environment in which its problems are solved")


class DataUse(Use):
    """A `[data.NAME]` table."""

    use: Annotated[str, BY_CONTENT] = Field(default="rows", min_length=1, description="what reads it")


class Catalogue:
    """What can be named, by group.

    Args:
        tables: the recipe's own, by group and name.
        folder: the recipe's folder.
    """

    def __init__(
        self, tables: Mapping[Group, Mapping[str, Use]] = MappingProxyType({}), folder: Path | None = None
    ) -> None:
        self.tables = tables
        self.workers = Workers({"worker": list, "jail": self._in_jail})
        self._read_ahead = ReadAhead(self.workers)
        self._folder = folder or Path.cwd()
        self._importer = Importer()
        self._plugins: dict[tuple[Group, str], Plugin] = {}
        self._tasks: dict[str, NamedTask] = {}
        self._counted: set[tuple[str, str, int]] = set()  # task, split, and as many problems as it is known to have
        self._pickled: dict[str, bytes] = {}

    def names(self, group: Group) -> tuple[str, ...]:
        """What a recipe may name, its own first."""
        return tuple(dict.fromkeys((*self.tables.get(group, {}), *_offered(group))))

    def plugin(self, group: Group, named: str | Use) -> Plugin:
        """The plug-in of this name, or of a table such as `general = { use = ..., ... }`.

        Raises:
            RecipeError: there is none, or what the recipe says of it names no code.
        """
        title = named if isinstance(named, str) else json.dumps(named.model_dump(mode="json"), sort_keys=True)
        if (group, title) not in self._plugins:
            if isinstance(named, str):
                plugin = self._used(group, named, self.tables.get(group, {}).get(named, Use(use=named)))
            else:
                plugin = self._used(group, named.use, named)
            self._plugins[group, title] = plugin
        return self._plugins[group, title]

    def task(self, name: str) -> NamedTask:
        """The task of this name, in its environment. Where it is isolated, its grades come from workers.

        Raises:
            RecipeError: it is isolated less than it has to be.
        """
        if name not in self._tasks:
            plugin = self.plugin("tasks", name)
            ask = self._ask("tasks", name)
            made = IsolatedTask(plugin.made, ask) if ask else plugin.made
            environment = plugin.parts.get("environment")
            own = hasattr(plugin.made, "language_share")
            self._tasks[name] = NamedTask(
                name, made, environment.made if environment else None, None if own else self._read_ahead
            )
        return self._tasks[name]

    def require_problems(self, name: str, split: str, count: int) -> None:
        """Looks whether a task has so many problems in a split; once, as many stages of a recipe ask the same.

        Raises:
            RecipeError: there is no such task, or it has no such split.
            LookupError: it is a user's, and has fewer.
        """
        if (name, split, count) not in self._counted:
            self.task(name).problem(split, 0, count - 1)
            self._counted.add((name, split, count))

    def reward(self, name: str) -> Reward:
        """The rule reward of this name. Where it is isolated, workers measure it.

        Raises:
            RecipeError: it is isolated less than it has to be.
        """
        made: Reward = self.plugin("rewards", name).made
        ask = self._ask("rewards", name)
        return IsolatedReward(made, ask, self._pickled_task) if ask else made

    def _ask(self, group: Group, name: str) -> Callable[[Call], Answer] | None:
        """What asks workers in place of a plug-in's object; None where that is not isolated."""
        plugin, use = self.plugin(group, name), self.tables.get(group, {}).get(name)
        told = use.isolation if isinstance(use, RewardUse) else None
        own: Isolation | None = getattr(plugin.made, "isolation", None)
        if own is not None and told is not None and _LEVELS.index(told) < _LEVELS.index(own):
            raise RecipeError(
                f"{plugin.title} needs the isolation {own!r}, and the recipe gives it {told!r}",
                fix="leave isolation out",
                where=f"[{group}.{name}]",
            )
        isolation = told or own or ("none" if plugin.target.root[0] == PACKAGE else "worker")
        told_limits = use.limits if isinstance(use, RewardUse) else None
        if told_limits is not None and isolation == "none":
            raise RecipeError(
                f"{plugin.title} is graded in this process, where limits have no effect",
                fix='remove limits, or set isolation = "worker"',
                where=f"[{group}.{name}]",
            )
        limits = told_limits or getattr(plugin.made, "limits", None) or Limits()
        return None if isolation == "none" else partial(self.workers.ask, plugin, isolation=isolation, limits=limits)

    def _in_jail(self, command: Sequence[str]) -> Sequence[str]:
        """The command that runs a manager of workers in the jail. Of the recipe's folder only what graders declare is
        there to be read, so that no program finds the answers that lie beside it.

        Raises:
            NoJail: this machine has none.
        """
        graders = (plugin for (group, _), plugin in self._plugins.items() if group in ("tasks", "rewards"))
        return jailed(found_level(), set[Path]().union(*(plugin.readable for plugin in graders)))(command)

    def _pickled_task(self, name: str) -> bytes:
        if name not in self._pickled:
            self._pickled[name] = pickle.dumps(self.plugin("tasks", name))
        return self._pickled[name]

    def part(self, group: Group, name: str) -> Plugin:
        """The plug-in of this name that another one names.

        Raises:
            RecipeError: there is none. Data have a table of the recipe: what is offered reads them, and holds none.
        """
        tables = self.tables.get(group, {})
        if group == "data" and name not in tables:
            known = f"the recipe's tables of data: {', '.join(tables)}" if tables else f"add a table [data.{name}]"
            raise RecipeError(f"there is no table [data.{name}]", fix=suggestion(name, tables) or known)
        return self.plugin(group, name)

    def _used(self, group: Group, name: str, use: Use) -> Plugin:
        offered = _offered(group)
        is_code = ":" in use.use or use.use.endswith(".py") or (group == "stages" and "." in use.use)
        if use.use not in offered and not is_code:
            known = self.names(group)
            raise RecipeError(
                f"unknown {ONE[group]} {use.use!r}", fix=suggestion(use.use, known) or f"use one of {', '.join(known)}"
            )
        target = read_target(offered.get(use.use, use.use), self._folder)
        environment = use.environment if isinstance(use, TaskUse) else None
        return Plugin(group, name, target, self._importer, self._folder, use.arguments, environment, self.part)


@cache
def installed() -> Catalogue:
    """What can be named without any recipe."""
    return Catalogue()


@cache
def _offered(group: Group) -> Mapping[str, str]:
    """Targets by name: this package's, then those of entry points.

    Raises:
        RecipeError: two packages offer the same name.
    """
    found = {name: target for offers in _OFFERS for name, target in offers.get(group, {}).items()}
    for entry in _entry_points().select(group=f"{PACKAGE}.{group}"):
        if entry.name in found:
            raise RecipeError(
                f"two installed packages offer the {ONE[group]} {entry.name!r}: {found[entry.name]} and {entry.value}",
                fix="uninstall one of them, or name its code by `use`",
            )
        found[entry.name] = entry.value
    return found


@cache
def _entry_points() -> Any:  # EntryPoints, or before Python 3.12 what can be selected from like them
    """Those of all installed packages, each of which is looked at for them."""
    return entry_points()


def known(info: ValidationInfo) -> Catalogue:
    """The catalogue that settings are checked against: the recipe's, or what there is without any recipe."""
    catalogue: Catalogue = (info.context or {}).get("catalogue") or installed()
    return catalogue


def rows_of(data: Any, name: str, what: str) -> Sequence[Any]:
    """What the rows of a table of data were made into.

    Args:
        what: the method that gives it: "conversations" or "labelled".

    Raises:
        RecipeError: they are something else.
    """
    if not hasattr(data, what):
        raise RecipeError(f"the table of data {name!r} gives no {what}", fix=f"let it have a method {what}()")
    rows: Sequence[Any] = getattr(data, what)()
    return rows


def require_split(tasks: Mapping[str, int], split: str, catalogue: Catalogue) -> None:
    """Refuses tasks without so many problems in a split.

    Raises:
        ValueError: one has fewer.
    """
    for name, count in tasks.items():
        try:
            catalogue.require_problems(name, split, count)
        except RecipeError as error:
            raise ValueError(f"{error.what}: {error.fix}") from error
        except LookupError as error:  # of a list in a user's task
            raise ValueError(f"the task {name!r} has no {count} problems of split {split!r}: {error}") from error


def _made(group: Group) -> AfterValidator:
    """Makes what settings name; an error in that becomes a mistake of the settings."""

    def check(named: AnyName, info: ValidationInfo) -> AnyName:
        # Rewards by reward models and the accuracy are no plug-ins.
        also = sorted(NOT_RULES) if group == "rewards" else ()
        if named in also:
            return named
        try:
            known(info).plugin(group, named).made  # noqa: B018  # made once, and then kept
        except RecipeError as error:
            fix = ", ".join((error.fix, *also)) if error.fix.startswith("use one of") else error.fix
            raise ValueError("; ".join(part for part in (error.what, error.where, fix) if part)) from error
        return named

    return AfterValidator(check)


class ConversationsUse(Use):
    """A source of conversations, and how many of them are taken."""

    conversations: int = Field(ge=1)


# For the settings of stages.
TaskName = Annotated[str, Naming("tasks"), _made("tasks")]
RewardName = Annotated[str, Naming("rewards"), _made("rewards")]
TaskShares = dict[TaskName, Annotated[Real, Field(gt=0)]]
ProblemCounts = dict[TaskName, Annotated[int, Field(ge=1)]]
RewardShares = dict[RewardName, Real]
ConversationsTable = Annotated[ConversationsUse, Naming("conversations"), _made("conversations")]
RewritingTable = Annotated[Use, Naming("rewritings"), _made("rewritings")]
