"""What the figures of a model on a task mean for reinforcement learning.

docs/fitness.md says what the limits are from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from reasonmill.algo.intervals import Estimate
from reasonmill.fitness.figures import Figures

# More ungraded attempts end an evaluation, too.
MOST_UNGRADED = 0.05
# Where most attempts are cut off, their figures are those of the limit.
MOST_CUT_OFF = 0.5
# From this pass@1 on, a model is done with a task.
SATURATED = 0.9
# Share of the groups with right and wrong attempts below which steps have next to nothing to learn from.
LEAST_SIGNAL = 0.2
# Thinking that surely gains less pays nothing.
LEAST_GAIN = 0.05
# Share of attempts in the format, and of problems that are solved in any way, below which a cold start has to bring it.
LEAST_FORMAT, LEAST_REACH = 0.5, 0.5

Outcome = Literal["signal", "guesses", "cold-start", "saturated", "unclear", "limit", "grader"]
Need = Literal["format", "knowledge", "thinking"]


@dataclass(frozen=True)
class Verdict:
    """Whether reinforcement learning will find what to learn.

    Attributes:
        outcome: `signal`: it will, and zero would work. `guesses`: it will, but not for thinking. `cold-start`: it will
            not without one. `saturated`: the model is done with the task. `unclear`: more problems have to be asked.
            `limit`, `grader`: the length or the grader has to be looked at first.
        needs: what a cold start has to bring.
        says: the verdict in words, a sentence each.
    """

    outcome: Outcome
    needs: tuple[Need, ...]
    says: tuple[str, ...]


def judge(figures: Figures) -> Verdict:
    """The verdict by the first rule that holds."""
    if figures.could_not_tell.value > MOST_UNGRADED:
        why = "; ".join(f"{reason} ({count})" for reason, count in figures.reasons.items())
        said = f"Of {_shown(figures.could_not_tell)} of the attempts nobody could tell whether they are right: {why}."
        return Verdict("grader", (), (said, "Look at the grader first."))
    right, signal = figures.pass_at[1], figures.signal
    if right.low >= SATURATED or (signal.high < LEAST_SIGNAL and right.value > 0.5):
        said = f"The model is done with this task: {_shown(right)} of its attempts are right"
        flat = f"and only {_shown(signal)} of the groups have right and wrong ones."
        return Verdict("saturated", (), (f"{said}, {flat}", "Take harder problems."))
    if figures.truncated.value > MOST_CUT_OFF:
        said = f"{_shown(figures.truncated)} of the attempts are cut off by the limit of their length."
        return Verdict("limit", (), (said, "Raise --max-tokens, or look at the template: maybe the model never ends."))
    if signal.high < LEAST_SIGNAL:
        return Verdict("cold-start", *_cold_start(figures))
    if signal.low < LEAST_SIGNAL:
        said = f"Right and wrong attempts are in {_shown(signal)} of the groups: too few or just enough."
        return Verdict("unclear", (), (said, "Ask more problems."))
    return _with_a_signal(figures)


def _with_a_signal(figures: Figures) -> Verdict:
    found = f"{_mixed(figures)} That is what reinforcement learning learns from."
    gain = figures.gain
    if figures.at_once is None:
        said = "Whether thinking pays is not known: nobody can say here whether an answer at once is right."
        return Verdict("signal", (), (found, said, "Zero would work."))
    if gain is None:
        said = "But the model does not think before it answers: it will learn to guess."
        return Verdict("guesses", ("thinking",), (found, said, _BRING_THINKING))
    if gain.low > 0:
        return Verdict("signal", (), (found, f"And thinking pays: {_compared(figures)}.", "Zero would work."))
    if gain.high < LEAST_GAIN:
        said = f"But thinking does not pay: {_compared(figures)}."
        told = (found, said, "So it will learn the format and to guess, not to think.", _BRING_THINKING)
        return Verdict("guesses", ("thinking",), told)
    said = f"Whether thinking pays can't be told yet: {_compared(figures)}."
    return Verdict("unclear", (), (found, said, "Ask more problems."))


_BRING_THINKING = "For a model that reasons, begin with a cold start on worked solutions."


def _cold_start(figures: Figures) -> tuple[tuple[Need, ...], tuple[str, ...]]:
    """(what it has to bring, in words)."""
    needs = dict(_needs(figures))
    told = [f"{_mixed(figures)} Reinforcement learning will hardly find what to learn: a cold start is needed."]
    if figures.reward_signal.low >= LEAST_SIGNAL:
        told.append(f"It would learn what else is rewarded: rewards differ in {_shown(figures.reward_signal)} of them.")
    return tuple(needs), (*told, *needs.values())


def _needs(figures: Figures) -> Iterator[tuple[Need, str]]:
    lacks_format = figures.format.value < LEAST_FORMAT
    if lacks_format:
        yield "format", f"It has to bring the format: {_shown(figures.format)} of the attempts are in it."
    lacks_knowledge = figures.reach.value < LEAST_REACH
    if lacks_knowledge:
        solved = f"{_shown(figures.reach)} of the problems are solved by any attempt or any answer it was made to give"
        yield "knowledge", f"It has to bring knowledge of the task: {solved}."
    if figures.gain is None and figures.at_once is not None:
        yield "thinking", "It has to bring thinking: the model shows none that an answer follows."
    elif figures.gain is not None and figures.gain.low <= 0:
        yield "thinking", f"It has to bring thinking that pays: {_compared(figures)}."
    elif not lacks_format and not lacks_knowledge:
        yield "knowledge", "It has to bring worked solutions of such problems."


def _mixed(figures: Figures) -> str:
    groups = f"groups of {figures.samples}"
    return f"In {_shown(figures.signal)} of the {groups} some attempts are right and others wrong."


def _compared(figures: Figures) -> str:
    if figures.with_thinking is None or figures.at_once is None or figures.gain is None:
        raise ValueError("nothing was compared")
    gain, low, high = (100 * bound for bound in (figures.gain.value, figures.gain.low, figures.gain.high))
    points = f"{gain:+.1f} points, {low:+.1f} to {high:+.1f}"
    return f"{figures.with_thinking.value:.0%} right with it, {figures.at_once.value:.0%} at once ({points})"


def _shown(share: Estimate) -> str:
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
