"""Runs of single stages, as small as can be, and all that can be seen of them."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from chat_server import Answer, ChatServerFake, chat_server, says
from contexts import a_context
from kept_progress import KeptProgress
from reasonmill.content import directory_digest
from reasonmill.errors import ReasonmillError
from reasonmill.kept_samples import KeptSampler
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.scalar import ScalarLearner
from reasonmill.plugins.catalogue import Catalogue
from reasonmill.recipe.reference import references
from reasonmill.sample.engine import NativeEngine
from reasonmill.servers import client
from reasonmill.stage import Input, StageSettings
from reasonmill.store.home import Home
from reasonmill.store.ledger import Ledger
from reasonmill.store.steps import kept_models
from reasonmill.types import Artifact, Completion, content_digest
from reasonmill.world import blocks

# What a run of a stage came to, by parts; `flips.BITS` are what it made.
Seen = Mapping[str, Any]
API_KEY = "REASONMILL_KNOB_KEY"
# What is no result: times, and what follows from them.
_TIMES = "speed/"


class _Progress(KeptProgress):
    """Keeps what the stage is called, too."""

    def begin(self, stage: str, total: int, unit: str) -> None:
        Watch.note("called", stage)


class Watch:
    """What is done while a stage runs, by kind."""

    _now: ClassVar[dict[str, list[Any]]] = {}

    @classmethod
    def note(cls, kind: str, what: Any) -> None:
        cls._now.setdefault(kind, []).append(what)

    @classmethod
    def take(cls) -> dict[str, list[Any]]:
        seen, cls._now = cls._now, {}
        return seen


@contextmanager
def watched() -> Iterator[None]:
    """In the block, the seams note what passes through them."""

    def noting(owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            note(*args, **kwargs)
            return original(*args, **kwargs)

        patch.setattr(owner, name, noted)

    class Thread(threading.Thread):
        """Of a client, whose threads are as many as the requests that are under way."""

        def start(self) -> None:
            Watch.note("threads", self.name)
            super().start()

    class Event(threading.Event):
        """Waits no time at all."""

        def wait(self, timeout: float | None = None) -> bool:
            Watch.note("delays", timeout)
            return self.is_set()

    class Pool(ThreadPoolExecutor):
        """In place of processes, which take longer to begin than all else."""

        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "ProcessPoolExecutor", Pool)
        noting(LocalLearner, "forward_backward", lambda _, batch, *__: Watch.note("batches", list(batch.lengths)))
        noting(ScalarLearner, "forward_backward", lambda _, row, *__: Watch.note("batches", list(row.lengths)))
        noting(LlamaDecoderLayer, "forward", lambda *_, **__: Watch.note("layers", 1))
        noting(NativeEngine, "step", lambda engine: Watch.note("slots", len(engine._slots.running)))
        noting(KeptSampler, "generate", lambda _, requests, *__: Watch.note("samples", len(requests)))
        noting(Ledger, "commit_state", lambda _, __, step, ___: Watch.note("states", step))
        noting(urllib.request.OpenerDirector, "open", lambda _, __, timeout: Watch.note("timeouts", timeout))
        patch.setattr(client, "threading", SimpleNamespace(Thread=Thread, Event=Event))
        patch.setenv(API_KEY, "secret")
        yield


class Bench:
    """Runs stages over what is made beforehand: models, rollouts, conversations, evaluations.

    Args:
        home: where the stages run.
        made: the directories that settings refer to, by name.
        catalogue: what settings name.
    """

    _runs: ClassVar[Iterator[int]] = itertools.count()  # what a home has under a key is not sampled again

    def __init__(self, home: Home, made: Mapping[str, Path], catalogue: Catalogue, folder: Path) -> None:
        self._home = home
        self._made = dict(made)
        self._catalogue = catalogue
        self._folder = folder
        self._seen: dict[str, Seen] = {}
        self._to_make: dict[str, Mapping[str, Any]] = {}

        for name in made:
            # An evaluation is of both models, so that a gate takes it as one of either.
            of = (digest_of("tiny-base-weak"), digest_of("tiny-base")) if name.endswith("-eval") else ()
            home.ledger.register(Artifact(digest_of(name), "evaluation" if of else "model", name, of, ""))

    def settings(self, table: Mapping[str, Any]) -> StageSettings:
        """The settings of a stage as a recipe's are read.

        Raises:
            ValidationError: they are refused.
        """
        kind = self._catalogue.plugin("stages", str(table["kind"])).made.Settings
        context = {"catalogue": self._catalogue, "folder": self._folder}
        found = kind.model_validate_json(
            json.dumps(table, default=str), strict=True, by_alias=True, by_name=False, context=context
        )
        assert isinstance(found, StageSettings)
        return found

    def see(self, table: Mapping[str, Any], scene: str = "plain") -> Seen:
        """What a stage with these settings comes to; of equal ones, what the first came to."""
        title = json.dumps([table, scene], sort_keys=True, default=str)
        if title not in self._seen:
            self._seen[title] = self._run(table, scene)
        return self._seen[title]

    def make(self, name: str, table: Mapping[str, Any]) -> None:
        """Lets settings refer to what a stage makes by a name; it runs when the first of them does."""
        self._to_make[name] = table

    def _made_as(self, name: str) -> Path:
        if name in self._to_make:
            self._made[name] = self._folder / f"made-{name}"
            self._run(self._to_make.pop(name), "plain", self._made[name])
        return self._made[name]

    def _run(self, table: Mapping[str, Any], scene: str, target: Path | None = None) -> Seen:
        number = next(self._runs)
        stage = f"{number:064}"
        target = target or self._folder / f"made-{number}"
        progress = _Progress()
        with served(scene, table) as (fake, told), _sampler(scene):
            try:
                settings = self.settings(told)
            except ValidationError:
                return {"ended": "ValidationError"}
            inputs = {
                mention.key: Input(self._made_as(mention.value), digest_of(mention.value))
                for mention in references(settings)
            }
            context = a_context(self._home, progress, key=stage, catalogue=self._catalogue)
            run = self._catalogue.plugin("stages", settings.kind).made.run
            Watch.take()
            ended, figures = "", {}
            try:
                outcome = run(settings, inputs, context)
                figures = dict(outcome.metrics)
                target.mkdir()
                outcome.write(target)
            except ReasonmillError as error:
                ended = type(error).__name__
        done = Watch.take()
        ledger = self._home.ledger
        steps = [
            {name: value for name, value in row.items() if not name.startswith(_TIMES)} for row in ledger.metrics(stage)
        ]
        return {
            "made": directory_digest(target) if target.is_dir() else None,
            "groups": ledger.steps(stage),
            "kept": kept_models(self._home, stage),
            "figures": json.dumps([figures, steps], sort_keys=True, default=str),
            "promoted": figures.get("promoted"),
            "asked": asked_of(fake),
            "notes": progress.notes,
            "ended": ended,
            "headers": sorted({str(headers.get("Authorization")) for headers in fake.headers}) if fake else [],
            "slots": max(done.get("slots", [0])),
            "layers": len(done.get("layers", [])),
            **{kind: done.get(kind, []) for kind in ("batches", "samples", "states", "threads", "delays", "called")},
            "timeouts": sorted(set(done.get("timeouts", []))),
        }


@contextmanager
def _sampler(scene: str) -> Iterator[None]:
    """In the scene "apart", samplers say other log-probs than those that they drew with."""

    def apart(engine: NativeEngine) -> list[tuple[int, Completion]]:
        return [(ticket, replace(said, logprobs=shifted(said))) for ticket, said in finished(engine)]

    def shifted(said: Completion) -> tuple[float, ...]:
        return tuple(min(0.0, value + math.sin(1.7 * place)) for place, value in enumerate(said.logprobs or ()))

    finished = NativeEngine.finished
    with pytest.MonkeyPatch.context() as patch:
        if scene == "apart":
            patch.setattr(NativeEngine, "finished", apart)
        yield


def digest_of(name: str) -> str:
    """What stands for the digest of what is made beforehand."""
    return content_digest({"made": name})


def asked_of(fake: ChatServerFake | None) -> list[str]:
    """What a server was asked, in whatever order."""
    if fake is None:
        return []
    return sorted(json.dumps([path, body], sort_keys=True) for path, body in zip(fake.paths, fake.bodies, strict=True))


@contextmanager
def served(scene: str, table: Mapping[str, Any]) -> Iterator[tuple[ChatServerFake | None, dict[str, Any]]]:
    """A server that the settings mean by an address that begins with a slash, where they mean one."""
    addressed = [name for name in ("teacher", "judge", "server") if isinstance(table.get(name), dict)]
    if not addressed:
        yield None, dict(table)
        return
    with chat_server(_SCENES[scene]) as fake:
        root = fake.url.removesuffix("/v1")
        yield fake, {**table, **{name: {**table[name], "url": root + table[name]["url"]} for name in addressed}}


def _answers(body: Mapping[str, Any], number: int) -> Answer:
    """As a teacher or a judge: what is said depends on what is asked, and on nothing else."""

    def drawn(*about: str) -> int:
        return int(content_digest({**body, "messages": about})[:8], 16)

    asked = body["messages"][-1]["content"]
    compared = re.search("ANSWER A\n(.*)\n=+ ANSWER B\n(.*)\n=+\n", asked, re.DOTALL)
    if compared:
        return says("A>>B" if drawn(compared[1]) > drawn(compared[2]) else "B>>A")
    if "INCORRECT" in asked:
        return says(("CORRECT", "INCORRECT")[drawn(asked) % 2])
    return says(f"<think> try {drawn(asked) % 97}</think><answer> {drawn(asked) % 7}</answer>")


def _fails_once(body: Mapping[str, Any], number: int) -> Answer:
    return Answer({"error": "starting"}, status=503) if number == 0 else _answers(body, number)


def _busy_once(body: Mapping[str, Any], number: int) -> Answer:
    busy = Answer({"error": "busy"}, status=429, headers={"Retry-After": "50"})
    return busy if number == 0 else _answers(body, number)


def _ends_oddly(body: Mapping[str, Any], number: int) -> Answer:
    said = _answers(body, number)
    said.body["choices"][0]["finish_reason"] = "whatever"
    return said


_SCENES: Mapping[str, Callable[[dict[str, Any], int], Answer]] = {
    "plain": _answers,
    "apart": _answers,
    "fails once": _fails_once,
    "busy once": _busy_once,
    "ends oddly": _ends_oddly,
}
