"""The format reward: thinking and answer in their places (R1 paper, B.3)."""

from reasonmill.randomness import Part
from reasonmill.rewards.rule import Rule
from reasonmill.transcript import read_transcript
from reasonmill.types import Completion, Problem


def format_reward(problem: Problem, completion: Completion, noise: tuple[Part, ...]) -> float:
    """1.0 if the completion is one closed thinking block and then one answer block, else 0.0 (R1 paper, B.3)."""
    return float(completion.finish == "stop" and read_transcript(completion.text).well_formed)


RULES = (Rule("format", format_reward),)
