"""The random reward: a control."""

from reasonmill.protocols import Attempt
from reasonmill.randomness import generator


class RandomReward:
    """The control that shows whether a gain is due to the reward."""

    def measure(self, attempt: Attempt) -> float:
        """A fair coin that never looks at the completion."""
        return float(generator("random-reward", *attempt.noise).random() < 0.5)
