"""Adoption: finished results that other code made are recorded under the keys that stages have with the present code.

A result is adopted only where nothing but the code differs: its settings, what it was made from and its seed are the
same, and each of its bytes is what was committed. The ledger, the summary and the report say so for ever.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from reasonmill import __version__
from reasonmill.mill.inputs import KeyedStage, keyed
from reasonmill.mill.summary import read_summary
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.reference import references
from reasonmill.settings import INCIDENTAL
from reasonmill.store.home import Home
from reasonmill.store.ledger import ADOPTED, StageRecord
from reasonmill.store.ledger_runs import MadeWith
from reasonmill.types import Artifact

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


def adopt(recipe: Recipe, home: Home, until: str | None) -> list[Adoption]:
    """Adopts the results of a recipe's stages in order; ends with the first stage that neither has nor gets one.

    Raises:
        RecipeError: there is no stage `until`.
    """
    done: list[Adoption] = []
    begun: list[tuple[str, str, str]] = []
    artifacts: dict[str, Artifact] = {}
    for node in recipe.up_to(until):
        wanted = keyed(node, artifacts, home, recipe)
        begun.append((wanted.name, wanted.kind, wanted.key))
        record = home.ledger.stage(wanted.key)
        found, reason = _candidate(wanted, home) if record is None else (record, _damage(home, record, read=False))
        if found is None or reason is not None:
            return [*done, Adoption(wanted.name, wanted.kind, "not adopted", reason=reason or "")]
        made = artifacts[wanted.name] = found.artifact
        if record is None:
            home.ledger.begin_run(recipe.name, recipe.resolved(), begun)
            metrics = {**made.metrics, ADOPTED: _origin(found, home)}
            adopted = wanted.commit(home, made.digest, made.kind, metrics, found.seconds, found.tokens)
            artifacts[wanted.name] = adopted.artifact
        done.append(Adoption(wanted.name, wanted.kind, "cached" if record else "adopted", made.digest))
    return done


def _candidate(wanted: KeyedStage, home: Home) -> tuple[StageRecord | None, str | None]:
    """The finished result of a stage's run, also an earlier one, that can be adopted; or why the last one can't."""
    runs = [record for record in home.ledger.runs() if record.name == wanted.recipe.name]
    keys = {stage.key for run in runs for stage in (*run.stages, *run.earlier) if stage.name == wanted.name}
    first_reason = None
    for made in reversed(home.ledger.stages()):
        is_of_this_run = made.key in keys or (made.run, made.name) == (wanted.recipe.name, wanted.name)
        if is_of_this_run and made.kind == wanted.kind:
            made_with = next((found for run in runs if (found := run.made_with(made.key)) is not None), None)
            reason = _reason_against(made, made_with, wanted, home)
            if reason is None:
                return made, None
            first_reason = first_reason or reason
    return None, first_reason or "this home has no finished result of it in a run of this name"


def _reason_against(made: StageRecord, made_with: MadeWith | None, wanted: KeyedStage, home: Home) -> str | None:
    """Why a result is not the one that is wanted; None where nothing but the code differs. Reads all of it."""
    which = made.artifact.digest[:12]
    if made_with is None:
        what = "seed" if made.artifact.config_digest == wanted.config_digest else "settings"
        return f"it is no longer recorded with which {what} {which} was made: the run's recipe was changed since"
    if made_with.seed != wanted.recipe.seed:
        return f"{which} was made with the seed {made_with.seed}, but the seed is now {wanted.recipe.seed}"
    changed = [
        *different_settings(made_with.settings, wanted.node.settings),
        *_different_plugins(made_with.tables, wanted),
    ]
    if changed:
        return f"{which} was made with other settings: {'; '.join(changed)}"
    if made.artifact.parents != wanted.parents:
        return f"{which} was made from something else: {_different_inputs(made.artifact.parents, wanted)}"
    return _damage(home, made, read=True)


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


def _different_plugins(before: Mapping[str, Any], wanted: KeyedStage) -> Iterator[str]:
    """The plug-ins that the recipe defines differently now, or that read files whose old content is not recorded."""
    now = wanted.recipe.resolved()
    named = list(wanted.node.plugins.values())
    for plugin in (*named, *(part for each in named for part in each.parts.values())):
        theirs, ours = (tables.get(plugin.group, {}).get(plugin.name) for tables in (before, now))
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


def _different_inputs(before: Sequence[str], wanted: KeyedStage) -> str:
    now = wanted.parents
    if len(before) != len(now):
        return f"it had {len(before)} inputs, and has {len(now)} now"
    names = [*wanted.inputs, *("the verdict behind it" for _ in now)]
    return "; ".join(
        f"{name} was {theirs[:12]}, and is {ours[:12]} now"
        for name, theirs, ours in zip(names, before, now, strict=False)
        if theirs != ours
    )


def _damage(home: Home, made: StageRecord, *, read: bool) -> str | None:
    """What is wrong with the object of a result."""
    digest = made.artifact.digest
    if not home.objects.exists(digest):
        return f"{digest[:12]} is missing: the home no longer has it"
    damaged = home.objects.damaged_files(digest, read=read)
    return f"{digest[:12]} is damaged: {damaged[0]!r} is not what was committed" if damaged else None


def _origin(made: StageRecord, home: Home) -> dict[str, Any]:
    """Where a result comes from, as far as that is known, and who adopts it.

    The version of reasonmill that made it is in the summary of its run, if at all.
    """
    origin = made.artifact.metrics.get(ADOPTED)
    if origin is None:
        summary = read_summary(home.run_dir(made.run)) or {"stages": []}
        is_shown = any(stage["key"] == made.key for stage in summary["stages"])
        version = summary["reasonmill"] if is_shown else None
        origin = {"key": made.key, "run": made.run, "reasonmill": version, "machines": list(made.machines)}
    now = datetime.now().astimezone().isoformat("T", "seconds")
    return {**origin, "adopted_by": f"reasonmill {__version__}", "adopted_at": now}
