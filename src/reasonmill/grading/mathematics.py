"""The grader of mathematics: is the answer equal to the reference, whatever the spelling of the two?

What it says "right" to is equal, exactly: a rounded number is not the number. What it can't read or compute within its
bounds is "could not tell". It computes in the process that asks, on a tree of its own; nothing that a model wrote is
ever evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from reasonmill.errors import RecipeError
from reasonmill.grading import math_words as words
from reasonmill.grading.math_compare import same
from reasonmill.grading.math_congruences import congruence_of
from reasonmill.grading.math_node import Node
from reasonmill.grading.math_reader import MAX_CHARACTERS, read_mathematics
from reasonmill.grading.math_reference import (
    BASED,
    bare,
    base_of,
    digits_in,
    meaning_of,
    read_plain,
    read_reference,
    reference_text,
    trimmed,
    without_box,
    without_ordinal,
)
from reasonmill.grading.math_special import Undecided, based_answer, same_congruence, same_moment
from reasonmill.grading.math_spelling import plain_mathematics
from reasonmill.grading.math_tokens import Unreadable
from reasonmill.grading.math_values import NoValue, TooLarge, exact_value, real_order, same_value, symbols
from reasonmill.grading.places import ASKS, Place, answer_text, check_place, find_answer
from reasonmill.grading.symbolic import require_math_verify, second_opinion
from reasonmill.grading.verdict import Isolation, Verdict
from reasonmill.types import Problem

_SHOWN = 60
_BEST_FIRST = ("right", "could not tell", "wrong")
_COMMAND = re.compile(r"\\[A-Za-z]{2,}")
_NUMBERS = re.compile(r"\d[\d,]*(?:\.\d+)?")
_PLAIN_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?")
_TIME = re.compile(r"\d{1,2}:\d\d")
_PERCENT = re.compile(r"\\?%|⟦?\s*\bper ?cent(?:age|s)?\b\s*⟧?", re.IGNORECASE)
# What says that a number is meant to be none: "\neq 3", or struck out.
_NOT_EQUAL = re.compile(r"^\s*\\(?:ne|not)(?![A-Za-z])|\\(?:[bx]?cancel|sout)(?![A-Za-z])")
_COPIED = 20
_LARGEST = 1000
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d+)")


class MathGrader:
    """Decides whether the final answer of a response equals the reference.

    Args:
        answer_in: where the answer stands: auto, answer, boxed, last-line, last-number or pattern.
        pattern: a regular expression; its group is the answer.
        tolerance: by which share of the reference a real number may differ; 0 asks for equality.
        symbolic: whether math-verify is asked where this grader can't tell; it has to compute in a worker then.

    Raises:
        RecipeError: the place or the tolerance is none.
    """

    def __init__(
        self,
        answer_in: Place = "auto",
        pattern: str | None = None,
        tolerance: float = 0.0,
        symbolic: bool = False,
    ) -> None:
        if symbolic:
            require_math_verify()
        self.isolation: Isolation = "worker" if symbolic else "none"
        self._symbolic = symbolic
        self._pattern = check_place(answer_in, pattern)
        self._place = answer_in
        self._tolerance = check_tolerance(tolerance)
        self.asks = ASKS[answer_in]

    def answer_of(self, response: str) -> str | None:
        """The final answer of a response, as it writes it; None where there is none."""
        return answer_text(find_answer(response, self._place, self._pattern))

    def judge(self, problem: Problem, response: str) -> Verdict:
        """Judges one response by its final answer.

        `problem.answer` may be a whole solution that ends with the reference, and `problem.meta["answers"]` may list
        others that are right as well.
        """
        golds = [reference_text(answer) for answer in (problem.answer, *map(str, problem.meta.get("answers", ())))]
        found = find_answer(response, self._place, self._pattern)
        if not found.texts:
            return Verdict.wrong(found.reason, {"answered": 0.0})
        prompt = problem.messages[-1].content
        each = [self._of_all(gold, found.texts, prompt) for gold in golds]
        verdict = min(each, key=lambda verdict: _BEST_FIRST.index(verdict.outcome))
        several = (
            found.prose and not words.offers_several(found.texts[0]) and len(re.findall(r"\d+", found.texts[0])) > 1
        )
        if verdict.outcome == "wrong" and several and any(_may_name(gold, found.texts[0]) for gold in golds):
            return Verdict.could_not_tell("no final answer is marked, and the last line has several numbers")
        return verdict

    def _of_all(self, gold: str, texts: Sequence[str], prompt: str) -> Verdict:
        if len(texts) == 1:
            return self._of_one(gold, texts[0], prompt)
        each = [self._of_one(gold, text, prompt) for text in texts]
        if all(verdict.outcome == "right" for verdict in each):
            return each[0]
        readable = read_reference(gold).is_words or all(map(_is_mathematics, texts))
        if not readable:
            return Verdict.wrong(f"it gives {len(texts)} final answers that differ", {"answered": 1.0})
        together = self._of_one(gold, ", ".join(texts), prompt)
        if together.outcome == "wrong":
            return Verdict.wrong(f"it gives {len(texts)} final answers that differ", {"answered": 1.0})
        return together

    def _of_one(self, gold: str, answer: str, prompt: str) -> Verdict:
        try:
            right, reason = _decide(gold, answer, prompt, self._tolerance)
        except Undecided as error:
            opinion = second_opinion(gold, answer) if self._symbolic else None
            if opinion is None:
                return Verdict.could_not_tell(str(error))
            right, reason = opinion, "by math-verify"
        except (ArithmeticError, RecursionError, ValueError) as error:  # of sizes that no bound foresaw
            return Verdict.could_not_tell(f"the answer can't be computed: {type(error).__name__}: {error}")
        parts = {"answered": 1.0}
        return Verdict.right(reason, parts) if right else Verdict.wrong(reason, parts)


def _is_mathematics(text: str) -> bool:
    try:
        read_plain(words.without_prefix(trimmed(plain_mathematics(without_box(text[: 20 * MAX_CHARACTERS])))))
    except Unreadable:
        return False
    return True


def _may_name(gold: str, text: str) -> bool:
    reference = read_reference(gold)
    return reference.node is None or _names(reference.node, text)


def check_tolerance(tolerance: float) -> Fraction:
    """The tolerance as a fraction.

    Raises:
        RecipeError: it is not in [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise RecipeError(f"tolerance must lie in [0, 1), got {tolerance}", fix="0.01 lets an answer differ by 1 %")
    return Fraction(str(tolerance))


def _decide(gold: str, answer: str, prompt: str, tolerance: Fraction) -> tuple[bool, str]:
    """Whether an answer is right, and what can be said about it.

    Raises:
        Undecided: it can't be told.
    """
    reference = read_reference(gold)
    if _PLAIN_NUMBER.fullmatch(answer) and reference.is_number:
        right = reference.value == Fraction(answer)
        return right, "" if right else f"{answer} is not {reference.plain[:_SHOWN]}"
    answer = without_box(answer)
    if not answer.strip():
        return False, "the answer is empty"
    plain = without_ordinal(trimmed(plain_mathematics(answer[: 20 * MAX_CHARACTERS])))
    shown = plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}..."
    if not plain:
        return False, "the answer is empty"
    if answer.rstrip(" .*_`$)").endswith("?") and "?" not in gold and not re.search(r"[.!]\s", answer):
        return False, "the answer is a question"
    if bare(plain) == bare(reference.plain):
        return True, ""
    plain = words.without_prefix(plain)
    if bare(plain) == bare(reference.plain):
        return True, ""
    wrong = False, f"{shown} is not {words.without_marks(reference.plain)[:_SHOWN]}"
    if words.doubts(plain) and not words.doubts(reference.plain):
        return False, "it leaves open whether this is the answer"
    option, text = words.option_of(reference.plain)
    if option:
        chosen = words.chosen(plain) if words.letters_of(plain) else ""
        if chosen and words.letters_of(plain) != {option}:
            return wrong
        if chosen:
            if words.denies_choice(plain):
                return False, "the answer says that it is none"
            beside = words.beside_choice(plain)
            return _decide(text, beside, prompt, tolerance) if _is_mathematics(beside) else (True, "")
        return _decide(text, answer, prompt, tolerance)
    letter = words.choice_of(reference.plain)
    if letter:
        if words.chosen(plain) == letter:
            return (False, "the answer says that it is none") if words.denies_choice(plain) else (True, "")
        if words.chosen(plain) or len(words.letters_of(plain) | {letter}) > 1:
            return wrong
    if words.letters_listed(reference.plain) and words.letters_listed(plain):
        return (True, "") if words.letters_listed(plain) == words.letters_listed(reference.plain) else wrong
    if reference.moment is not None:
        said = same_moment(reference, plain)
        if said is not None:
            return (True, "") if said else wrong
    if reference.congruence is not None:
        return (True, "") if same_congruence(reference, plain) else wrong
    if reference.base is not None:
        return (True, "") if digits_in(reference.base[0], plain) == reference.base[1] else wrong
    if reference.is_words:
        return _same_words(reference.plain, plain, wrong)
    if reference.node is None:
        raise Undecided(f"the reference can't be read: {reference.reason}")
    if words.ends_in_a_unit(plain) and not reference.is_number and not words.ends_in_a_unit(reference.plain):
        return False, "it has a unit where a number is due"
    based = BASED.fullmatch(plain)
    if based and base_of(based):
        return (True, "") if based_answer(reference.node, based) else wrong
    congruence = congruence_of(plain)
    if congruence is not None and reference.is_number:
        return (True, "") if {reference.value} == congruence.written == congruence.residues else wrong
    if _PERCENT.search(plain) and not any(map(_PERCENT.search, (reference.plain, prompt))):
        plain = _PERCENT.sub("*(1/100)", plain)  # nobody speaks of percent, so that it must mean what it is
    right, reason = _compare(reference.node, plain, prompt, tolerance, wrong)
    if right and _TIME.fullmatch(reference.plain):
        raise Undecided("the reference is a time of day or a ratio, and the answer is equal only as a ratio")
    return right, reason


def _compare(gold: Node, plain: str, prompt: str, tolerance: Fraction, wrong: tuple[bool, str]) -> tuple[bool, str]:
    try:
        node = read_plain(plain)
    except Unreadable as error:
        return _in_words(gold, plain, prompt, error, tolerance, wrong)
    if words.denies(plain):
        return False, "the answer says that it is none"
    try:
        if same(gold, node, _equality(tolerance)):
            if words.qualified(plain) and re.search(r"\d", plain):
                raise Undecided("it says something about the number besides naming it")
            if _is_copied(gold, node, plain, prompt):
                return False, "it is copied from the problem, and not worked out"
            return True, ""
    except NoValue as error:
        return False, f"the answer has no value: {error}"
    except TooLarge as error:
        if exact_value(gold) is not None or _largest(gold) <= _LARGEST:
            return False, "it is far larger than the reference"
        raise Undecided(f"the answer can't be computed: {error}") from error
    except Unreadable as error:
        raise Undecided(str(error)) from error
    _consider_other_readings(gold, plain, tolerance)
    if symbols(node) and not symbols(gold) and _has_unit(node) and re.search(r"\d", plain):
        raise Undecided("it is not clear what is a unit in the answer, and what is unknown")
    if _other_list(gold, plain, tolerance) or _number_in_words(gold, plain, tolerance):
        return True, ""
    return wrong


def _has_unit(node: Node) -> bool:
    return node.kind == "unit" or any(map(_has_unit, node.parts))


def _other_list(gold: Node, plain: str, tolerance: Fraction) -> bool:
    """Whether "100,200" is meant as two numbers, where the reference is a list."""
    if gold.kind not in ("list", "group") or not re.search(r"\d,\d{3}", plain):
        return False
    try:
        return same(gold, read_mathematics(plain, thousands=False), _equality(tolerance))
    except (Unreadable, NoValue):
        return False


def _number_in_words(gold: Node, plain: str, tolerance: Fraction) -> bool:
    """Whether words between its digits make one number of an answer, where the reference is one."""
    said = words.number_with_words(plain)
    return bool(said) and exact_value(gold) is not None and same(gold, read_mathematics(said), _equality(tolerance))


def _consider_other_readings(gold: Node, plain: str, tolerance: Fraction) -> None:
    """Raises where the answer is right if it is read in a way that is less usual."""
    comma = _DECIMAL_COMMA.fullmatch(plain)
    readings = [(f"{comma[1]}.{comma[2]}", False)] if comma else []
    if re.search(r"/\s*\(?[^\s+\-*/)]*\d*\s*[\\A-Za-z(]", plain):
        readings.append((plain, True))
    for text, tight in readings:
        try:
            right = same(gold, read_mathematics(text, tight=tight), _equality(tolerance))
        except (Unreadable, NoValue):
            continue
        if right:
            what = "a decimal comma" if not tight else "a fraction whose denominator goes on"
            raise Undecided(f"it is right if it is read as {what}")


def _in_words(
    gold: Node, plain: str, prompt: str, error: Unreadable, tolerance: Fraction, wrong: tuple[bool, str]
) -> tuple[bool, str]:
    """An answer that reads as no mathematics: a number spelled out, a sentence, or something else."""
    if exact_value(gold) is not None and _NOT_EQUAL.search(plain):
        return False, "the answer says what it is not"
    if words.names_beside(plain) or (exact_value(gold) is not None and words.offers_several(plain)):
        return False, "it gives several final answers"
    spelled = words.number_with_words(plain) or words.with_digits(words.without_marks(plain))
    said, unclear = (spelled, "") if spelled else words.number_in_sentence(plain)
    if said:
        try:
            node = read_mathematics(said)
            return (True, "") if same(gold, node, _equality(tolerance)) else wrong
        except (Unreadable, NoValue):
            raise Undecided(f"the answer can't be read: {error}") from error
    if re.fullmatch(r"[-\d.,\s]+", plain) and len(plain) > MAX_CHARACTERS:
        return False, "it is a number of other length than the reference"
    if len(plain) > MAX_CHARACTERS:
        return False, f"the answer is longer than {MAX_CHARACTERS:,} characters"
    if len(plain) >= _COPIED and bare(plain) in bare(plain_mathematics(prompt)):
        return False, "it is copied from the problem"
    if unclear and _names(gold, plain):
        raise Undecided(f"the answer is a sentence, and {unclear}")
    # No response may escape its grade by being odd: what no mathematics could mean is wrong. Only commands of LaTeX may
    # mean something that this reader does not know.
    if error.mathematical and _COMMAND.search(plain):
        raise Undecided(
            f"the answer can't be read: {error}; the extra math (pip install 'reasonmill[math]') and "
            "the setting symbolic = true read more"
        )
    return False, f"the answer is no mathematics: {error}"


def _names(gold: Node, text: str) -> bool:
    """Whether one of the numbers in a text is the reference, as far as that can be seen."""
    wanted = exact_value(gold)
    numbers = _NUMBERS.findall(text)
    return wanted is None or any(Fraction(number.replace(",", "")) == wanted for number in numbers)


def _same_words(gold: str, plain: str, wrong: tuple[bool, str]) -> tuple[bool, str]:
    wanted, given = words.words_of(gold), words.words_of(plain)
    if wanted == given or "".join(wanted) == "".join(given) != "":
        return True, ""
    if meaning_of(wanted) == meaning_of(given) != "":
        return True, ""
    if words.same_names(gold, plain):
        if "," in gold and not words.AND.search(gold):
            raise Undecided("the same names in another order")
        return True, ""
    if wanted and (words.names_beside(plain, gold) or words.offers_another(plain, gold)):
        return False, "it gives several final answers"
    if wanted and words.contains_words(plain, wanted) and not words.NEGATIONS.search(words.without_marks(plain)):
        raise Undecided("the answer has the words of the reference, and others")
    return wrong


def _equality(tolerance: Fraction) -> Callable[[Node, Node], bool]:
    if not tolerance:
        return _same_numbers

    def close(gold: Node, answer: Node) -> bool:
        return _same_numbers(gold, answer) or _within(gold, answer, tolerance)

    return close


def _same_numbers(gold: Node, answer: Node) -> bool:
    """Equality of expressions; a logarithm without a base may have either of the two usual ones."""
    right = same_value(gold, answer)
    if _has_log(gold) or _has_log(answer):
        natural = same_value(_natural(gold), _natural(answer))
        if natural != right:
            raise Unreadable("it depends on the base of log")
    return right


def _within(gold: Node, answer: Node, tolerance: Fraction) -> bool:
    if symbols(gold) or symbols(answer):
        return False
    try:
        one, two = real_order(gold), real_order(answer)
    except Unreadable:
        return False
    return bool(abs(float(one) - float(two)) <= float(tolerance) * abs(float(one)))


def _has_log(node: Node) -> bool:
    return (node.kind == "call" and node.name == "log" and len(node.parts) == 1) or any(map(_has_log, node.parts))


def _natural(node: Node) -> Node:
    parts = tuple(map(_natural, node.parts))
    name = "ln" if node.kind == "call" and node.name == "log" and len(parts) == 1 else node.name
    return node._replace(parts=parts, name=name)


def _is_copied(gold: Node, node: Node, plain: str, prompt: str) -> bool:
    """Whether the answer repeats a calculation of the prompt that the reference is the result of."""
    if gold.kind != "number" or not _calculates(node):
        return False
    repeated = bare(plain)
    return len(repeated) >= 3 and repeated in bare(plain_mathematics(prompt))


def _calculates(node: Node) -> bool:
    if node.kind in ("sum", "power", "call"):
        return True
    if node.kind == "product" and not (
        len(node.parts) == 2 and node.parts[0].kind == "number" and node.parts[0].value == -1
    ):
        return True
    if node.kind == "relation":
        return False
    return any(map(_calculates, node.parts))


def _largest(node: Node) -> Fraction:
    """The largest number that is written in an expression."""
    own = abs(node.value) if node.kind == "number" else Fraction(0)
    return max(own, *map(_largest, node.parts), Fraction(0))
