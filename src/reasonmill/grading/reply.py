"""What a response says to the reader: its thinking left out."""

from __future__ import annotations

import re

from reasonmill.grading.places import after_thinking
from reasonmill.transcript import ANSWER_OPEN, read_transcript

_FENCED = re.compile(r"\A```[A-Za-z]*[ \t]*\n(.*?)\n?```\Z", re.DOTALL)


def reply_of(response: str) -> str | None:
    """The reply without the thinking; what stands in the answer block where there is one.

    None where the thinking never ends, or where answer tags are there and no one answer block: nothing was said then.
    """
    said = after_thinking(response)
    if said is None:
        return None
    return read_transcript(response).answer if ANSWER_OPEN in said else said.strip()


def without_fence(text: str) -> str:
    """The text within a fence of code, where the whole text is one; otherwise the text."""
    fenced = _FENCED.match(text.strip())
    return fenced[1].strip() if fenced else text.strip()
