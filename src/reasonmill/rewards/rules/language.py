"""The language reward: thinking in the language of the question (R1 paper, section 3)."""

from reasonmill.randomness import Part
from reasonmill.rewards.rule import Rule
from reasonmill.transcript import final_answer, read_transcript
from reasonmill.types import Completion, Problem
from reasonmill.world.lexicon import language_share


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


RULES = (Rule("language", language_reward),)
