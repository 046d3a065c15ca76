"""Open questions of everyday life, for data that keeps a chat model one. Nobody wrote answers to them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from reasonmill.tasks.splits import SPLITS, split_of
from reasonmill.types import Message, Problem


class EverydayQuestions:
    """Some five hundred questions in English; what a question is about decides its split."""

    def problems(self) -> Mapping[str, Sequence[Problem]]:
        """The questions of each split, in the order of the table."""
        return {split: [problem for problem in _all() if problem.split == split] for split in SPLITS}


@cache
def _all() -> Sequence[Problem]:
    table = tomllib.loads(Path(__file__).with_name("everyday.toml").read_text(encoding="utf-8"))
    return [
        Problem(
            "everyday",
            (Message("user", ask.format(topic=topic)),),
            "",
            {"language": "en", "cluster": topic},
            split=split_of("everyday", topic),
        )
        for form in table["forms"]
        for topic in form["topics"]
        for ask in form["ask"]
    ]
