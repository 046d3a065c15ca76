"""How settings refer to what they read: an earlier stage, a model of the recipe, a shipped base, or a directory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel

from reasonmill.errors import RecipeError, UnsupportedModel, suggestion
from reasonmill.model.adapter_config import read_adapter_config
from reasonmill.model.directory import refuse_directory
from reasonmill.recipe.models import RecipeModel
from reasonmill.settings import ByContent, Mark, marks


@dataclass(frozen=True)
class Reference(ByContent):
    """Marks the settings whose text refers to an artifact, and says of which kinds it may be.

    A "model" may also be a verdict, which stands for the model that it promoted. A "file" is a file or a folder of the
    user's, relative to the recipe.

    Attributes:
        with_tasks: whether the stage looks up the tasks of the rollouts that it reads: then its key covers them, too.
        to_train: whether it is trained on, or becomes what is: then it may hold nothing of a held-out split.
        rows: what is asked of a `[data.NAME]` table that it may name instead; empty where it may name none.
    """

    kinds: tuple[str, ...]
    with_tasks: bool = False
    to_train: bool = False
    rows: Literal["", "conversations", "labelled"] = ""


ModelRef = Annotated[str, Reference(("model", "verdict"))]
RolloutsRef = Annotated[str, Reference(("rollouts",), to_train=True)]
DatasetRef = Annotated[str, Reference(("dataset",), to_train=True)]
# What an earlier stage made, or a table of data of the recipe.
ConversationsRef = Annotated[str, Reference(("dataset",), to_train=True, rows="conversations")]
LabelledRef = Annotated[str, Reference(("rollouts",), to_train=True, rows="labelled")]
EvaluationRef = Annotated[str, Reference(("evaluation",))]
RewardModelRef = Annotated[str, Reference(("reward-model",))]
GradedRef = Annotated[str, Reference(("rollouts",), with_tasks=True, to_train=True)]
FileRef = Annotated[str, Reference(("file",))]


@dataclass(frozen=True)
class StageSource:
    """An earlier stage of the same recipe makes it.

    Attributes:
        step: after how many of its steps, for a model that it keeps on its way; None for what it makes in the end.
    """

    stage: str
    step: int | None = None


@dataclass(frozen=True)
class DirectorySource:
    """The model is a Hugging Face directory."""

    path: Path


@dataclass(frozen=True)
class ModelSource:
    """The model is one of the recipe's `[models]`."""

    name: str
    model: RecipeModel


@dataclass(frozen=True)
class FileSource:
    """A file or a folder of the user's."""

    path: Path


Source = StageSource | DirectorySource | ModelSource | FileSource


def references(settings: BaseModel) -> list[Mark[Reference]]:
    """All references that the settings make, with their texts; optional ones that are not set are left out.

    A key is that of the TOML file, with the place in a list or a table behind it: `data[0]`, `judges.safety`.
    """
    return marks(settings, Reference)


def shipped_bases() -> dict[str, Path]:
    """The bases that ship with the package, by name."""
    bases = Path(str(files("reasonmill"))) / "world" / "bases"
    return {path.parent.name: path.parent for path in sorted(bases.glob("*/config.json"))}


def model_directory(text: str, folder: Path | None = None) -> Path:
    """The directory of a shipped base, or the directory that `text` is a path of.

    Args:
        folder: what paths are relative to: the folder of the recipe that names it; None is the working directory.

    Raises:
        RecipeError: there is no such model, or the directory holds none that can be used.
    """
    bases = shipped_bases()
    if text in bases:
        return bases[text]
    path = (folder or Path()) / Path(text).expanduser()
    if not path.is_dir():
        at, here = path.resolve(), Path(text).expanduser().resolve()
        looked = f"it is looked for at {at}, beside the recipe" if folder else ""
        looked += f", and not at {here}, below the working directory" if folder and here != at else ""
        raise RecipeError(
            f"missing model: {text!r} is neither a shipped base nor a directory",
            fix="; ".join(part for part in (looked, _fix(text, bases)) if part),
        )
    try:
        refuse_directory(path)
    except UnsupportedModel as error:
        raise RecipeError(f"unusable model {text!r}: {error.what}", fix=error.fix) from error
    return path.resolve()


def base_directory(adapter: Path, named: str | None, folder: Path | None = None) -> Path:
    """The directory of the model that an adapter changes.

    Args:
        named: the base as the recipe names it; None for what the adapter's own file says.
        folder: what paths are relative to, as of `model_directory`.

    Raises:
        RecipeError: the adapter is not understood, it says nothing of its base, or that is not here.
    """
    try:
        own = read_adapter_config(adapter).base
    except UnsupportedModel as error:
        raise RecipeError(f"unusable adapter: {error.what}", where=error.where, fix=error.fix) from error
    text = named or own
    fix = 'download it, and name its directory: base = "DIR"'
    if not text:
        raise RecipeError("the adapter does not say which model it changes", where=str(adapter), fix=fix)
    try:
        return model_directory(text, folder)
    except RecipeError as error:
        raise RecipeError(
            f"the base of the adapter: {error.what}", where=str(adapter), fix=f"{fix}; {error.fix}"
        ) from error


def find_source(
    mention: Mark[Reference],
    earlier: Mapping[str, str | None],
    later: Collection[str],
    models: Mapping[str, RecipeModel] = MappingProxyType({}),
    folder: Path = Path(),
    tables: Collection[str] = (),
) -> Source:
    """What a reference of a stage means.

    Args:
        earlier: the stages before it, by name, and the kind of artifact that each makes; None where that is not known,
            which is a mistake of its own.
        later: the names of the stage itself and of those after it.
        models: the recipe's, by name.
        folder: the recipe's, which paths of files are relative to.
        tables: the names of the recipe's tables of data.

    Raises:
        RecipeError: it means nothing, something of another kind, or a stage that has not run by then.
    """
    text, wanted = mention.value, mention.mark.kinds
    if "file" in wanted:
        path = (folder / Path(text).expanduser()).resolve()
        if not path.exists():
            raise RecipeError(f"missing file: {text!r}", fix=f"it is looked for at {path}")
        return FileSource(path)
    fitting = [name for name, made in earlier.items() if made in wanted]
    stage, at, taken = text.rpartition("@")
    if at and stage in earlier and "model" in wanted:
        if not taken.isdecimal():
            raise RecipeError(f"{text!r} names no step of stage {stage!r}", fix=f"write it as {stage}@120")
        return StageSource(stage, int(taken))
    if text in earlier:
        made = earlier[text]
        if made is None or made in wanted:
            return StageSource(text)
        listed = f": {', '.join(fitting)}" if fitting else ""
        if made == "evaluation" and mention.mark.to_train:
            raise RecipeError(
                f"stage {text!r} asks held-out problems, as every evaluation does, and nothing of them is trained on",
                fix=f"collect samples of the training split, and refer to these{listed}",
            )
        raise RecipeError(
            f"stage {text!r} makes no {wanted[0]} but an artifact of kind {made!r}",
            fix=f"refer to a stage above it that makes a {' or '.join(wanted)}{listed}",
        )
    takes_model = "model" in wanted
    known = [*fitting, *models, *shipped_bases()] if takes_model else fitting
    if text in later or (at and stage in later):
        others = f", or use one of: {', '.join(known)}" if known else ""
        raise RecipeError(
            f"stage {text!r} has not run at this point; a stage can only use stages above it",
            fix=f"move stage {text!r} up{others}",
        )
    if not takes_model:
        neither = "neither an earlier stage nor a table [data.NAME]" if mention.mark.rows else "no earlier stage"
        raise RecipeError(f"{text!r} is {neither}", fix=suggestion(text, [*fitting, *tables]))
    if text in models:
        return ModelSource(text, models[text])
    if text not in shipped_bases() and not Path(text).expanduser().is_dir():
        what = f"missing model: {text!r} is no earlier stage, no shipped base and no directory"
        raise RecipeError(what, fix=_fix(text, known))
    return DirectorySource(model_directory(text))


def _fix(text: str, known: Collection[str]) -> str:
    listed = f"known models: {', '.join(known)}" if known else "name a directory that holds a model"
    return " ".join(part for part in (suggestion(text, known), listed) if part)
