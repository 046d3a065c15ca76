"""How settings refer to models: an earlier stage of the recipe, a base that ships with the package, or a directory."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel

from reasonmill.errors import RecipeError


class _ModelRefMarker:
    """Marks the settings whose text refers to a model."""


ModelRef = Annotated[str, _ModelRefMarker()]


@dataclass(frozen=True)
class StageSource:
    """The model comes from an earlier stage of the same recipe."""

    stage: str


@dataclass(frozen=True)
class DirectorySource:
    """The model is a Hugging Face directory."""

    path: Path


Source = StageSource | DirectorySource


def references(settings: BaseModel) -> dict[str, str]:
    """What the settings refer to: {key in the TOML file: text}; optional references that are not set are left out."""
    found = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value is not None and (_is_marked(field.metadata) or _holds_model_ref(field.annotation)):
            found[field.alias or name] = value
    return found


def shipped_bases() -> dict[str, Path]:
    """The bases that ship with the package, by name."""
    bases = Path(str(files("reasonmill"))) / "world" / "bases"
    return {path.parent.name: path.parent for path in sorted(bases.glob("*/config.json"))}


def model_directory(text: str) -> Path:
    """The directory of a shipped base, or the directory that `text` is a path of (relative to the working directory).

    Raises:
        RecipeError: there is no such model.
    """
    bases = shipped_bases()
    if text in bases:
        return bases[text]
    path = Path(text).expanduser()
    if not path.is_dir():
        raise RecipeError(f"missing model: {text!r} is neither a shipped base nor a directory", fix=_fix(text, bases))
    if not (path / "config.json").is_file():
        raise RecipeError(
            f"missing model: the directory {text!r} holds no config.json",
            fix="name a directory in Hugging Face's format (config.json, weights, tokenizer)",
        )
    return path.resolve()


def find_source(text: str, earlier: Collection[str], later: Collection[str]) -> Source:
    """What a reference in a stage means, given the names of the stages before it and of itself and those after it.

    Raises:
        RecipeError: it means nothing, or a stage that has not run by then.
    """
    if text in earlier:
        return StageSource(text)
    if text in later:
        raise RecipeError(
            f"stage {text!r} has not run at this point; a stage can only use stages above it",
            fix=f"move stage {text!r} up, or use one of: {', '.join([*earlier, *shipped_bases()]) or 'a directory'}",
        )
    try:
        return DirectorySource(model_directory(text))
    except RecipeError as error:
        if Path(text).is_dir():
            raise
        known = [*earlier, *shipped_bases()]
        what = f"missing model: {text!r} is no earlier stage, no shipped base and no directory"
        raise RecipeError(what, fix=_fix(text, known)) from error


def suggestion(text: str, known: Collection[str]) -> str:
    """The known name that was probably meant, as a sentence; empty where none is close."""
    close = difflib.get_close_matches(text, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def _fix(text: str, known: Collection[str]) -> str:
    listed = f"known models: {', '.join(known)}" if known else "name a directory that holds a model"
    return " ".join(part for part in (suggestion(text, known), listed) if part)


def _is_marked(metadata: Collection[Any]) -> bool:
    return any(isinstance(item, _ModelRefMarker) for item in metadata)


def _holds_model_ref(annotation: Any) -> bool:
    """Whether an annotation such as `ModelRef | None` holds the marker."""
    return _is_marked(getattr(annotation, "__metadata__", ())) or any(map(_holds_model_ref, get_args(annotation)))
