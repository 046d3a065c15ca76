"""The format reward: thinking and answer in their places (R1 paper, B.3)."""

from reasonmill.protocols import Attempt
from reasonmill.transcript import read_transcript, with_opening


class FormatReward:
    """Thinking and answer in their places."""

    def measure(self, attempt: Attempt) -> float:
        """1.0 if the completion is one closed thinking block and then one answer block, else 0.0."""
        completion = attempt.completion
        # A model behind a server gives no log-probs, and what its prompt opened is not in what it returns.
        text = completion.text if completion.logprobs is not None else with_opening(completion.text)
        return float(completion.finish == "stop" and read_transcript(text).well_formed)
