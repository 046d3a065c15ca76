"""Rewards that a rule decides. Each takes (problem, completion, noise) and gives a number, or None if it can't tell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from reasonmill.protocols import Domain
from reasonmill.randomness import Part, generator
from reasonmill.transcript import final_answer, read_transcript
from reasonmill.types import Completion, Problem
from reasonmill.world.lexicon import language_share

ALL_DOMAINS: frozenset[Domain] = frozenset(get_args(Domain))


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and the domains on whose problems it is a reward."""

    measure: Callable[[Problem, Completion, tuple[Part, ...]], float | None]
    domains: frozenset[Domain]


def format_reward(problem: Problem, completion: Completion, noise: tuple[Part, ...]) -> float:
    """1.0 if the completion is one closed thinking block and then one answer block, else 0.0 (R1 paper, B.3)."""
    return float(completion.finish == "stop" and read_transcript(completion.text).well_formed)


def language_reward(problem: Problem, completion: Completion, noise: tuple[Part, ...]) -> float | None:
    """Share of the words of the problem's language in the thinking (R1 paper, section 3); None if it names no language.

    The paper's share is not defined for thinking without words, of which this reward makes neither a refuge nor an
    offence: there the answer is measured instead, as in general answers that need no thinking. What has no word of
    either language in its thinking nor in its answer earns 0.0, so that a policy can't escape the measure by thinking
    in bare numbers or not at all.
    """
    language = problem.meta.get("language")
    if language is None:
        return None
    thought = language_share(read_transcript(completion.text).thinking, language)
    if thought is not None:
        return thought
    answered = language_share(final_answer(completion.text) or "", language)
    return 0.0 if answered is None else answered


def random_reward(problem: Problem, completion: Completion, noise: tuple[Part, ...]) -> float:
    """A fair coin that never looks at the completion: the control that shows whether a gain is due to the reward."""
    return float(generator("random-reward", *noise).random() < 0.5)


RULES: dict[str, Rule] = {
    "format": Rule(format_reward, ALL_DOMAINS),
    "language": Rule(language_reward, ALL_DOMAINS),
    "random": Rule(random_reward, ALL_DOMAINS),
}
