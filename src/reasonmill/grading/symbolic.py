"""math-verify as a second opinion on what our own reader can't decide; sympy computes, so it belongs into a worker."""

from __future__ import annotations

import re
from importlib.util import find_spec

from reasonmill.errors import RecipeError

_MAX_CHARACTERS = 300
# What sympy would compute for hours: powers of powers, long exponents, factorials of what is not small.
_HEAVY = re.compile(r"\^\s*\{?[^{}]{0,40}\^|\^\s*\{?\s*-?\d{4,}|\d{3,}\s*\)?\s*!|!\s*!|\*\*")


def require_math_verify() -> None:
    """Refuses where the extra is missing.

    Raises:
        RecipeError: math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise RecipeError(
            "symbolic = true needs math-verify, which is not installed", fix="pip install 'reasonmill[math]'"
        )


def second_opinion(gold: str, answer: str) -> bool | None:
    """Whether math-verify takes an answer for the reference; None where it can't read one of them, or must not try.

    It has no limit of time of its own here (its own is a signal, which only a main thread gets): the worker has one.
    """
    if max(len(gold), len(answer)) > _MAX_CHARACTERS or _HEAVY.search(gold) or _HEAVY.search(answer):
        return None
    import math_verify

    read = [
        math_verify.parse(f"${text}$", parsing_timeout=None, fallback_mode="no_fallback", raise_on_error=False)
        for text in (gold, answer)
    ]
    if not all(read):
        return None
    try:
        return bool(math_verify.verify(*read, timeout_seconds=None, raise_on_error=True))
    except Exception:  # whatever sympy raises on what it can't compare
        return None
