"""The reward function that both sides of `against_trl.py` are given, in TRL's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def even(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """The share of even tokens: it takes no time, and differs between random completions."""
    return [sum(token % 2 == 0 for token in tokens) / max(1, len(tokens)) for tokens in completion_ids]
