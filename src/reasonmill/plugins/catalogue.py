"""Everything that a recipe can name: what this package offers, what installed packages offer, and the recipe's own.

An installed package offers its tasks, rewards, environments, stages, conversations and rewritings as entry points of
the groups `reasonmill.tasks`, `reasonmill.rewards` and so on. A recipe brings its own in tables such as `[tasks.mine]`,
which go before all others of the same name. Nothing is imported before it is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from reasonmill.errors import RecipeError, suggestion
from reasonmill.plugins.plugin import ONE, Group, Plugin
from reasonmill.plugins.sources import PACKAGE
from reasonmill.plugins.target import Importer, read_target
from reasonmill.protocols import Conversations, Environment, Reward, Rewriting
from reasonmill.rewards.combination import NOT_RULES
from reasonmill.rewards.offers import OFFERS as REWARDS
from reasonmill.settings import BY_CONTENT, Inline, Naming
from reasonmill.stages.offers import OFFERS as STAGES
from reasonmill.tasks.named import NamedTask
from reasonmill.world.offers import OFFERS as WORLD

AnyUse = TypeVar("AnyUse", bound="Use")


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


class TaskUse(Use):
    """A `[tasks.NAME]` table."""

    environment: str | None = Field(default=None, description="the environment in which its problems are solved")


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
        self._folder = folder or Path.cwd()
        self._importer = Importer()
        self._plugins: dict[tuple[Group, str], Plugin] = {}

    def names(self, group: Group) -> tuple[str, ...]:
        """What a recipe may name, its own first."""
        return tuple(dict.fromkeys((*self.tables.get(group, {}), *_offered(group))))

    def plugin(self, group: Group, name: str) -> Plugin:
        """The plug-in of this name.

        Raises:
            RecipeError: there is none, or what the recipe says of it names no code.
        """
        if (group, name) not in self._plugins:
            own = self.tables.get(group, {}).get(name)
            self._plugins[group, name] = self._used(group, name, Use(use=name) if own is None else own)
        return self._plugins[group, name]

    def inline(self, group: Group, use: Use) -> Plugin:
        """The plug-in that settings name by a table of their own, such as `general = { use = ..., ... }`."""
        title = json.dumps(use.model_dump(mode="json"), sort_keys=True)
        if (group, title) not in self._plugins:
            self._plugins[group, title] = self._used(group, use.use, use)
        return self._plugins[group, title]

    def task(self, name: str) -> NamedTask:
        """The task of this name, in its environment."""
        plugin = self.plugin("tasks", name)
        return NamedTask(name, plugin.made, plugin.environment.made if plugin.environment else None)

    def environment(self, name: str) -> Environment:
        """The environment of this name."""
        environment: Environment = self.plugin("environments", name).made
        return environment

    def reward(self, name: str) -> Reward:
        """The rule reward of this name."""
        reward: Reward = self.plugin("rewards", name).made
        return reward

    def stage(self, kind: str) -> ModuleType:
        """The module of a kind of stage."""
        module: ModuleType = self.plugin("stages", kind).made
        return module

    def conversations(self, use: Use) -> Conversations:
        """A source of conversations."""
        source: Conversations = self.inline("conversations", use).made
        return source

    def rewriting(self, use: Use) -> Rewriting:
        """A rewriting of responses."""
        rewriting: Rewriting = self.inline("rewritings", use).made
        return rewriting

    def _used(self, group: Group, name: str, use: Use) -> Plugin:
        offered = _offered(group)
        is_code = ":" in use.use or use.use.endswith(".py") or (group == "stages" and "." in use.use)
        if use.use not in offered and not is_code:
            known = self.names(group)
            raise RecipeError(
                f"unknown {ONE[group]} {use.use!r}", fix=suggestion(use.use, known) or f"use one of {', '.join(known)}"
            )
        target = read_target(offered.get(use.use, use.use), self._folder)
        environment = None
        if isinstance(use, TaskUse) and use.environment is not None:
            environment = self.plugin("environments", use.environment)
        return Plugin(group, name, target, self._importer, self._folder, use.arguments, environment)


@cache
def installed() -> Catalogue:
    """What there is without any recipe."""
    return Catalogue()


@cache
def _offered(group: Group) -> Mapping[str, str]:
    """Targets by name: this package's, then those of entry points.

    Raises:
        RecipeError: two packages offer the same name.
    """
    found = {**STAGES.get(group, {}), **REWARDS.get(group, {}), **WORLD.get(group, {})}
    for entry in entry_points(group=f"{PACKAGE}.{group}"):
        if entry.name in found:
            raise RecipeError(
                f"two installed packages offer the {ONE[group]} {entry.name!r}: {found[entry.name]} and {entry.value}",
                fix="uninstall one of them, or name its code by `use`",
            )
        found[entry.name] = entry.value
    return found


def known(info: ValidationInfo) -> Catalogue:
    """The catalogue that settings are checked against: the recipe's, or what there is without any recipe."""
    catalogue: Catalogue = (info.context or {}).get("catalogue") or installed()
    return catalogue


def require_split(tasks: Iterable[str], split: str, catalogue: Catalogue) -> None:
    """Refuses tasks without a problem in a split.

    Raises:
        ValueError: one has none.
    """
    for name in tasks:
        try:
            catalogue.task(name).problem(split, 0, 0)
        except RecipeError as error:
            raise ValueError(f"{error.what}: {error.fix}") from error


def _check_task(name: str, info: ValidationInfo) -> str:
    _check(lambda: known(info).plugin("tasks", name))
    return name


def _check_reward(name: str, info: ValidationInfo) -> str:
    if name not in NOT_RULES:
        _check(lambda: known(info).plugin("rewards", name), also=NOT_RULES)
    return name


def _check(find: Callable[[], Plugin], also: Collection[str] = ()) -> None:
    """Makes a plug-in; what it says of itself becomes a mistake of the settings that name it."""
    try:
        find().made  # noqa: B018  # made once, and then kept
    except RecipeError as error:
        fix = f"{error.fix}, {', '.join(sorted(also))}" if also and error.fix.startswith("use one of") else error.fix
        raise ValueError("; ".join(part for part in (error.what, error.where, fix) if part)) from error


def _check_inline(group: Group) -> Callable[[AnyUse, ValidationInfo], AnyUse]:
    def check(use: AnyUse, info: ValidationInfo) -> AnyUse:
        _check(lambda: known(info).inline(group, use))
        return use

    return check


class ConversationsUse(Use):
    """A source of conversations, and how many of them are taken."""

    conversations: int = Field(ge=1)


# For the settings of stages. Rewards by reward models and the accuracy are no plug-ins.
TaskName = Annotated[str, Naming("tasks"), AfterValidator(_check_task)]
RewardName = Annotated[str, Naming("rewards"), AfterValidator(_check_reward)]
TaskShares = dict[TaskName, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
ProblemCounts = dict[TaskName, Annotated[int, Field(ge=1)]]
RewardShares = dict[RewardName, Annotated[float, Field(allow_inf_nan=False)]]
ConversationsTable = Annotated[
    ConversationsUse, Inline("conversations"), AfterValidator(_check_inline("conversations"))
]
RewritingTable = Annotated[Use, Inline("rewritings"), AfterValidator(_check_inline("rewritings"))]
