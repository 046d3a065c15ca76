"""Rewards that a rule decides. Each takes (problem, completion, noise) and gives a number."""

from collections.abc import Callable

from reasonmill.randomness import Part, generator
from reasonmill.transcript import read_transcript
from reasonmill.types import Completion, Problem

RuleReward = Callable[[Problem, Completion, tuple[Part, ...]], float]


def format_reward(problem: Problem, completion: Completion, noise: tuple[Part, ...]) -> float:
    """1.0 if the completion is one closed thinking block and then one answer block, else 0.0 (R1 paper, B.3)."""
    return float(completion.finish == "stop" and read_transcript(completion.text).well_formed)


def random_reward(problem: Problem, completion: Completion, noise: tuple[Part, ...]) -> float:
    """A fair coin that never looks at the completion: the control that shows whether a gain is due to the reward."""
    return float(generator("random-reward", *noise).random() < 0.5)


RULES: dict[str, RuleReward] = {"format": format_reward, "random": random_reward}
