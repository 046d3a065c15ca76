"""The forms in which graders look for an answer, and which of them a grader reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reasonmill.types import Problem

_WORK = "I work through it step by step and check the result."


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write a response around an answer.

    Attributes:
        before, after: what stands around the answer.
        thinking: what opens and closes thinking in this form, where the form has such marks.
        is_delimited: whether something marks where the answer ends, so that all that stands within it is the answer.
    """

    name: str
    before: str
    after: str
    thinking: tuple[str, str] | None = None
    is_delimited: bool = True

    def answer(self, text: str) -> str:
        """The answer as this form marks it, without any work before it."""
        return f"{self.before}{text}{self.after}"

    def response(self, text: str, work: str = _WORK) -> str:
        """A whole response that ends with the answer."""
        opening, closing = self.thinking or ("", "")
        return f"{opening}{work}{closing}\n{self.answer(text)}"


# The first of those that serve equally well is taken.
FORMS = (
    Form("<answer>", "<answer>", "</answer>", ("<think>", "</think>")),
    Form("\\boxed{}", "The answer is $\\boxed{", "}$."),
    Form("code block", "```python\n", "\n```"),
    Form("####", "#### ", "", is_delimited=False),
    Form("last line", "", "", is_delimited=False),
    Form("sentence", "The answer is ", ".", is_delimited=False),
)


def form_of(problems: Sequence[Problem], worth: Callable[[Problem, str], float]) -> Form:
    """The form in which gold answers are worth most.

    Args:
        worth: what a response is worth.
    """
    sums = [sum(worth(problem, form.response(problem.answer)) for problem in problems) for form in FORMS]
    return FORMS[sums.index(max(sums))]
