"""Where models are served, and how they are asked."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.servers.replies import KNOWN_FINISHES
from reasonmill.settings import INCIDENTAL, Seconds
from reasonmill.types import Finish

# What a request says of how to draw.
Parameter = Literal["temperature", "top_p", "max_tokens", "seed", "stop"]
_PARAMETERS: tuple[Parameter, ...] = get_args(Parameter)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ServerError(ReasonmillError):
    """A teacher's or judge's server can't be reached, or refuses what it is asked."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class ServerSettings(BaseModel):
    """Where a model is served. The API key never stands in a recipe, only the name of the variable that holds it.

    Address and model decide what is answered. How it is asked for does not, and is no part of a stage's key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="of the API, for example http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1, description="the model, as the server names it")
    api_key_env: Annotated[str | None, INCIDENTAL] = Field(
        default=None, description="environment variable with the API key; no key if unset"
    )
    concurrency: Annotated[int, INCIDENTAL] = Field(
        default=8, ge=1, description="requests that are under way at the same time"
    )
    timeout_s: Annotated[Seconds, INCIDENTAL] = Field(
        default=600.0, gt=0, description="seconds without an answer until a request has failed"
    )
    retries: Annotated[int, INCIDENTAL] = Field(default=5, ge=0, description="how often a failed request is sent again")
    retry_delay_s: Annotated[Seconds, INCIDENTAL] = Field(
        default=1.0, ge=0, description="seconds until the first retry; each next waits twice"
    )

    patience_s: Annotated[Seconds, INCIDENTAL] = Field(
        default=600.0, ge=0, description="seconds for which a server that is too busy (HTTP 429) is asked again"
    )
    parameters: dict[Parameter, str | Literal[False]] = Field(
        default={}, description="what the server calls a parameter of a request, or false to leave it out"
    )
    finish_reasons: Annotated[dict[str, Finish], INCIDENTAL] = Field(
        default={}, description="what the server's own words for the end of a reply mean, beyond the usual ones"
    )

    @model_validator(mode="after")
    def _names_are_its_own(self) -> Self:
        sent = Counter(name for key in _PARAMETERS if (name := self.parameters.get(key, key)))
        wrong = [name for name, count in sent.items() if count > 1 or name in ("model", "messages")]
        if wrong or "" in self.parameters.values():
            raise ValueError(f"parameters: no two may have one name, nor an empty one, nor that of a part: {wrong}")
        usual = [word for word in self.finish_reasons if word in KNOWN_FINISHES]
        if usual:
            raise ValueError(f"finish_reasons: what {usual[0]!r} means is known: {KNOWN_FINISHES[usual[0]]}")
        return self

    def without(self, given: Iterable[str]) -> list[str]:
        """Which of the settings that are given the server is not told, because `parameters` leaves them out."""
        return [name for name in given if self.parameters.get(cast(Parameter, name)) is False]

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urllib.parse.urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must begin with http:// or https:// and name a host")
        if re.search(r"\s", value) or parts.port == 0:  # a port that is no number is a ValueError as well
            raise ValueError("url must hold neither white space nor port 0")
        if parts.username is not None or parts.query or parts.fragment:
            # The value is not shown, because what is wrong here may be a key.
            raise ValueError("url must hold neither credentials nor a query: name the key's variable in api_key_env")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError("api_key_env must be the name of an environment variable, never the key itself")
        return value


class TeacherSettings(ServerSettings):
    """Where a teacher is served, and what it is given beyond the problem."""

    instructions: str | None = Field(
        default=None,
        min_length=1,
        description="put after the user's last turn, for example how to write the answer; not kept with the data",
    )


def api_key(settings: ServerSettings) -> str | None:
    """The API key of a server; None for one that needs none.

    Raises:
        RecipeError: the variable that should hold it holds none.
    """
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise RecipeError(
            f"the environment variable {settings.api_key_env} holds no API key for {settings.url}",
            where="api_key_env",
            fix=f"export {settings.api_key_env}, or remove api_key_env for a server that needs no key",
        )
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"what the environment variable {settings.api_key_env} holds can't be an API key: no HTTP header may have "
            "all of its characters",
            where="api_key_env",
            fix=f"export {settings.api_key_env} again with the key alone",
        )
    return key
