"""The cycle of generations: a recipe is repeated with the promoted model in the place of its teacher.

`[cycle]` names a teacher, the stage whose model the recipe makes its data with, and a gate. The first generation is the
recipe as it is written. In every further one, each stage that depends on the teacher, directly or not, is repeated
under its name with "-g2", "-g3" and so on, and the gate of the generation before stands where the teacher stood: a
reference to a gate means the model that it promoted, so a refused generation leaves the last promoted model in place.

The gate compares with the model that its generation began with: the gate's `parent` and the model that `parent_eval`
evaluates are the gate of the generation before, too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.errors import RecipeError, suggestion
from reasonmill.recipe.graph import Node
from reasonmill.recipe.origin import Origins, key_path
from reasonmill.recipe.reference import StageSource, references

_GATE_KEYS = ("candidate", "candidate_eval", "parent", "parent_eval")


class Cycle(BaseModel):
    """The `[cycle]` table of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generations: int = Field(ge=1)
    teacher: str
    gate: str


def name_in(generation: int, stage: str) -> str:
    """The name of a repeated stage in a generation; the first is 1, and bears the names of the recipe."""
    return stage if generation == 1 else f"{stage}-g{generation}"


def expand(table: dict[str, Any], origins: Origins, nodes: Sequence[Node]) -> None:
    """Adds the stages of all further generations to a recipe's table, and their places to `origins`.

    Args:
        table: of a recipe whose first generation was found right, with a `cycle`.
        nodes: its stages, in the order of the table.

    Raises:
        RecipeError: the teacher or the gate can't be what the cycle needs.
    """
    cycle = Cycle(**table["cycle"])
    plan = _Plan(cycle, nodes, origins)
    written = list(table["stage"])
    for generation in range(2, cycle.generations + 1):
        for index, node in enumerate(nodes):
            if node.settings.name in plan.repeated:
                table["stage"].append(plan.repeat(written[index], node, generation))
                origins.copy(("stage", index), ("stage", len(table["stage"]) - 1))
    if table.get("result") in plan.repeated:
        table["result"] = name_in(cycle.generations, table["result"])


class _Plan:
    """What is repeated, and what its references become."""

    def __init__(self, cycle: Cycle, nodes: Sequence[Node], origins: Origins) -> None:
        self._cycle = cycle
        self._origins = origins
        by_name = {node.settings.name: node for node in nodes}
        for key, name in (("teacher", cycle.teacher), ("gate", cycle.gate)):
            if name not in by_name:
                raise self._mistake(key, f"the recipe has no stage {name!r}", suggestion(name, by_name))
        self.repeated = _dependents(cycle.teacher, nodes)
        gate = by_name[cycle.gate]
        self._parent, self._parent_eval = self._compared_with(gate)
        evaluation = by_name[self._parent_eval]
        if self._parent not in (mention.value for mention in references(evaluation.settings)):
            raise self._mistake(
                "gate",
                f"stage {self._parent_eval!r}, the gate's parent_eval, does not refer to its parent {self._parent!r}, "
                "so no generation could have its own parent evaluated",
                f"name an evaluate stage with from = {self._parent!r}",
            )
        # Where the first parent is older than the teacher, nothing but the gate depends on the generation.
        self.repeated |= {self._parent_eval}

    def repeat(self, entry: dict[str, Any], node: Node, generation: int) -> dict[str, Any]:
        """A stage's table as it is in a generation."""
        repeated = copy.deepcopy(entry)
        repeated["name"] = name_in(generation, node.settings.name)
        for mention in references(node.settings):
            *path, last = key_path(mention.key)
            inner: Any = repeated
            for key in path:
                inner = inner[key]
            inner[last] = self._reference(node.settings.name, mention.key, mention.value, generation)
        return repeated

    def _reference(self, stage: str, key: str, text: str, generation: int) -> str:
        is_parent = text == self._parent and (
            stage == self._parent_eval or (stage, key) == (self._cycle.gate, "parent")
        )
        if is_parent or text == self._cycle.teacher:
            return name_in(generation - 1, self._cycle.gate)
        name, at, step = text.partition("@")
        if at and name == self._cycle.teacher:
            raise self._mistake(
                "teacher",
                f"stage {stage!r} reads {text!r}, and in later generations the teacher is a gate's model",
                f"let it read {name!r}",
            )
        return f"{name_in(generation, name)}{at}{step}" if name in self.repeated else text

    def _compared_with(self, gate: Node) -> tuple[str, str]:
        """The gate's references to its parent and to the parent's evaluation."""
        name = gate.settings.name
        texts = {mention.key: mention.value for mention in references(gate.settings)}
        if not texts.keys() >= set(_GATE_KEYS):
            raise self._mistake("gate", f"stage {name!r} is of kind {gate.settings.kind!r}, which promotes nothing")
        if name not in self.repeated:
            raise self._mistake(
                "teacher",
                f"the gate {name!r} does not depend on {self._cycle.teacher!r}: all generations would be alike",
                "name the stage whose model helps to make the gate's candidate",
            )
        parent = gate.sources["parent"]
        if isinstance(parent, StageSource) and parent.stage in self.repeated:
            raise self._mistake(
                "gate",
                f"the gate's parent {parent.stage!r} is made within a generation, which can't begin with it",
                f"compare with the teacher: parent = {self._cycle.teacher!r}",
            )
        return texts["parent"], texts["parent_eval"]

    def _mistake(self, key: str, what: str, fix: str = "") -> RecipeError:
        return RecipeError(f"cycle.{key}: {what}", where=self._origins.place(("cycle", key)), fix=fix)


def _dependents(teacher: str, nodes: Sequence[Node]) -> set[str]:
    """The stages that read what the teacher made, directly or by way of others."""
    found: set[str] = set()
    for node in nodes:
        if {teacher, *found} & set(node.stage_inputs):
            found.add(node.settings.name)
    return found
