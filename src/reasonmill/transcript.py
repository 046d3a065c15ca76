"""What a completion says: its thinking and its answer, told apart by the tags of R1-Zero's template (paper, Table 1)."""

import re
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

_WELL_FORMED = re.compile(r"\s*<think>(?P<thinking>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
_ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")


@dataclass(frozen=True, slots=True)
class Transcript:
    """A completion's text, taken apart.

    Attributes:
        thinking: text between the thinking tags; empty where there is none. Thinking that was never closed counts.
        answer: text of the one answer block outside the thinking; None where there is none, or more than one.
        well_formed: whether the text is one thinking block, then one answer block, and nothing else.
    """

    thinking: str
    answer: str | None
    well_formed: bool


def read_transcript(text: str) -> Transcript:
    """Takes a completion's text apart; any text is accepted."""
    match = _WELL_FORMED.fullmatch(text)
    if match and not _TAG.search(match["thinking"]) and not _TAG.search(match["answer"]):
        return Transcript(match["thinking"].strip(), match["answer"].strip(), well_formed=True)
    thinking, visible = _split_thinking(text)
    blocks = _ANSWER_BLOCK.findall(visible)
    # Several answer blocks would let a model answer with everything that it considered.
    answer = blocks[0].strip() if len(blocks) == 1 and not _TAG.search(blocks[0]) else None
    return Transcript(thinking.strip(), answer, well_formed=False)


def _split_thinking(text: str) -> tuple[str, str]:
    """(thinking, the rest). An unclosed thinking block reaches to the end: nothing after it was said aloud."""
    before, opened, after = text.partition(THINK_OPEN)
    if not opened:
        # The tag may have been part of the prompt, as R1's usage notes advise.
        thinking, closed, rest = text.partition(THINK_CLOSE)
        return (thinking, rest) if closed else ("", text)
    thinking, closed, rest = after.partition(THINK_CLOSE)
    return thinking, (before + rest if closed else before)
