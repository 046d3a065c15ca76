"""What answers may hold where a scorer evaluates them: the jail keeps them from the machine, and this from the verdict.

Some scorers of reasoning-gym call `eval` on the answer, others sympy's `parse_expr`, which evaluates, too. What they
evaluate runs in the process that says whether it is right, and could make it say so.
"""

from __future__ import annotations

import ast
import re

# How the class of a family's data set evaluates answers, as its source shows.
_EVAL = re.compile(r"(?<![\w.])(?:eval|exec)\(")
_PARSE = re.compile(r"\b(?:parse_expr|sympify|lambdify)\(")
_FORMULA = re.compile(r"[A-Za-z0-9\s+\-*/^().,]*")
_NAME = re.compile(r"[A-Za-z]\w*")
_CALLED = re.compile(r"([A-Za-z]\w*|\))\s*\(")
_MEMBER = re.compile(r"\.\s*[A-Za-z]")
_FUNCTIONS = frozenset(
    f"{arcus}{name}{hyperbolic}"
    for name in ("sin", "cos", "tan", "cot", "sec", "csc")
    for arcus in ("", "a")
    for hyperbolic in ("", "h")
) | {"exp", "log", "ln", "sqrt", "Abs", "abs", "sign", "erf", "pi"}


def may_be_evaluated(answer: str, source: str, known: str) -> bool:
    """Whether a scorer can be shown an answer without its code deciding anything.

    Args:
        source: of the class that scores.
        known: the item's own answer and question: functions that they name may be used.
    """
    if _EVAL.search(source) and not _calls_nothing(answer):
        return False
    return not _PARSE.search(source) or _is_formula(answer, known)


def _calls_nothing(answer: str) -> bool:
    """Whether Python that an answer may be calls no function: it has no parenthesis, or is a literal."""
    if "(" not in answer:
        return True
    try:
        ast.literal_eval(answer)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_formula(answer: str, known: str) -> bool:
    """Whether an answer has numbers, unknowns of one letter, operators and well-known functions, and nothing else."""
    functions = _FUNCTIONS | set(_NAME.findall(known))
    names = set(_NAME.findall(answer))
    return (
        _FORMULA.fullmatch(answer) is not None
        and not _MEMBER.search(answer)
        and all(len(name) == 1 or name in functions for name in names)
        and all(called[1] in _FUNCTIONS or called[1] in _functions_of(known) for called in _CALLED.finditer(answer))
    )


def _functions_of(known: str) -> set[str]:
    return {called[1] for called in _CALLED.finditer(known)} - {")"}
