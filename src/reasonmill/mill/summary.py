"""summary.json of a run: what each stage made, and on what it was made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from reasonmill import __version__
from reasonmill.mill.artifacts import made_digest, made_from_adopted
from reasonmill.mill.findings import FINDINGS
from reasonmill.mill.machine import describe
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.reference import references
from reasonmill.store.ledger import ADOPTED, FROM_ADOPTED, StageRecord
from reasonmill.store.looking import is_file
from reasonmill.store.views import SUMMARY

# The metric of stages that sampled, or were judged, by something that may say something else each time: False.
REPEATABLE = "repeatable"


@dataclass(frozen=True)
class StageResult(StageRecord):
    """A finished stage of a run; `cached` where it was taken from the ledger as it was."""

    cached: bool


def result_model(recipe: Recipe, results: Sequence[StageResult]) -> str | None:
    """The digest of the recipe's result or, as long as that is not finished, of the last model; None without one."""
    holders = [result for result in results if result.artifact.kind in ("model", "verdict")]
    models = {result.name: made_digest(result.artifact) for result in holders}
    last = next(reversed(models.values()), None)
    return models.get(recipe.result, last) if recipe.result else last


def summarise(recipe: Recipe, results: tuple[StageResult, ...], device: str) -> dict[str, Any]:
    """The content of summary.json.

    `adopted` of a stage says where its result was adopted from, and `made_from_adopted` which of its ancestors were;
    `findings` say what tells that it learned nothing.
    """
    nodes = {node.settings.name: node for node in recipe.nodes}
    marks = made_from_adopted(recipe.nodes, {result.name: result.artifact for result in results})
    marked = (ADOPTED, FROM_ADOPTED, FINDINGS)
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "reasonmill": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "machine": describe(device),
        "model": result_model(recipe, results),
        "stages": [
            {
                "name": result.name,
                "kind": result.kind,
                "digest": result.artifact.digest,
                "key": result.key,
                "cached": result.cached,
                "seconds": round(result.seconds, 3),
                "tokens": result.tokens,
                "machines": list(result.machines),
                "repeatable": result.artifact.metrics.get(REPEATABLE, True),
                "reads": {mention.key: mention.value for mention in references(nodes[result.name].settings)},
                "adopted": result.artifact.metrics.get(ADOPTED),
                "made_from_adopted": marks[result.name],
                FINDINGS: result.artifact.metrics.get(FINDINGS, []),
                "metrics": {name: value for name, value in result.artifact.metrics.items() if name not in marked},
            }
            for result in results
        ],
    }


def same_outcome(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two summaries differ in nothing but in which stages were taken from the ledger."""
    return _without_cached(one) == _without_cached(other)


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """The run's summary.json; None where there is none yet."""
    path = run_dir / SUMMARY
    if not is_file(path):
        return None
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def _without_cached(summary: Mapping[str, Any]) -> dict[str, Any]:
    stages = [{name: value for name, value in stage.items() if name != "cached"} for stage in summary["stages"]]
    # Through JSON, so that a summary in memory equals the same one read back.
    content: dict[str, Any] = json.loads(json.dumps({**summary, "stages": stages}))
    return content
