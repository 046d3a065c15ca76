"""The length reward: among right answers, the shorter ones are worth more."""

from typing import Annotated, Literal

from pydantic import Field

from reasonmill.errors import RecipeError
from reasonmill.protocols import Attempt


class LengthReward:
    """1.0 up to a length, from there down to 0.0 in a straight line, and 0.0 beyond.

    Whoever is paid for brevity alone stops thinking. So a wrong answer earns 0.0 here, whatever its length, unless
    `counts` says otherwise, and what counts is all that the policy wrote, not only what it calls its thinking.

    Args:
        full: up to so many tokens it is 1.0.
        none: from so many tokens on it is 0.0.
        counts: for right answers, whose worth it takes in the share that the accuracy has; or always.

    Raises:
        RecipeError: `none` is not more than `full`.
    """

    def __init__(
        self,
        full: Annotated[int, Field(ge=0)],
        none: Annotated[int, Field(ge=1)],
        counts: Literal["right", "always"] = "right",
    ) -> None:
        if none <= full:
            raise RecipeError(
                f"a length reward falls from 1.0 at full = {full} to 0.0 at none = {none} tokens, which is no way down",
                fix="set none to more than full",
            )
        self._full = full
        self._none = none
        self._counts = counts

    def measure(self, attempt: Attempt) -> float | None:
        """The share; None where it counts for right answers, and nobody can tell whether this one is."""
        short = min(1.0, max(0.0, (self._none - attempt.completion.num_sampled) / (self._none - self._full)))
        if self._counts == "always":
            return short
        return None if attempt.accuracy is None else attempt.accuracy * short
