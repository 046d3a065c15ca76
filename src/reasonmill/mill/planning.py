"""What a run would do with each stage of a recipe, as `--dry-run` and `plan` show it."""

from dataclasses import dataclass
from typing import Literal

from reasonmill.mill.inputs import keyed, unknown_models
from reasonmill.mill.more_steps import shorter_stage
from reasonmill.recipe.graph import Node, Recipe
from reasonmill.settings import decisive
from reasonmill.store.home import Home
from reasonmill.types import Artifact, content_digest


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do with a stage. `key` is None, and `waits_for` not empty, while an input does not exist.

    `artifact` is what a cached stage made. `note` says what the user should know about a stage that is to run.
    """

    name: str
    kind: str
    key: str | None
    status: Literal["cached", "to run", "unknown"]
    waits_for: tuple[str, ...] = ()
    resumes_at: int | None = None
    artifact: Artifact | None = None
    note: str = ""


def plan_key(recipe: Recipe, node: Node) -> str:
    """Identifies a stage among the plans of a home, before its inputs are there."""
    return content_digest([recipe.name, recipe.seed, node.settings.name, decisive(node.settings)])


def plan(recipe: Recipe, home: Home | None, until: str | None) -> list[PlannedStage]:
    """What `run_recipe` would do, as far as it can be known; reads only. A home of None has nothing."""
    done: dict[str, Artifact] = {}
    planned = []
    for node in recipe.up_to(until):
        name, kind = node.settings.name, node.settings.kind
        missing = tuple(source for source in node.stage_inputs if source not in done) + unknown_models(node, home)
        if missing:
            planned.append(PlannedStage(name, kind, None, "unknown", waits_for=missing))
            continue
        stage = keyed(node, done, home, recipe)
        key = stage.key
        record = home.ledger.stage(key) if home else None
        if home and record and not home.objects.damaged_files(record.artifact.digest, read=False):
            done[name] = record.artifact
            planned.append(PlannedStage(name, kind, key, "cached", artifact=record.artifact))
            continue
        state = home.ledger.latest_state(key) if home else None
        resumes_at, note = state[0] if state else None, ""
        if home and (shorter := shorter_stage(stage, home)):
            resumes_at, note = shorter.steps if shorter.obstacle is None else None, shorter.note(name)
        planned.append(PlannedStage(name, kind, key, "to run", resumes_at=resumes_at, note=note))
    return planned
