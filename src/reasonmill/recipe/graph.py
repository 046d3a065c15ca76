"""The graph of a recipe: its stages in order, what each of them reads, and the keys that identify their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from reasonmill.errors import RecipeError, suggestion
from reasonmill.plugins.catalogue import Catalogue
from reasonmill.plugins.plugin import Plugin
from reasonmill.plugins.sources import room_versions
from reasonmill.recipe.deadlines import Deadlines
from reasonmill.recipe.models import RecipeModel
from reasonmill.recipe.reference import Source, StageSource
from reasonmill.settings import decisive
from reasonmill.stage import Input, StageSettings


@dataclass(frozen=True)
class Node:
    """A stage of a recipe, where all that it refers to comes from, and the plug-ins that decide about its results.

    `plugins` are by the keys of the settings that name them.
    """

    settings: StageSettings
    sources: Mapping[str, Source]
    kind: Plugin
    plugins: Mapping[str, Plugin] = field(default_factory=dict)

    @property
    def module(self) -> ModuleType:
        """The module of the stage's kind."""
        module: ModuleType = self.kind.made
        return module

    @property
    def stage_inputs(self) -> list[str]:
        """The names of the earlier stages that this one reads."""
        return [source.stage for source in self.sources.values() if isinstance(source, StageSource)]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; a node comes after the nodes that it reads.

    `result` is the stage whose model the run hands over; None for the last one that makes a model. `models` are those
    of the hub that stages may refer to, by name. `watchdog` is no part of any stage's key, and neither is
    `trust_remote_code`: without it, a model that needs code of its own is refused. `price_per_hour` of a device is only
    for plans.
    """

    name: str
    seed: int
    nodes: tuple[Node, ...]
    catalogue: Catalogue
    result: str | None = None
    models: Mapping[str, RecipeModel] = field(default_factory=dict)
    watchdog: Deadlines = field(default_factory=Deadlines)
    trust_remote_code: bool = False
    price_per_hour: float | None = None

    def up_to(self, stage: str | None) -> tuple[Node, ...]:
        """The nodes up to and including a stage; all of them for None.

        Raises:
            RecipeError: the recipe has no such stage.
        """
        names = [node.settings.name for node in self.nodes]
        if stage is None:
            return self.nodes
        if stage not in names:
            raise no_stage(stage, names, where=f"--until {stage}")
        return self.nodes[: names.index(stage) + 1]

    def resolved(self) -> dict[str, Any]:
        """The recipe as JSON, all defaults and overrides filled in."""
        stages = [node.settings.model_dump(mode="json", by_alias=True) for node in self.nodes]
        models = {name: model.model_dump(mode="json") for name, model in self.models.items()}
        own: dict[str, Any] = {
            group: {name: use.model_dump(mode="json") for name, use in tables.items()}
            for group, tables in self.catalogue.tables.items()
            if tables
        }
        return {
            "name": self.name,
            "seed": self.seed,
            "result": self.result,
            "watchdog": self.watchdog.model_dump(mode="json"),
            "models": models,
            **({"trust_remote_code": True} if self.trust_remote_code else {}),
            **own,
            "stage": stages,
        }


def no_stage(name: str, names: Sequence[str], where: str = "") -> RecipeError:
    """What is wrong where a recipe with stages of these names is asked for another one."""
    fix = suggestion(name, names) or f"its stages: {', '.join(names)}"
    return RecipeError(f"the recipe has no stage {name!r}", where=where, fix=fix)


def stage_key(node: Node, inputs: Mapping[str, Input], seed: int) -> str:
    """Identifies what a stage makes: it covers all that decides, its settings, inputs, seed, code and plug-ins.

    Incidental settings do not: with more patience for a server, the same data would come of it. What the settings refer
    to counts by its content, wherever it lies.

    Args:
        inputs: what the stage reads, by the key of the settings that refers to it.
    """
    content = {
        "settings": decisive(node.settings),
        "inputs": {key: read.digest for key, read in inputs.items()},
        "seed": seed,
        "code": node.kind.code,
        "rooms": room_versions(),
        "plugins": {key: plugin.identity for key, plugin in node.plugins.items()},
    }
    # In the order of the recipe, which decides draws: the tasks of a mix, for example, are drawn by their order.
    encoded = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return hashlib.blake2b(encoded, digest_size=32).hexdigest()
