"""A client of any server that speaks OpenAI's chat completions: the way to teachers and judges.

Only what all such servers understand is sent. A reply that fails for reasons that pass (too many requests, a server
that restarts, a broken connection) is asked for again after a while; everything else is reported to the user at once.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from reasonmill.activity import beat, may_wait
from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.settings import INCIDENTAL, Seconds
from reasonmill.types import Finish, Message, SamplingParams

# What a server answers when it is worth to ask again: it took too long, is too busy or fails itself.
_PASSING = frozenset({408, 425, 429})
_LONGEST_DELAY_S = 60.0
_SHOWN_CHARACTERS = 300
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


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation whose next turn is asked for. The seed is the server's to use; many do."""

    messages: tuple[Message, ...]
    params: SamplingParams
    seed: int


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The assistant's turn; `reasoning` is what the server separated from its content, empty where it does not."""

    content: str
    reasoning: str
    finish: Finish


class TeacherSettings(ServerSettings):
    """Where a teacher is served, and what it is given beyond the problem."""

    instructions: str | None = Field(
        default=None,
        min_length=1,
        description="put after the user's last turn, for example how to write the answer; not kept with the data",
    )


class ChatServer:
    """A model behind a server.

    Raises:
        RecipeError: the variable that should hold the API key is not set.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._url = f"{settings.url}/chat/completions"
        self._api_key = _api_key(settings)
        # A redirect would carry the key to another place, or turn the request into another one.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def complete(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, ChatReply]]:
        """Yields (index into `requests`, reply) as replies come, `concurrency` requests at a time.

        Raises:
            ServerError: a request failed for good; those that are under way are given up.
        """
        waiting = deque(enumerate(requests))
        arrived: queue.SimpleQueue[tuple[int, ChatReply | Exception]] = queue.SimpleQueue()
        abandoned = threading.Event()

        def work() -> None:
            while not abandoned.is_set():
                try:
                    index, request = waiting.popleft()
                except IndexError:
                    return
                try:
                    arrived.put((index, self._reply(request, abandoned)))
                except Exception as error:
                    arrived.put((index, error))
                    abandoned.set()  # here, because whoever looks at the error may take a while to come to it

        # Daemons, unlike the threads of an executor: a server that hangs must not keep the process from ending.
        for _ in range(min(self._settings.concurrency, len(requests))):
            threading.Thread(target=work, name="chat-request", daemon=True).start()
        try:
            for _ in requests:
                with may_wait(self._settings.timeout_s):  # the server's own deadline, which is kept for each attempt
                    index, outcome = arrived.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield index, outcome
        finally:
            abandoned.set()

    def _reply(self, request: ChatRequest, abandoned: threading.Event) -> ChatReply:
        """Asks until there is a reply, or until there is no point in asking again."""
        settings, body = self._settings, json.dumps(self._body(request)).encode()
        attempt = 0
        while True:
            beat()
            try:
                return self._read(self._post(body))
            except _PassingFailure as failure:
                delay_s = failure.retry_after_s
                if delay_s is None:
                    delay_s = min(settings.retry_delay_s * 2**attempt, _LONGEST_DELAY_S)
                if attempt == settings.retries or delay_s > settings.timeout_s or abandoned.wait(delay_s):
                    raise self._given_up(failure, attempt + 1, delay_s) from failure
            attempt += 1

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        params = request.params
        body = {
            "model": self._settings.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "seed": request.seed,
        }
        return body | ({"stop": list(params.stop)} if params.stop else {})

    def _post(self, body: bytes) -> bytes:
        """The body of the server's answer.

        Raises:
            _PassingFailure: it may work the next time.
            ServerError: it will not.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "reasonmill"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._settings.timeout_s) as response:
                answer: bytes = response.read()
                return answer
        except urllib.error.HTTPError as error:
            what = f"HTTP {error.code}{self._detail(error)}"
            if error.code in _PASSING or error.code >= 500:
                raise _PassingFailure(what, _retry_after_s(error.headers.get("Retry-After", "").strip())) from error
            raise ServerError(
                f"the server refused a request: {what}", where=self._url, fix=self._fix(error.code)
            ) from error
        except (OSError, http.client.HTTPException) as error:  # no connection, a broken one, or no answer in time
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _PassingFailure(self._shown(str(reason) or type(reason).__name__), None) from error

    def _read(self, answer: bytes) -> ChatReply:
        try:
            choice = json.loads(answer)["choices"][0]
            message = choice["message"]
            content = message.get("content") or ""
            # Servers name the same thing in two ways.
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
            ending = choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._no_completion(answer) from error
        if not (isinstance(content, str) and isinstance(reasoning, str)):
            raise self._no_completion(answer)
        # Anything else (a content filter, a call of a tool) is no end that the model chose for its text.
        finish: Finish = ending if ending in ("stop", "length") else "abort"
        return ChatReply(content, reasoning, finish)

    def _no_completion(self, answer: bytes) -> ServerError:
        return ServerError(
            f"the server's answer is no chat completion: {self._shown(answer.decode(errors='replace'))}",
            where=self._url,
            fix="check url: it is that of an OpenAI-compatible API, and usually ends with /v1",
        )

    def _given_up(self, failure: _PassingFailure, attempts: int, delay_s: float) -> ServerError:
        tried = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        asked = f", and it asks to wait {delay_s:.0f} s" if delay_s > self._settings.timeout_s else ""
        return ServerError(
            f"no answer from the server after {tried}: {failure}{asked}",
            where=self._url,
            fix="see that the server runs and is not overloaded (concurrency, retries, timeout_s), then run the same "
            "command again",
        )

    def _fix(self, status: int) -> str:
        if status in (401, 403):
            name = self._settings.api_key_env
            return f"put a valid key into {name}" if name else "name the variable that holds your key in api_key_env"
        if 300 <= status < 400:
            return "use the address that the server redirects to as url"
        return "check url (it usually ends with /v1), model and the settings of sampling"

    def _detail(self, error: urllib.error.HTTPError) -> str:
        """What the server says of its refusal, behind a colon; empty where it says nothing."""
        try:
            said = self._shown(error.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            said = ""
        return f": {said}" if said else ""

    def _shown(self, text: str) -> str:
        """A piece of foreign text that is fit to be printed; servers may repeat the key that they refuse."""
        hidden = text.replace(self._api_key, "[the API key]") if self._api_key else text
        line = " ".join("".join(c if c.isprintable() else " " for c in hidden).split())
        return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]} ..."


class _PassingFailure(Exception):
    """A request failed, and may succeed later; in `retry_after_s` seconds where the server says so."""

    def __init__(self, what: str, retry_after_s: float | None) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _api_key(settings: ServerSettings) -> str | None:
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


def _retry_after_s(value: str) -> float | None:
    """Seconds of a Retry-After header, which is a number of seconds or a date; None if it can't be read."""
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
