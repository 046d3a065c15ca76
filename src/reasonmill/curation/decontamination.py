"""Nothing of an evaluation in the training data: overlap of 10-grams (R1 paper, decontamination).

A token is a word, a number or a sign, so that the numbers and operators of a problem count. A prompt that is shorter
than an n-gram ("make 24 from 3 8 1" has six tokens) is compared as a whole with the data's whole prompts: a part of
another prompt would say little ("make 24 from 3 8 1 5" is another problem). An n-gram that several evaluation problems
share is wording of their task and says nothing of any one of them, so it does not count; a whole prompt always does.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from reasonmill.types import Conversation, Problem

GRAM_TOKENS = 10

Gram = tuple[str, ...]

_TAG = re.compile(r"</?[a-z_]+>")
_TOKEN = re.compile(r"\d+|[^\W\d]+|[^\w\s]")


def tokens_of(text: str) -> Gram:
    """Words, numbers and signs of the text in order, lower-case."""
    return tuple(_TOKEN.findall(text.lower()))


def grams_of(tokens: Gram) -> Iterator[Gram]:
    """All runs of `GRAM_TOKENS` tokens; none of a shorter text."""
    return (tokens[start : start + GRAM_TOKENS] for start in range(len(tokens) - GRAM_TOKENS + 1))


class HeldOut:
    """What evaluation problems say, ready to be looked for.

    Args:
        open_ended: tasks whose gold answer is one of many good ones, made of stock phrases; only their prompts count.
    """

    def __init__(self, problems: Iterable[Problem], *, open_ended: Collection[str] = ()) -> None:
        # The user's turns only: a system prompt stands before every problem, those of the training data as well.
        texts = {
            (
                tuple(tokens_of(message.content) for message in problem.messages if message.role == "user"),
                () if problem.task in open_ended else tokens_of(problem.answer),
            )
            for problem in problems
        }
        self._prompts = {prompt for prompts, _ in texts for prompt in prompts if prompt}
        owners = Counter(
            gram for prompts, answer in texts for gram in {g for text in (*prompts, answer) for g in grams_of(text)}
        )
        self._grams = {gram for gram, num_problems in owners.items() if num_problems == 1}

    def overlaps(self, conversation: Conversation) -> bool:
        """Whether a turn of the user is a held-out prompt, or anything in the conversation shares an n-gram with one
        or with its gold answer."""
        prompts = [tokens_of(message.content) for message in conversation.messages if message.role == "user"]
        # Cut at its tags, so that no n-gram goes from the thinking into the answer.
        said = [tokens_of(text) for text in _TAG.split(conversation.response)]
        if any(prompt in self._prompts for prompt in prompts):
            return True
        return any(gram in self._grams for tokens in (*prompts, *said) for gram in grams_of(tokens))
