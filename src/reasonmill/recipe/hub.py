"""Models of the Hugging Face hub: what is downloaded of a repository, and in which order."""

from __future__ import annotations

import errno

from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.model.directory import INDICES, WEIGHTS, WHOLE, shards
from reasonmill.recipe.models import RecipeModel


def fetch_description(model: RecipeModel) -> None:
    """Makes sure that all is in a model's directory that says what it is; downloads what is missing.

    Raises:
        RecipeError, ReasonmillError: as of `fetch`.
    """
    _download(model, but=list(WEIGHTS))


def fetch(model: RecipeModel) -> None:
    """Makes sure that all files of a model of the hub are in its directory; downloads what is missing, and of weights
    that are there in several forms, the one that is read.

    Raises:
        RecipeError: the hub has no such repository or commit, or does not give it out.
        ReasonmillError: the hub can't be reached, and the cache does not have all files.
    """
    fetch_description(model)
    for whole, index in zip(WHOLE, INDICES, strict=True):
        files = [whole, *shards(model.directory, index)]
        _download(model, only=files)
        if any((model.directory / file).is_file() for file in files):
            return


def _download(model: RecipeModel, *, only: list[str] | None = None, but: list[str] | None = None) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    where = f"{model.hub} at {model.revision}"
    try:
        snapshot_download(str(model.hub), revision=model.revision, allow_patterns=only, ignore_patterns=but)
    except RevisionNotFoundError as error:
        raise RecipeError("the hub's repository has no such commit", where=where, fix="correct the revision") from error
    except RepositoryNotFoundError as error:  # a gated one too
        raise RecipeError(
            "the hub has no such repository, or does not give it to this user",
            where=where,
            fix="correct the name; for a closed one, accept its terms on the hub and log in with `hf auth login`",
        ) from error
    except Exception as error:  # the client lets through what its transport raises
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise ReasonmillError(
            f"the model can't be downloaded: {str(error).split(chr(10), 1)[0] or type(error).__name__}",
            where=where,
            fix="run the same command where the hub can be reached, or put the model into its cache beforehand",
        ) from error
