"""Models of a recipe: a `[models.NAME]` table names a directory, or a commit of a repository of the Hugging Face hub,
and may say how the model is prompted.

The commit identifies the weights, so that a stage's key is known before the model is there, and whatever else other
programs keep in the same cache makes no difference. A branch or a tag can move, and is refused.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from reasonmill.content import directory_digest
from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.model.adapter_config import ADDED, is_adapter
from reasonmill.settings import Real
from reasonmill.templates import CHAT_TEMPLATES, Prompting, read_template
from reasonmill.types import content_digest

_OF_HUB = ("revision", "parameters", "active_parameters", "layers", "hidden_size", "kv_heads", "head_dim")


class RecipeModel(BaseModel):
    """A `[models.NAME]` table. Its sizes are for estimates only; those of a model that is on disk go before them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        default=None,
        description="a directory, relative to the recipe's file, or a shipped base; or PEFT's of an adapter",
    )
    base: str | None = Field(
        default=None, min_length=1, description="the model that an adapter changes, where its own file names none here"
    )
    hub: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name of the repository")
    revision: str | None = Field(default=None, description="the commit, 40 hexadecimal digits")
    template: str | None = Field(
        default=None, description="the chat template in place of the model's own: r1-zero, or the path of a .jinja file"
    )
    system: str | None = Field(
        default=None, min_length=1, description="the system message of conversations that have none of their own"
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
        if (self.path is None) == (self.hub is None):
            raise ValueError("name exactly one of path (a directory) and hub (a repository)")
        if self.hub is not None:
            missing = [name for name in ("revision", "parameters") if getattr(self, name) is None]
            if self.base is not None:
                raise ValueError("base belongs to an adapter that is a directory: remove it")
            if missing:
                raise ValueError(f"a model of the hub needs {' and '.join(missing)}")
        else:
            idle = [name for name in _OF_HUB if getattr(self, name) is not None]
            if idle:
                raise ValueError(f"{idle[0]} has no effect on a model that is a directory: remove it")
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
        return self.hub or Path(str(self.path)).name

    @property
    def prompting(self) -> Prompting:
        """How it is prompted otherwise than by its own files."""
        return Prompting(
            named=self.template if self._own_template is None else None,
            template=self._own_template,
            system=self.system,
            stop=self.stop,
        )

    @property
    def digest(self) -> str:
        """Identifies the model's content in the keys of stages and in the ledger."""
        told: dict[str, Any] = dict(self.prompting.content)
        if self.adapter is not None:
            told["adapter"] = directory_digest(self.adapter)
        if self.hub is not None:
            return content_digest({"hub": self.hub, "revision": self.revision, **told})
        own = directory_digest(self.directory)
        return content_digest({"directory": own, **told}) if told else own

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
        return self.adapter is None and not self.prompting.content

    def link_as_meant(self, target: Path) -> None:
        """Makes `target` the model as the recipe means it: links to its directory and its adapter's, which stay as they
        are."""
        from reasonmill.model.prompting import link_as_prompted

        link_as_prompted(self.directory, target, self.prompting)
        if self.adapter is not None:
            (target / ADDED).symlink_to(self.adapter)


def fetch(model: RecipeModel) -> None:
    """Makes sure that all files of a model of the hub are in its directory; downloads what is missing.

    Raises:
        RecipeError: the hub has no such repository or commit, or does not give it out.
        ReasonmillError: the hub can't be reached, and the cache does not have all files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    where = f"{model.hub} at {model.revision}"
    try:
        snapshot_download(str(model.hub), revision=model.revision)
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
