"""Finds what the user means: an artifact of a home by run and stage or by digest, and a model wherever it is."""

from __future__ import annotations

import re
from pathlib import Path

from reasonmill.errors import RecipeError
from reasonmill.recipe.reference import model_directory, shipped_bases, suggestion
from reasonmill.store.home import Home
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


def find_model(text: str, home_path: Path) -> Path:
    """The directory of a model: a path, a shipped base's name, or an artifact of the home as in `find_artifact`.

    Raises:
        RecipeError: there is no such model.
        StoreError: the home or the model's object can't be read.
    """
    if text in shipped_bases() or Path(text).is_dir() or not home_path.is_dir():
        return model_directory(text)
    with Home.open(home_path, write=False) as home:
        artifact = find_artifact(home, text)
        if artifact.kind == "model":
            return home.objects.path(artifact.digest)
        raise RecipeError(
            f"missing model: the artifact {text!r} is no model of this home but of kind {artifact.kind!r}",
            fix="name an artifact that is a model, or a base by its directory; `reasonmill lineage` shows parents",
        )
