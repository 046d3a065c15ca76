"""The random reward: a control."""

from reasonmill.randomness import Part, generator
from reasonmill.rewards.rule import Rule
from reasonmill.types import Completion, Problem


def random_reward(problem: Problem, completion: Completion, noise: tuple[Part, ...]) -> float:
    """A fair coin that never looks at the completion: the control that shows whether a gain is due to the reward."""
    return float(generator("random-reward", *noise).random() < 0.5)


RULES = (Rule("random", random_reward),)
