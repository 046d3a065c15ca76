"""What a completion says: its thinking and its answer, separated by the tags of R1-Zero's template (Table 1)."""

import re
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

_TAG = re.compile(r"(</?(?:think|answer)>)")
_STATES = ("aloud", "thinking", "answer")
_TRANSITIONS = {
    ("aloud", THINK_OPEN): "thinking",
    ("aloud", ANSWER_OPEN): "answer",
    ("thinking", THINK_CLOSE): "aloud",
    ("answer", ANSWER_CLOSE): "aloud",
}


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
    """Takes a completion's text apart, in time linear in its length; any text is accepted.

    Inside thinking only its closing tag means anything. Aloud, a tag that opens or closes nothing spoils the answer,
    and so does a second answer block: a model must not be able to answer with everything that it considered.
    """
    pieces = _TAG.split(text)  # text, tag, text, tag, ..., text
    tags = pieces[1::2]
    # The opening tag may have been part of the prompt, as R1's usage notes advise.
    state = "thinking" if _closes_thinking_first(tags) else "aloud"
    sections: list[tuple[str, list[str]]] = [(state, [])]
    spoiled = False
    for place, piece in enumerate(pieces):
        is_tag = place % 2 == 1
        following = _TRANSITIONS.get((state, piece)) if is_tag else None
        if following is not None:
            state = following
            sections.append((state, []))
        elif not is_tag or state == "thinking":
            sections[-1][1].append(piece)
        else:
            spoiled = True
    said = {name: ["".join(parts).strip() for kind, parts in sections if kind == name] for name in _STATES}
    has_answer = len(said["answer"]) == 1 and state != "answer" and not spoiled
    return Transcript(
        thinking="\n".join(said["thinking"]),
        answer=said["answer"][0] if has_answer else None,
        well_formed=tags == [THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE] and not any(said["aloud"]),
    )


def final_answer(text: str) -> str | None:
    """What a response to a general prompt answers: its answer block, or all of it where it has no tag at all.

    None where there are tags, and no one answer block outside the thinking.
    """
    if not _TAG.search(text):
        return text.strip()
    return read_transcript(text).answer


def with_opening(text: str) -> str:
    """A text from elsewhere with the tag that opens its thinking, where its prompt had that tag and the text does not.

    What is sampled here has it already: see `Renderer.text`.
    """
    return f"{THINK_OPEN}{text}" if _closes_thinking_first(_TAG.findall(text)) else text


def _closes_thinking_first(tags: list[str]) -> bool:
    return next((tag for tag in tags if tag in (THINK_OPEN, THINK_CLOSE)), "") == THINK_CLOSE
