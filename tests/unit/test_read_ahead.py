"""Texts that workers read for their languages: when they are asked, and that it changes no answer."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from reasonmill import languages
from reasonmill.plugins.catalogue import Catalogue, TaskUse
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.rewards.read_ahead import PROCESSORS, SHORT, ReadAhead
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Message, Problem
from reasonmill.workers.answers import Failed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")

ENGLISH = "First we add the numbers and then we check whether the sum is even, \ud800 as it was before. " * 3
GERMAN = "Dann teilen wir das Ergebnis durch zwei und sehen, ob etwas davon am Ende übrig bleibt. " * 3


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "_REMEMBERED", type(languages._REMEMBERED)())


class Asked:
    """Workers that note what they are asked, and fail."""

    def __init__(self, size: int = PROCESSORS) -> None:
        self.size = size
        self.calls: list[Any] = []

    def ask(self, plugin: Any, call: Any, **_: Any) -> Any:
        self.calls.append(call)
        return self

    def value(self) -> Any:
        raise Failed("it was killed")


@pytest.fixture
def task() -> Iterator[NamedTask]:
    catalogue = Catalogue({"tasks": {"sums": TaskUse.model_validate({"use": "math"})}})
    with catalogue.workers.limited_to(PROCESSORS):
        yield catalogue.task("sums")


def graded(task: NamedTask, thinking: str) -> float | None:
    """The language that the grade of a completion has."""
    problem = Problem("sums", (Message("user", "What is 2 + 2?"),), "4", {"language": "en"})
    completion = Completion((1,), (0.0,), (True,), f"<think>{thinking}</think><answer>4</answer>", "stop", 0)
    begun = [ACCURACY_ALONE.begin(task, problem, each, noise=(0,)) for each in (completion, completion)]
    first, second = ACCURACY_ALONE.grade(task, problem, [completion, completion], noise=(), begun=begun)
    assert first == second
    assert first.parts["accuracy"] == 1.0
    return first.parts["language"]


def test_workers_read_what_this_process_then_need_not(task: NamedTask, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {text: languages.words_by_language(text) for text in (ENGLISH, f"{ENGLISH}{GERMAN}")}

    read: list[str] = []

    def noted(text: str) -> dict[str, float]:
        read.append(text)
        return {}

    monkeypatch.setattr(languages, "words_by_language", noted)
    for text, words in expected.items():
        assert graded(task, text) == words["en"] / sum(words.values())
    assert read == [""]  # whether the language is known at all


def test_a_text_that_no_worker_could_read_is_read_here() -> None:
    workers: Any = Asked()
    wait = ReadAhead(workers)(ENGLISH)
    assert [call.text for call in workers.calls] == [ENGLISH]
    wait()
    assert languages.language_share(ENGLISH, "en") == 1.0


@pytest.mark.parametrize(
    ("processors", "text"),
    [(PROCESSORS - 1, ENGLISH), (PROCESSORS, ENGLISH[: SHORT - 1]), (PROCESSORS, GERMAN)],
    ids=["none to spare", "short", "read before"],
)
def test_workers_are_not_asked(processors: int, text: str) -> None:
    workers: Any = Asked(processors)
    languages.language_share(GERMAN, "de")
    ReadAhead(workers)(text)()
    assert workers.calls == []


def test_tasks_with_a_measure_of_their_own_have_nothing_read() -> None:
    assert Catalogue().task("countdown").read_ahead is None
