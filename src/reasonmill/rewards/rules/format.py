"""The format reward: thinking and answer in their places (R1 paper, B.3)."""

from reasonmill.protocols import Attempt
from reasonmill.transcript import read_transcript


class FormatReward:
    """Thinking and answer in their places."""

    def measure(self, attempt: Attempt) -> float:
        """1.0 if the completion is one closed thinking block and then one answer block, else 0.0."""
        completion = attempt.completion
        return float(completion.finish == "stop" and read_transcript(completion.text).well_formed)
