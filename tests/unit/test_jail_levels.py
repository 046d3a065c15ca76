"""Which level of isolation is taken, and what happens where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reasonmill.jail import found
from reasonmill.jail.found import NoJail, found_level
from reasonmill.jail.jail import JailFailed
from reasonmill.jail.level import ACCEPTED, Level

BWRAP, SYSTEMS, LANDLOCK = Level("bubblewrap", Path("/ours")), Level("bubblewrap", Path("/theirs")), Level("landlock")


@pytest.fixture(autouse=True)
def _unknown_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(ACCEPTED, raising=False)
    monkeypatch.setattr(found, "levels", lambda: [BWRAP, SYSTEMS, LANDLOCK])
    found_level.cache_clear()
    yield
    found_level.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, tried: dict[Level, list[str] | JailFailed]) -> None:
    def holes(level: Level) -> list[str]:
        outcome = tried[level]
        if isinstance(outcome, JailFailed):
            raise outcome
        return outcome

    monkeypatch.setattr(found, "holes", holes)


@pytest.mark.parametrize(
    ("tried", "taken"),
    [
        ({BWRAP: []}, BWRAP),
        ({BWRAP: JailFailed("no namespaces"), SYSTEMS: []}, SYSTEMS),
        ({BWRAP: ["the network"], SYSTEMS: JailFailed("not there"), LANDLOCK: []}, LANDLOCK),
    ],
)
def test_the_best_level_that_holds_is_taken(
    monkeypatch: pytest.MonkeyPatch, tried: dict[Level, list[str] | JailFailed], taken: Level
) -> None:
    machine(monkeypatch, tried)
    assert found_level() == taken


def test_without_any_it_is_refused_with_what_was_tried_unless_that_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, {BWRAP: JailFailed("no namespaces"), SYSTEMS: ["sockets"], LANDLOCK: ["reading files"]})
    with pytest.raises(NoJail) as refusal:
        found_level()
    for words in ("/ours): no namespaces", "/theirs) leaves open: sockets", "landlock leaves open: reading files"):
        assert words in refusal.value.what
    assert "reasonmill[jail]" in refusal.value.fix
    assert "--accept-unisolated-code" in refusal.value.fix
    monkeypatch.setenv(ACCEPTED, "1")
    assert found_level() == Level("unisolated")
