"""Adoption: finished results that other code made are recorded under the keys that stages have with the code of now.

A result is adopted only where nothing but the code differs: its settings, what it was made from and its seed are the
same, and each of its bytes is what was committed. The ledger, the summary and the report say so for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from reasonmill import __version__
from reasonmill.mill.artifacts import made_from_adopted
from reasonmill.mill.inputs import parents, stage_inputs
from reasonmill.mill.summary import read_summary
from reasonmill.recipe.graph import Node, Recipe, stage_key
from reasonmill.recipe.reference import references
from reasonmill.settings import INCIDENTAL, decisive
from reasonmill.stage import Input
from reasonmill.store.home import Home
from reasonmill.store.ledger import ADOPTED, FROM_ADOPTED, StageRecord
from reasonmill.store.ledger_runs import MadeWith, RunRecord
from reasonmill.types import Artifact, content_digest

# What a setting that is not set looks like in JSON.
_UNSET: tuple[Any, ...] = (None, {}, [], "")


@dataclass(frozen=True)
class Adoption:
    """What came of a stage; `reason` says why its result can't be adopted."""

    name: str
    kind: str
    status: Literal["cached", "adopted", "not adopted"]
    digest: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Wanted:
    """A stage as it is now."""

    node: Node
    key: str
    inputs: Mapping[str, Input]
    parents: tuple[str, ...]
    seed: int
    tables: Mapping[str, Any]


def adopt(recipe: Recipe, home: Home, until: str | None) -> list[Adoption]:
    """Adopts the results of a recipe's stages in order; ends with the first stage that neither has nor gets one.

    Raises:
        RecipeError: there is no stage `until`.
    """
    done: list[Adoption] = []
    begun: list[tuple[str, str, str]] = []
    artifacts: dict[str, Artifact] = {}
    for node in recipe.up_to(until):
        name, kind = node.settings.name, node.settings.kind
        wanted = _wanted(node, artifacts, home, recipe)
        begun.append((name, kind, wanted.key))
        record = home.ledger.stage(wanted.key)
        if record is not None:
            if damage := _damage(home, record.artifact.digest, read=False):
                return [*done, Adoption(name, kind, "not adopted", reason=damage)]
            artifacts[name] = record.artifact
            done.append(Adoption(name, kind, "cached", record.artifact.digest))
            continue
        candidates = _candidates(home, recipe.name, name, kind)
        reasons = [_reason_against(made, made_with, wanted, home) for made, made_with in candidates]
        if None not in reasons:
            reason = reasons[0] if reasons else "this home has no finished result of it in a run of this name"
            return [*done, Adoption(name, kind, "not adopted", reason=str(reason))]
        record, _ = candidates[reasons.index(None)]
        ancestors = made_from_adopted(recipe.nodes, artifacts)[name]
        artifacts[name] = _record(record, wanted, home, recipe, begun, ancestors)
        done.append(Adoption(name, kind, "adopted", record.artifact.digest))
    return done


def _wanted(node: Node, artifacts: Mapping[str, Artifact], home: Home, recipe: Recipe) -> _Wanted:
    inputs = stage_inputs(node, artifacts, home, recipe)
    key = stage_key(node, inputs, recipe.seed)
    return _Wanted(node, key, inputs, parents(node, inputs, artifacts), recipe.seed, recipe.resolved())


def _candidates(home: Home, run: str, name: str, kind: str) -> list[tuple[StageRecord, MadeWith | None]]:
    """The finished results of a stage of a run, also earlier ones, the one that was finished last first.

    Each with what it was made with, as far as that is recorded.
    """
    runs = [record for record in home.ledger.runs() if record.name == run]
    keys = {stage.key for record in runs for stage in (*record.stages, *record.earlier) if stage.name == name}
    return [
        (made, _made_with(runs, made.key))
        for made in reversed(home.ledger.stages())
        if made.kind == kind and (made.key in keys or (made.run, made.name) == (run, name))
    ]


def _made_with(runs: Sequence[RunRecord], key: str) -> MadeWith | None:
    return next((found for run in runs if (found := run.made_with(key)) is not None), None)


def _reason_against(made: StageRecord, made_with: MadeWith | None, wanted: _Wanted, home: Home) -> str | None:
    """Why a result is not the one that is wanted; None where nothing but the code differs. Reads all of it."""
    which = made.artifact.digest[:12]
    if made_with is None:
        what = "seed" if made.artifact.config_digest == _config_digest(wanted) else "settings"
        return f"with which {what} {which} was made is not recorded any more: the run's recipe was changed since"
    if made_with.seed != wanted.seed:
        return f"{which} was made with the seed {made_with.seed}, and the seed is {wanted.seed} now"
    changed = [
        *different_settings(made_with.settings, wanted.node.settings),
        *_different_plugins(made_with.tables, wanted),
    ]
    if changed:
        return f"{which} was made with other settings: {'; '.join(changed)}"
    if made.artifact.parents != wanted.parents:
        return f"{which} was made from something else: {_different_inputs(made.artifact.parents, wanted)}"
    return _damage(home, made.artifact.digest, read=True)


def different_settings(before: Mapping[str, Any], now: BaseModel, place: str = "") -> Iterator[str]:
    """The settings in which a stage differs from one that other code made, each with both values.

    A setting that only one of the two versions has counts as equal where it has its default, or is not set. What
    refers to something is left out, as what it refers to is compared by its content; so is what is incidental.

    Args:
        before: as JSON, all of them.
        place: where in the stage's settings this is.
    """
    skipped = {mention.key.partition(".")[0].partition("[")[0] for mention in references(now)}
    fields = {field.alias or name: (field, getattr(now, name)) for name, field in type(now).model_fields.items()}
    for key, (field, value) in fields.items():
        if key in skipped or INCIDENTAL in field.metadata:
            continue
        if key in before:
            yield from _different(before[key], value, f"{place}{key}")
        elif value != field.get_default(call_default_factory=True):
            yield f"{place}{key} is {_shown(value)} now, and there was no such setting"
    for key in before.keys() - fields.keys():
        if before[key] not in _UNSET:
            yield f"{place}{key} was {_shown(before[key])}, and there is no such setting any more"


def _different_plugins(before: Mapping[str, Any], wanted: _Wanted) -> Iterator[str]:
    """The tasks and the like that the recipe defines otherwise now, or of whose files nobody knows what they held."""
    named = list(wanted.node.plugins.values())
    for plugin in (*named, *(plugin.environment for plugin in named if plugin.environment is not None)):
        theirs, ours = (tables.get(plugin.group, {}).get(plugin.name) for tables in (before, wanted.tables))
        if theirs != ours:
            yield f"{plugin.title} was {_shown(theirs)}, and is {_shown(ours)} now"
        elif any(plugin.identity.get(files) for files in ("files", "declared")):
            yield f"{plugin.title} reads files, and it is not recorded what they held"


def _different(before: Any, now: Any, place: str) -> Iterator[str]:
    if isinstance(now, BaseModel) and isinstance(before, Mapping):
        yield from different_settings(before, now, f"{place}.")
    elif isinstance(now, Mapping) and isinstance(before, Mapping) and now.keys() == before.keys():
        for key in now:
            yield from _different(before[key], now[key], f"{place}.{key}")
    elif isinstance(now, list | tuple) and isinstance(before, list) and len(now) == len(before):
        for number, (ours, theirs) in enumerate(zip(now, before, strict=True)):
            yield from _different(theirs, ours, f"{place}[{number}]")
    elif to_jsonable_python(now) != before:
        yield f"{place} was {_shown(before)}, and is {_shown(now)} now"


def _shown(value: Any) -> str:
    return repr(to_jsonable_python(value, by_alias=True))


def _different_inputs(before: Sequence[str], wanted: _Wanted) -> str:
    now = wanted.parents
    if len(before) != len(now):
        return f"it had {len(before)} inputs, and has {len(now)} now"
    names = [*wanted.inputs, *("the verdict behind it" for _ in now)]
    return "; ".join(
        f"{name} was {theirs[:12]}, and is {ours[:12]} now"
        for name, theirs, ours in zip(names, before, now, strict=False)
        if theirs != ours
    )


def _damage(home: Home, digest: str, *, read: bool) -> str | None:
    """What is wrong with an object."""
    if not home.objects.exists(digest):
        return f"{digest[:12]} is missing: the home does not have it any more"
    damaged = home.objects.damaged_files(digest, read=read)
    return f"{digest[:12]} is damaged: {damaged[0]!r} is not what was committed" if damaged else None


def _record(
    made: StageRecord,
    wanted: _Wanted,
    home: Home,
    recipe: Recipe,
    begun: Sequence[tuple[str, str, str]],
    ancestors: Sequence[str],
) -> Artifact:
    """Records a result under the key of now; returns the artifact that the ledger has of it then."""
    settings, metrics = wanted.node.settings, made.artifact.metrics
    origin = {**metrics.get(ADOPTED, _origin(made, home)), **_adopter()}
    known = [*metrics.get(FROM_ADOPTED, ()), *ancestors]
    artifact = Artifact(
        made.artifact.digest,
        made.artifact.kind,
        settings.name,
        wanted.parents,
        _config_digest(wanted),
        {**metrics, ADOPTED: origin, **({FROM_ADOPTED: list(dict.fromkeys(known))} if known else {})},
    )
    home.ledger.begin_run(recipe.name, recipe.resolved(), begun)
    home.ledger.commit_stage(
        key=wanted.key,
        run=recipe.name,
        name=settings.name,
        kind=settings.kind,
        artifact=artifact,
        seconds=made.seconds,
        tokens=made.tokens,
    )
    home.back_up_ledger()
    return artifact


def _origin(made: StageRecord, home: Home) -> dict[str, Any]:
    """What is known of where a result comes from; the version of reasonmill is in the summary of its run, if at all."""
    summary = read_summary(home.run_dir(made.run)) or {"stages": []}
    is_shown = any(stage["key"] == made.key for stage in summary["stages"])
    return {
        "key": made.key,
        "run": made.run,
        "reasonmill": summary["reasonmill"] if is_shown else None,
        "machines": list(home.ledger.machines(made.key)),
    }


def _adopter() -> dict[str, str]:
    return {
        "adopted_by": f"reasonmill {__version__}",
        "adopted_at": datetime.now().astimezone().isoformat("T", "seconds"),
    }


def _config_digest(wanted: _Wanted) -> str:
    return content_digest(decisive(wanted.node.settings))
