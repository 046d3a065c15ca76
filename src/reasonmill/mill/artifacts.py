"""Finds what the user means: an artifact of a home by run and stage or by digest, and a model wherever it is."""

from __future__ import annotations

import re
from pathlib import Path

from reasonmill.errors import RecipeError, suggestion
from reasonmill.recipe.reference import model_directory, shipped_bases
from reasonmill.store.commit import disk_errors
from reasonmill.store.home import Home
from reasonmill.store.looking import is_directory
from reasonmill.types import Artifact

_DIGEST_PREFIX = re.compile(r"[0-9a-f]{4,64}")


def find_artifact(home: Home, text: str) -> Artifact:
    """The artifact that `run/stage` made, or whose digest begins with `text` (four digits at least).

    Raises:
        RecipeError: there is no such run, or its stage is not finished.
        StoreError: no artifact or several have digests that begin like this.
    """
    keys = {f"{run.name}/{stage.name}": stage.key for run in home.ledger.runs() for stage in run.stages}
    if text in keys:
        record = home.ledger.stage(keys[text])
        if record is None:
            raise RecipeError(
                f"stage {text!r} is not finished", fix="run its recipe again: it goes on where it stopped"
            )
        return record.artifact
    if _DIGEST_PREFIX.fullmatch(text):
        return home.ledger.artifact(text)
    raise RecipeError(
        f"unknown artifact: {text!r} is neither run/stage nor the beginning of a digest",
        where=str(home.path),
        fix=suggestion(text, keys) or "`reasonmill status` lists the runs and their stages",
    )


def made_digest(artifact: Artifact) -> str:
    """What a stage that refers to the artifact's stage reads: the artifact, or the model that a verdict promoted."""
    digest: str = artifact.metrics["model"] if artifact.kind == "verdict" else artifact.digest
    return digest


def find_model(text: str, home_path: Path) -> Path:
    """The directory of a model: a path, a shipped base's name, or an artifact of the home as in `find_artifact`.

    A verdict stands for the model that it promoted.

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
        artifact = find_artifact(home, text)
        if artifact.kind in ("model", "verdict"):
            digest = made_digest(artifact)
            if artifact.kind == "verdict" and not home.objects.exists(digest):
                raise RecipeError(
                    f"missing model: the gate {text!r} left a model in place that is not of this home: "
                    f"{home.ledger.artifact(digest).stage!r}",
                    fix="name that model: a shipped base by its name, another one by its directory",
                )
            return home.objects.path(digest)
        raise RecipeError(
            f"missing model: the artifact {text!r} is no model of this home but of kind {artifact.kind!r}",
            fix="name an artifact that is a model, or a base by its directory; `reasonmill lineage` shows parents",
        )
