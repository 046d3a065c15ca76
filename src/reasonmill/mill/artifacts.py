"""Finds what the user means: an artifact of a home by run and stage or by digest, and a model wherever it is."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from reasonmill.errors import RecipeError, suggestion
from reasonmill.recipe.graph import Node
from reasonmill.recipe.reference import model_directory, shipped_bases
from reasonmill.store.commit import disk_errors
from reasonmill.store.home import Home
from reasonmill.store.ledger import ADOPTED, FROM_ADOPTED, MODELS
from reasonmill.store.looking import is_directory
from reasonmill.types import Artifact

_DIGEST_PREFIX = re.compile(r"[0-9a-f]{4,64}")


def find_artifact(home: Home, text: str, note: Callable[[str], None]) -> Artifact:
    """The artifact that `run/stage` made, or whose digest begins with `text` (four digits at least).

    `run/stage@120` is the model that the stage kept after 120 steps, which need not be finished.

    Of a stage that is not finished with the run's present recipe and code, it is the last finished result.

    Args:
        note: called with a message in that case.

    Raises:
        RecipeError: there is no such run, or its stage was never finished.
        StoreError: no artifact or several have digests that begin like this.
    """
    runs = home.ledger.runs()
    current = {f"{run.name}/{stage.name}": stage.key for run in runs for stage in run.stages}
    earlier = {f"{run.name}/{stage.name}": stage.key for run in runs for stage in run.earlier}
    named, at, taken = text.rpartition("@")
    if at and named in {**current, **earlier}:
        return _intermediate(home, text, [keys[named] for keys in (current, earlier) if named in keys], taken)
    for keys in (current, earlier):
        record = home.ledger.stage(keys[text]) if text in keys else None
        if record is not None:
            if keys is earlier:
                note(
                    f"{text} is not finished with the present recipe and code: this is its earlier result, "
                    f"{record.artifact.digest[:12]}"
                )
            return record.artifact
    known = {**current, **earlier}
    if text in known:
        raise RecipeError(f"stage {text!r} is not finished", fix="run its recipe again: it resumes where it stopped")
    if _DIGEST_PREFIX.fullmatch(text):
        return home.ledger.artifact(text)
    raise RecipeError(
        f"unknown artifact: {text!r} is neither run/stage nor the beginning of a digest",
        where=str(home.path),
        fix=suggestion(text, known) or "`reasonmill status` lists the runs and their stages",
    )


def _intermediate(home: Home, text: str, keys: Sequence[str], taken: str) -> Artifact:
    """The model that a stage kept after `taken` steps, of the first of its keys that has one."""
    known: dict[str, Artifact] = {}
    for key in reversed(keys):
        record = home.ledger.stage(key)
        kept = home.ledger.intermediates(key if record is None else record.log_key)
        known |= {str(step): artifact for step, artifact in kept.items()}
    if taken in known:
        return known[taken]
    listed = ", ".join(known)
    raise RecipeError(
        f"there is no model {text!r}",
        fix=f"models were kept after these steps: {listed}" if listed else "set models_every of the stage, and run it",
    )


def made_digest(artifact: Artifact, step: int | None = None) -> str:
    """What a stage that refers to the artifact's stage reads: the artifact, or the model that a verdict promoted.

    Args:
        step: after how many steps of the stage, where it refers to a model that the stage kept on its way.

    Raises:
        RecipeError: the stage ended before.
    """
    if step is not None:
        kept: dict[str, str] = artifact.metrics.get(MODELS, {})
        if str(step) not in kept:
            raise RecipeError(
                f"stage {artifact.stage!r} ended before it had taken {step} steps",
                fix=f"models were kept after these steps: {', '.join(kept) or 'none'}",
            )
        return kept[str(step)]
    digest: str = artifact.metrics["model"] if artifact.kind == "verdict" else artifact.digest
    return digest


def made_from_adopted(nodes: Sequence[Node], artifacts: Mapping[str, Artifact]) -> dict[str, list[str]]:
    """For each stage of a recipe those that it is made from, directly or not, and that were adopted from other code.

    Args:
        artifacts: what stages made, by their names, as far as they are finished.
    """
    marks: dict[str, list[str]] = {}
    for node in nodes:
        name = node.settings.name
        found = list(artifacts[name].metrics.get(FROM_ADOPTED, ())) if name in artifacts else []
        for source in (source for source in node.stage_inputs if source in artifacts):
            if ADOPTED in artifacts[source].metrics:
                found.append(f"{source} {artifacts[source].digest[:12]}")
            found += marks[source]
        marks[name] = list(dict.fromkeys(found))
    return marks


def find_model(text: str, home_path: Path, note: Callable[[str], None]) -> Path:
    """The directory of a model: a path, a shipped base's name, or an artifact of the home as in `find_artifact`.

    A verdict stands for the model that it promoted. `note` is called as by `find_artifact`.

    Raises:
        RecipeError: there is no such model.
        StoreError: the home or the model's object can't be read.
    """
    if text in shipped_bases() or is_directory(Path(text)):
        return model_directory(text)
    with disk_errors(home_path):
        has_home = is_directory(home_path)
    if not has_home:
        return model_directory(text)
    with Home.open(home_path, write=False) as home:
        artifact = find_artifact(home, text, note)
        if artifact.kind in ("model", "verdict"):
            digest = made_digest(artifact)
            if artifact.kind == "verdict" and not home.objects.exists(digest):
                raise RecipeError(
                    f"missing model: the gate {text!r} left a model in place that is not in this home: "
                    f"{home.ledger.artifact(digest).stage!r}",
                    fix="name that model: a shipped base by its name, another one by its directory",
                )
            return home.objects.path(digest)
        raise RecipeError(
            f"missing model: the artifact {text!r} is no model of this home but of kind {artifact.kind!r}",
            fix="name an artifact that is a model, or a base by its directory; `reasonmill lineage` shows parents",
        )
