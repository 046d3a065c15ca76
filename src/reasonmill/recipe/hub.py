"""Models of the Hugging Face hub: a recipe's `[models.NAME]` table names a repository and one of its commits.

The commit identifies the weights, so that a stage's key is known before the model is there, and whatever else other
programs keep in the same cache makes no difference. A branch or a tag can move, and is refused.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.settings import Real
from reasonmill.templates import CHAT_TEMPLATES
from reasonmill.types import content_digest

# Where Hugging Face keeps a chat template today, and where it kept it before.
_TEMPLATE_FILE, _TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"


class HubModel(BaseModel):
    """A `[models.NAME]` table. Its sizes are for estimates only; those of a model that is on disk go before them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name of the repository")
    revision: str = Field(description="the commit, 40 hexadecimal digits")
    template: Literal["r1-zero"] | None = Field(
        default=None, description="the chat template to use in place of the model's own"
    )
    parameters: Real = Field(gt=0)
    active_parameters: Real | None = Field(
        default=None, gt=0, description="those that a token meets, in a mixture of experts; all if unset"
    )
    layers: int | None = Field(default=None, ge=1)
    hidden_size: int | None = Field(default=None, ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    head_dim: int | None = Field(default=None, ge=1)

    @field_validator("revision")
    @classmethod
    def _is_a_commit(cls, value: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}", value):
            raise ValueError(f"{value!r} is no commit of 40 hexadecimal digits; a branch or a tag can move")
        return value

    @property
    def digest(self) -> str:
        """Identifies the model's content in the keys of stages and in the ledger."""
        content = {"hub": self.hub, "revision": self.revision}
        return content_digest(content if self.template is None else {**content, "template": self._template_text})

    @property
    def directory(self) -> Path:
        """Where the hub's cache keeps the model, or will keep it."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
        return cache / repo_folder_name(repo_id=self.hub, repo_type="model") / "snapshots" / self.revision

    def link_with_template(self, target: Path) -> None:
        """Makes `target` the model with the recipe's template: links to the hub's cache, which stays as it is.

        Raises:
            ValueError: the recipe gives the model no template.
        """
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for file in self.directory.iterdir():
            if "chat_template" not in file.name and file.name != _TOKENIZER_CONFIG:
                (target / file.name).symlink_to(file)
        configured = self.directory / _TOKENIZER_CONFIG
        if configured.is_file():
            config = json.loads(configured.read_text(encoding="utf-8-sig"))
            config.pop("chat_template", None)
            (target / _TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        (target / _TEMPLATE_FILE).write_text(_beginning(target) + self._template_text, encoding="utf-8")

    @property
    def _template_text(self) -> str:
        if self.template is None:
            raise ValueError(f"the recipe gives {self.hub} no template")
        return CHAT_TEMPLATES[self.template]


def _beginning(model: Path) -> str:
    """What the model's tokenizer puts before any text, which a chat template has to say itself."""
    from reasonmill.model.tokenizer import model_tokenizer

    if not any(model.glob("tokenizer*")):
        return ""
    tokenizer = model_tokenizer(model)
    beginning: str = tokenizer.plain.decode(tokenizer.prefix, skip_special_tokens=False)
    return beginning


def fetch(model: HubModel) -> None:
    """Makes sure that all files of the model are in its directory; downloads what is missing.

    Raises:
        RecipeError: the hub has no such repository or commit, or does not give it out.
        ReasonmillError: the hub can't be reached, and the cache does not have all files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    where = f"{model.hub} at {model.revision}"
    try:
        snapshot_download(model.hub, revision=model.revision)
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
