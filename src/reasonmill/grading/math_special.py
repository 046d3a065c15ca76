"""References that are no numbers or expressions: times of day, dates, congruences, numbers in a base."""

from __future__ import annotations

import re

from reasonmill.grading import math_words as words
from reasonmill.grading.math_congruences import congruence_of
from reasonmill.grading.math_moments import Date, moment_in
from reasonmill.grading.math_node import Node
from reasonmill.grading.math_reference import Reference, base_of, read_plain, value_in
from reasonmill.grading.math_tokens import Unreadable
from reasonmill.grading.math_values import exact_value, symbols


class Undecided(Exception):
    """Why it can't be told whether an answer is right."""


def same_moment(reference: Reference, plain: str) -> bool | None:
    """Whether an answer is the time of day or the date that the reference is; None where the two may be ratios.

    Raises:
        Undecided: it can't be told.
    """
    moment, given = reference.moment, moment_in(plain)
    if isinstance(moment, Date):
        if isinstance(given, Date):
            return moment.same(given)
        if moment.day and words.without_marks(plain).strip(" .") == str(moment.day):
            raise Undecided("the reference is a date, and the answer a number")
        return False
    if moment is None or given is None or isinstance(given, Date):
        return None if reference.node is not None else False
    is_same = moment.same(given)
    if is_same is None:
        raise Undecided("only one of the two says which half of the day it is")
    return None if not is_same and reference.node is not None else is_same


def same_congruence(reference: Reference, plain: str) -> bool:
    """Whether an answer has the numbers of the congruence that the reference is.

    Raises:
        Undecided: it can't be told.
    """
    congruence, given = reference.congruence, congruence_of(plain)
    assert congruence is not None
    if given is not None:
        return congruence.same(given)
    if not congruence.name and plain in map(str, congruence.written):
        return len(congruence.written) == 1
    try:
        is_expression = bool(symbols(read_plain(words.without_prefix(plain))))
    except Unreadable:
        return False
    if is_expression:
        raise Undecided("the reference is a congruence, and the answer is none")
    return False


def based_answer(gold: Node, based: re.Match[str]) -> bool:
    """Whether an answer that names its base is right, where the reference names none.

    Raises:
        Undecided: it can't be told.
    """
    base, digits = base_of(based), based[1]
    wanted = exact_value(gold)
    if wanted is None:
        return False
    value = value_in(base, digits)
    if base == 10:
        return value == wanted
    if str(wanted) == digits:
        return True
    if value == wanted:
        raise Undecided("the answer names another base than the reference")
    return False
