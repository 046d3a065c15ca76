"""A client of any server that speaks OpenAI's chat completions: the way to teachers and judges.

Only what most such servers understand is sent, and settings leave out or rename what one does not. A reply that fails
for reasons that pass (too many requests, a server that restarts, a broken connection) is asked for again after a while;
everything else is reported to the user. Replies that arrived are kept before anything else happens.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from reasonmill.activity import beat, may_wait
from reasonmill.servers.replies import (
    ChatReply,
    ErrorInside,
    NoCompletion,
    Said,
    finish_of,
    read_answer,
)
from reasonmill.servers.settings import Parameter, ServerError, ServerSettings, api_key
from reasonmill.types import Message, SamplingParams, content_digest

# What a server answers when it is worth to ask again: it took too long, is too busy or fails itself.
_PASSING = frozenset({408, 409, 425, 429})
# What it answers when it is too busy, which says nothing against the request.
_BUSY = frozenset({429, 529})
_LONGEST_DELAY_S = 60.0
_OTHER_URL = "check url: it is that of an OpenAI-compatible API, and usually ends with /v1"
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation whose next turn is asked for. The seed is the server's to use; many do."""

    messages: tuple[Message, ...]
    params: SamplingParams
    seed: int


class Replies(Protocol):
    """Where replies are kept, by the names of their requests, until what is made of them is committed."""

    def find(self, request: str) -> Said | None:
        """A reply that was kept by this process or by an earlier one."""

    def keep(self, said: Mapping[str, Said]) -> None:
        """Keeps replies; they are durable when this returns."""


class _Forgotten:
    """Keeps nothing."""

    def find(self, request: str) -> Said | None:
        return None

    def keep(self, said: Mapping[str, Said]) -> None:
        pass


class ChatServer:
    """A model behind a server.

    Args:
        replies: keeps each reply when it arrives, and has those that need not be asked for again.

    Raises:
        RecipeError: the variable that should hold the API key is not set.
    """

    def __init__(self, settings: ServerSettings, replies: Replies | None = None) -> None:
        self._settings = settings
        self._replies = replies or _Forgotten()
        self._url = f"{settings.url}/chat/completions"
        self._api_key = api_key(settings)
        # A redirect would carry the key to another place, or turn the request into another one.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def complete(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, ChatReply]]:
        """Yields (index into `requests`, reply) as replies come, `concurrency` requests at a time.

        Raises:
            ServerError: a request failed for good, or a reply ended for an unknown reason; replies to requests that are
                under way then are waited for and kept.
        """
        names = _names(requests)
        found = {index: said for index, name in enumerate(names) if (said := self._replies.find(name)) is not None}
        for index, said in found.items():
            yield index, self._reply(said)
        waiting = deque((index, request) for index, request in enumerate(requests) if index not in found)
        arrived: queue.SimpleQueue[tuple[int, Said | Exception] | None] = queue.SimpleQueue()
        abandoned = threading.Event()

        def work() -> None:
            while not abandoned.is_set():
                try:
                    index, request = waiting.popleft()
                except IndexError:
                    break
                try:
                    arrived.put((index, self._ask(request, abandoned)))
                except Exception as error:
                    arrived.put((index, error))
                    abandoned.set()  # here, because whoever looks at the error may take a while to come to it
            arrived.put(None)

        # Daemons, unlike the threads of an executor: a server that hangs must not keep the process from ending.
        at_work = min(self._settings.concurrency, len(waiting))
        for _ in range(at_work):
            threading.Thread(target=work, name="chat-request", daemon=True).start()
        failure: Exception | None = None
        try:
            while at_work:
                # The server's own deadline, which is kept for each attempt, and what it asks to wait.
                with may_wait(self._settings.timeout_s + self._settings.patience_s):
                    came = [arrived.get(), *_come_meanwhile(arrived)]
                at_work -= came.count(None)
                for index, said in self._kept(came, names):
                    try:
                        if failure is None:
                            yield index, self._reply(said)
                    except ServerError as error:
                        failure = error
                errors = [outcome[1] for outcome in came if outcome is not None and isinstance(outcome[1], Exception)]
                failure = next(iter([*filter(None, [failure]), *errors]), None)
                if failure is not None:
                    abandoned.set()
            if failure is not None:
                raise failure
        finally:
            abandoned.set()
            self._kept(_come_meanwhile(arrived), names)

    def _kept(
        self, came: Sequence[tuple[int, Said | Exception] | None], names: Sequence[str]
    ) -> list[tuple[int, Said]]:
        """What came without the errors, all of which is kept."""
        said = [(item[0], item[1]) for item in came if item is not None and isinstance(item[1], Said)]
        if said:
            self._replies.keep({names[index]: reply for index, reply in said})
        return said

    def _reply(self, said: Said) -> ChatReply:
        finish = finish_of(said.ending, self._settings.finish_reasons)
        if finish is None:
            raise ServerError(
                f"a reply ended for a reason that is not known: finish_reason {self._shown(said.ending)!r}",
                where=self._url,
                fix='say what it means, for example finish_reasons = { "the reason" = "stop" } ("length" for a reply '
                'that was cut off, "abort" for one that counts for nothing), then run the same command again: what was '
                "said so far is kept",
            )
        return ChatReply(said.content, said.reasoning, finish)

    def _ask(self, request: ChatRequest, abandoned: threading.Event) -> Said:
        """Asks until there is a reply, or until there is no point in asking again."""
        settings, body = self._settings, json.dumps(self._body(request)).encode()
        failures, waits = 0, 0
        busy_since: float | None = None
        while True:
            beat()
            try:
                return self._read(self._post(body), request.params.max_tokens)
            except _PassingFailure as failure:
                now = time.monotonic()
                busy_since = (busy_since or now) if failure.is_busy else None
                failures += not failure.is_busy
                asked = failure.retry_after_s
                delay_s = min(settings.retry_delay_s * 2**waits, _LONGEST_DELAY_S) if asked is None else asked
                waits += 1
                if busy_since is None:
                    is_lost = failures > settings.retries
                else:
                    is_lost = now - busy_since + delay_s > settings.patience_s
                if is_lost or abandoned.wait(delay_s):
                    raise self._given_up(failure, waits, asked) from failure

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        params, renamed = request.params, self._settings.parameters
        drawing: dict[Parameter, Any] = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "seed": request.seed,
        }
        if params.stop:
            drawing["stop"] = list(params.stop)
        return {
            "model": self._settings.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            **{name: value for key, value in drawing.items() if (name := renamed.get(key, key))},
        }

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
            raise self._refusal(error.code, self._detail(error), error.headers.get("Retry-After", "")) from error
        except (OSError, http.client.HTTPException) as error:  # no connection, a broken one, or no answer in time
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _PassingFailure(self._shown(str(reason) or type(reason).__name__)) from error

    def _refusal(self, status: int, detail: str, retry_after: str = "") -> _PassingFailure | ServerError:
        what = f"HTTP {status}{detail}"
        wait_s = _retry_after_s(retry_after.strip())
        # Who has paid all that there was to pay is not served by waiting.
        if (status in _PASSING or status >= 500) and "insufficient_quota" not in detail:
            return _PassingFailure(what, wait_s, is_busy=status in _BUSY or wait_s is not None)
        return ServerError(f"the server refused a request: {what}", where=self._url, fix=self._fix(status))

    def _read(self, answer: bytes, max_tokens: int) -> Said:
        try:
            return read_answer(answer, max_tokens)
        except ErrorInside as error:
            said = f" within HTTP 200: {self._shown(str(error))}"
            if error.status is None:
                raise _PassingFailure(f"an error{said}") from error
            raise self._refusal(error.status, said) from error
        except NoCompletion as error:
            # A gateway whose model is being started answers like this, too.
            shown = self._shown(answer.decode(errors="replace"))
            raise _PassingFailure(f"the server's answer is no chat completion: {shown}", fix=_OTHER_URL) from error

    def _given_up(self, failure: _PassingFailure, attempts: int, asked_s: float | None) -> ServerError:
        tried = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        asked = f", and it asks to wait {asked_s:.0f} s" if asked_s is not None else ""
        return ServerError(
            f"no answer from the server after {tried}: {failure}{asked}",
            where=self._url,
            fix=failure.fix
            or "see that the server runs and is not overloaded (concurrency, retries, timeout_s, patience_s), then run "
            "the same command again",
        )

    def _fix(self, status: int) -> str:
        if status in (401, 403):
            name = self._settings.api_key_env
            return f"put a valid key into {name}" if name else "name the variable that holds your key in api_key_env"
        if 300 <= status < 400:
            return "use the address that the server redirects to as url"
        return (
            "check url (it usually ends with /v1), model and sampling; a parameter that the server "
            'does not take is left out or renamed: parameters = { seed = false, max_tokens = "max_completion_tokens" }'
        )

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
    """A request failed, and may succeed later.

    Attributes:
        retry_after_s: in so many seconds, where the server says that.
        is_busy: whether the server only has too much to do.
        fix: what to do where it does not pass, if that is something of its own.
    """

    def __init__(self, what: str, retry_after_s: float | None = None, *, is_busy: bool = False, fix: str = "") -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s
        self.is_busy = is_busy
        self.fix = fix


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _names(requests: Sequence[ChatRequest]) -> list[str]:
    """A name for each request that says all of it; of equal ones, the number of those before it, too."""
    names, seen = [], Counter[str]()
    for request in requests:
        digest = content_digest(asdict(request))
        names.append(f"{digest[:32]}-{seen[digest]}")
        seen[digest] += 1
    return names


def _come_meanwhile(
    arrived: queue.SimpleQueue[tuple[int, Said | Exception] | None],
) -> list[tuple[int, Said | Exception] | None]:
    came = []
    while not arrived.empty():
        came.append(arrived.get())
    return came


def _retry_after_s(value: str) -> float | None:
    """Seconds of a Retry-After header, which is a number of seconds or a date; None if it can't be read."""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
