"""Models of a recipe: a `[models.NAME]` table names a directory, a GGUF file, a package that carries one, or a commit
of a repository of the Hugging Face hub, and may say how the model is prompted.

Content identifies a model: of a GGUF file its bytes, wherever it lies and however it came there. The commit identifies
the weights of the hub, so that a stage's key is known before the model is there, and whatever else other programs keep
in the same cache makes no difference. A branch or a tag can move, and is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from reasonmill.content import directory_digest, file_digest
from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.model.adapter_config import ADDED, is_adapter
from reasonmill.model.gguf import refuse_gguf, the_package
from reasonmill.model.gguf_header import CONVERSION, read_header
from reasonmill.settings import Real
from reasonmill.templates import CHAT_TEMPLATES, Prompting, read_template
from reasonmill.types import content_digest

_SIZES = ("active_parameters", "layers", "hidden_size", "kv_heads", "head_dim")


class _Place(NamedTuple):
    """Where a model may be: how messages say so, the settings that it needs, and what else it takes."""

    title: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]


_PLACES = {
    "hub": _Place("of the hub", ("revision", "parameters"), _SIZES),
    "package": _Place("in a package", ("version",), ("file", "parameters", *_SIZES)),
    "path": _Place("that has a path", (), ("base",)),
}


class Turns(BaseModel):
    """A question and what the model says to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str = Field(min_length=1)
    assistant: str = Field(min_length=1)


class RecipeModel(BaseModel):
    """A `[models.NAME]` table. Its sizes are for estimates only; those of a model that is on disk go before them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        default=None,
        description="a directory, relative to the recipe's file, or a shipped base; PEFT's of an adapter; a GGUF file",
    )
    base: str | None = Field(
        default=None, min_length=1, description="the model that an adapter changes, where its own file names none here"
    )
    hub: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name of the repository")
    revision: str | None = Field(default=None, description="the commit, 40 hexadecimal digits")
    package: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?$", description="a package that carries a GGUF file"
    )
    version: str | None = Field(default=None, pattern=r"^[0-9][\w.!+-]*$", description="the package's")
    file: str | None = Field(
        default=None, min_length=1, description="which of the package's GGUF files, if it has more"
    )
    template: str | None = Field(
        default=None, description="the chat template in place of the model's own: r1-zero, or the path of a .jinja file"
    )
    system: str | None = Field(
        default=None, min_length=1, description="the system message of conversations that have none of their own"
    )
    examples: tuple[Turns, ...] = Field(
        default=(), description="worked examples, turns that stand before every conversation: user, assistant"
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="texts that end a turn, beside the model's own stop tokens"
    )
    parameters: Real | None = Field(default=None, gt=0)
    active_parameters: Real | None = Field(
        default=None, gt=0, description="those that a token meets, in a mixture of experts; all if unset"
    )
    layers: int | None = Field(default=None, ge=1)
    hidden_size: int | None = Field(default=None, ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    head_dim: int | None = Field(default=None, ge=1)

    # The recipe's folder.
    _folder: Path | None = PrivateAttr(default=None)
    # The text of a template that is a file, as it was when the recipe was read.
    _own_template: str | None = PrivateAttr(default=None)

    @field_validator("revision")
    @classmethod
    def _is_a_commit(cls, value: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}", value):
            raise ValueError(f"{value!r} is no commit of 40 hexadecimal digits; a branch or a tag can move")
        return value

    @field_validator("template")
    @classmethod
    def _is_a_template(cls, value: str, info: ValidationInfo) -> str:
        if value not in CHAT_TEMPLATES:
            read_template(value, (info.context or {}).get("folder", Path()))
        return value

    @model_validator(mode="after")
    def _is_one_model(self) -> Self:
        places = [name for name in _PLACES if getattr(self, name) is not None]
        if len(places) != 1:
            raise ValueError("name exactly one of path (a directory or a GGUF file), hub (a repository) and package")
        place = _PLACES[places[0]]
        missing = [name for name in place.needs if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a model {place.title} needs {' and '.join(missing)}")
        others = (name for other in _PLACES.values() for name in (*other.needs, *other.takes))
        idle = [name for name in others if name not in (*place.needs, *place.takes) and getattr(self, name) is not None]
        if idle:
            raise ValueError(f"{idle[0]} has no effect on a model {place.title}: remove it")
        _ = self.prompting  # which refuses what does not go together
        return self

    def model_post_init(self, context: Any) -> None:
        """Reads the template's file; that it is there was checked before."""
        if self.path is not None:
            self._folder = (context or {}).get("folder")
        if self.template is not None and self.template not in CHAT_TEMPLATES:
            self._own_template = read_template(self.template, (context or {}).get("folder", Path()))

    @property
    def title(self) -> str:
        """What the ledger and messages call the model."""
        if self.package is not None:
            return f"{self.package} {self.version}" + (f" ({self.file})" if self.file else "")
        return self.hub or Path(str(self.path)).name

    @property
    def gguf(self) -> Path | None:
        """The GGUF file that the path names, if it names a file."""
        path = (self._folder or Path()) / Path(self.path or "").expanduser()
        return path.resolve() if self.path is not None and path.is_file() else None

    @property
    def is_converted(self) -> bool:
        """Whether stages read what is made of a GGUF file."""
        return self.package is not None or self.gguf is not None

    def refuse(self) -> None:
        """Refuses a model that is on this machine and can't be used, as far as files tell that are read at once.

        Raises:
            RecipeError: it is none, it is of a kind that is not run, or what reads it is not installed.
        """
        if self.package is not None:
            the_package()
        elif self.gguf is None:
            _ = self.directory
        elif self.base is not None:
            raise RecipeError(f"{self.path!r} is no adapter, so that a base has no effect", fix="remove base")
        else:
            try:
                refuse_gguf(read_header(self.gguf))
            except UnsupportedModel as error:
                raise RecipeError(f"unusable model {self.path!r}: {error.what}", fix=error.fix) from error

    @property
    def prompting(self) -> Prompting:
        """How it is prompted otherwise than by its own files."""
        return Prompting(
            named=self.template if self._own_template is None else None,
            template=self._own_template,
            system=self.system,
            examples=tuple((turns.user, turns.assistant) for turns in self.examples),
            stop=self.stop,
        )

    @property
    def digest(self) -> str:
        """Identifies the model's content in the keys of stages and in the ledger; not that of a package, whose content
        only a home knows that has had it.
        """
        if self.gguf is not None:
            return self.converted_digest(file_digest(self.gguf))
        told: dict[str, Any] = dict(self.prompting.content)
        if self.adapter is not None:
            told["adapter"] = directory_digest(self.adapter)
        if self.hub is not None:
            return content_digest({"hub": self.hub, "revision": self.revision, **told})
        own = directory_digest(self.directory)
        return content_digest({"directory": own, **told}) if told else own

    def converted_digest(self, file: str) -> str:
        """The same of a model that is made of the GGUF file with this digest."""
        return content_digest({"gguf": file, "conversion": CONVERSION, **self.prompting.content})

    @property
    def directory(self) -> Path:
        """Where the model is, or the base of an adapter, or where the hub's cache will keep it.

        Raises:
            RecipeError: its path names no model, or an adapter that is not understood or whose base is not there.
        """
        if self.hub is None:
            from reasonmill.recipe.reference import base_directory, model_directory

            if self.adapter is not None:
                return base_directory(self.adapter, self.base, self._folder)
            if self.base is not None:
                raise RecipeError(f"{self.path!r} is no adapter, so that a base has no effect", fix="remove base")
            return model_directory(str(self.path), self._folder)
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
        return cache / repo_folder_name(repo_id=self.hub, repo_type="model") / "snapshots" / str(self.revision)

    @property
    def adapter(self) -> Path | None:
        """The directory of an adapter in PEFT's format, if that is what the path names."""
        path = (self._folder or Path()) / Path(self.path or "").expanduser()
        return path.resolve() if self.path is not None and is_adapter(path) else None

    @property
    def is_as_it_lies(self) -> bool:
        """Whether stages read its directory itself: nothing is added to it, and it is prompted by its own files."""
        return self.adapter is None and not self.prompting.content and not self.is_converted

    def link_as_meant(self, target: Path, source: Path) -> None:
        """Makes `target` the model as the recipe means it: links to a directory and its adapter's, which stay as they
        are.

        Args:
            source: its own directory, or what was made of its GGUF file.
        """
        from reasonmill.model.prompting import link_as_prompted

        link_as_prompted(source, target, self.prompting)
        if self.adapter is not None:
            (target / ADDED).symlink_to(self.adapter)
