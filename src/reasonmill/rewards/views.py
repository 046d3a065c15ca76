"""What a reward model is shown of a response."""

from __future__ import annotations

from collections.abc import Mapping

from reasonmill.protocols import Preference, View
from reasonmill.transcript import final_answer

# Helpfulness looks at the final answer alone, so that it does not touch the reasoning; safety looks at all that is said
# (R1 paper, section on the rewards of the second RL stage).
VIEWS: Mapping[Preference, View] = {"helpfulness": "answer", "safety": "response"}


def shown(text: str, view: View) -> str | None:
    """What a reward model is shown of a completion's text; None where it has no final answer to show."""
    return text if view == "response" else final_answer(text)
