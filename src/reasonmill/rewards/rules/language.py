"""The language reward: thinking in the language of the question (R1 paper, section 3)."""

from reasonmill.languages import LanguageShare, problem_language
from reasonmill.randomness import Part
from reasonmill.rewards.rule import Rule
from reasonmill.tasks.measures import language_share_of
from reasonmill.transcript import final_answer, read_transcript
from reasonmill.types import Completion, Problem


def language_reward(share: LanguageShare, problem: Problem, completion: Completion) -> float | None:
    """Share of the words of the problem's language in the thinking (R1 paper, section 3); None if it can't be told
    which language the problem is asked in.

    The paper's share is not defined for thinking without words, of which this reward makes neither a refuge nor an
    offence: there the answer is measured instead, as in general answers that need no thinking. What has no word that
    the measure can judge in its thinking nor in its answer earns 0.0, so that a policy can't escape the measure by
    thinking in bare numbers or not at all.
    """
    language = problem_language(problem, share)
    if language is None:
        return None
    thought = share(read_transcript(completion.text).thinking, language)
    if thought is not None:
        return thought
    answered = share(final_answer(completion.text) or "", language)
    return 0.0 if answered is None else answered


def _measured(problem: Problem, completion: Completion, noise: tuple[Part, ...]) -> float | None:
    return language_reward(language_share_of(problem), problem, completion)


RULES = (Rule("language", _measured),)
