"""A family of reasoning-gym as a task."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from reasonmill.errors import RecipeError
from reasonmill.grading.verdict import Isolation
from reasonmill.gym.drawing import DRAWING
from reasonmill.gym.grader import GymGrader
from reasonmill.protocols import Domain
from reasonmill.types import Completion, Grade, Message, Problem


class ReasoningGym:
    """Endless problems of one family. What reasoning-gym does not know is refused with the first of them.

    Args:
        family: as reasoning-gym calls it, such as "chain_sum"; without one, the task grades and has no problems.
        config: what its configuration takes, but for `seed` and `size`.
        ask: whether prompts end with where to write the answer, which R1-Zero's template says already.

    Raises:
        RecipeError: a configuration is given, and no family.
    """

    domain: Domain = "reasoning"
    isolation: Isolation = GymGrader.isolation

    def __init__(self, family: str | None = None, config: dict[str, Any] | None = None, ask: bool = True) -> None:
        if config and family is None:
            raise RecipeError("config is that of a family, and none is named", fix='name one: family = "chain_sum"')
        # Another version has other items: what says the version counts for keys.
        self.files = _says_the_version()
        self._family = family
        self._config = config or {}
        self._ask = ask
        self._grader = GymGrader()

    def prepare(self) -> None:
        """Loads what grading needs, in the process that the workers are forked from."""
        from reasonmill.gym.families import prepare

        if self.files and self._family is not None:
            prepare(self._family, self._config)

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """Problem `index` of a split.

        Raises:
            RecipeError: reasoning-gym is not installed, no family is named, or it knows no such family, configuration
                or split.
        """
        if not self.files:
            raise RecipeError(
                "the task reasoning-gym needs the package of that name, which is not installed",
                fix="install the extra: pip install 'reasonmill[reasoning-gym]'",
            )
        if self._family is None:
            raise RecipeError("no family of reasoning-gym is named", fix='name one, as in family = "chain_sum"')
        item = DRAWING.item(family=self._family, config=self._config, split=split, seed=seed, index=index)
        prompt = f"{item['question']}\n\n{self._grader.asks}" if self._ask else str(item["question"])
        meta = {"family": self._family, "config": self._config, "item": dict(item), "language": "en"}
        return Problem("reasoning-gym", (Message("user", prompt),), item["answer"] or "", meta)

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return (self.problem(split, seed, index) for index in itertools.count())

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [self._grader.judge(problem, completion.text).grade for completion in completions]


def _says_the_version() -> list[Path]:
    """The file of the installed package that names its version; none where it is not installed."""
    try:
        installed = distribution("reasoning-gym")
    except PackageNotFoundError:
        return []
    return [Path(str(installed.locate_file(f"reasoning_gym-{installed.version}.dist-info/METADATA")))]
