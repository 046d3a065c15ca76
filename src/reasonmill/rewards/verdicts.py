"""Verdicts of a judge, committed as they come: nobody is asked twice, also where what was made of them is gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from reasonmill.errors import Interrupted
from reasonmill.store.home import Home

if TYPE_CHECKING:
    from reasonmill.stage import StageContext

Q = TypeVar("Q")
V = TypeVar("V", bound=float | None)  # true and false are numbers, too

VERDICTS_FILE = "verdicts.json"

# Verdicts that are asked for together, and committed before the next are.
AT_ONCE = 256


def verdicts_on(
    questions: Sequence[Q],
    ask: Callable[[Sequence[Q], Callable[[int], None]], Sequence[V]],
    *,
    run: StageContext,
    stage: str,
) -> list[V]:
    """A verdict on each question, in their order: the committed ones of an earlier run, else new ones.

    They outlive the stage: what it made can be rebuilt without the judge, whose verdicts might differ by then.

    Args:
        questions: those of the stage, the same ones each time.
        ask: asks the judge about some of them, and calls the function that it is given with the number answered.
        stage: the stage's name, for messages.

    Raises:
        Interrupted: the user asked to stop; the verdicts so far are kept.
        ServerError: the judge can't be reached, or refuses a request; what it said before is kept.
    """
    home, beside = run.home, verdicts_key(run.key)
    drop_damaged_verdicts(home, run.key)
    verdicts: list[V] = []
    for part, first in enumerate(range(0, len(questions), AT_ONCE)):
        digest = home.ledger.step_groups(beside, part)
        if digest is None:
            if run.stop_requested():
                raise Interrupted(f"stopped stage {stage!r} after {first} of {len(questions)} verdicts")
            waiting = questions[first : first + AT_ONCE]
            given = ask(waiting, partial(_advance, run, first))
            digest = home.objects.put(partial(_write, list(given)))
            home.ledger.commit_step(beside, part, digest)
            run.replies.drop()
        verdicts += json.loads((home.objects.path(digest) / VERDICTS_FILE).read_text(encoding="utf-8"))
    return verdicts


def _advance(run: StageContext, before: int, finished: int) -> None:
    run.progress.advance(before + finished, {})


def _write(verdicts: Sequence[float | None], target: Path) -> None:
    (target / VERDICTS_FILE).write_text(json.dumps(verdicts), encoding="utf-8")


def verdicts_key(key: str) -> str:
    """Under what a stage's verdicts are in the ledger: its own steps may be those of a training."""
    return f"{key}/verdicts"


def drop_damaged_verdicts(home: Home, key: str, *, read: bool = True) -> None:
    """Reports and forgets verdicts that are damaged or missing: a judge can't be held to what it said before.

    Args:
        read: False does without those only that are seen to be damaged, and reads none.
    """
    for part, digest in home.ledger.steps(verdicts_key(key)):
        instead = "the judge is asked again where they are needed"
        if digest is not None and home.objects.sound_path(digest, instead=instead, read=read) is None:
            home.ledger.forget_groups(verdicts_key(key), part)
