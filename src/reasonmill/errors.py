"""Errors a user can act on: each says what is wrong, why, how to fix it, and where."""

import difflib
from collections.abc import Collection


def suggestion(text: str, known: Collection[str]) -> str:
    """The known name that was probably meant, as a sentence; empty where none is close."""
    close = difflib.get_close_matches(text, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


class ReasonmillError(Exception):
    """Base of all errors that reach the user as a message instead of a traceback.

    Args:
        what: one sentence that says what is wrong and why.
        fix: one sentence that says what to do about it.
        where: the file, key or argument at fault.
    """

    exit_code = 1

    def __init__(self, what: str, *, fix: str = "", where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.where = where

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class RecipeError(ReasonmillError):
    """The recipe, an override or another argument of the user is wrong."""

    exit_code = 2


class StoreError(ReasonmillError):
    """The home can't be read or written, or what it holds is damaged."""

    exit_code = 3


class OutOfSpace(StoreError):
    """No space is left on the home's disk; what was committed is safe, and the same command resumes."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try the same command again


class UnsupportedModel(ReasonmillError):
    """The native engine can't run this model; the message names the part it can't run."""

    exit_code = 4


class OutOfMemory(ReasonmillError):
    """The device's memory does not suffice; what was committed is safe, and the same command resumes."""

    exit_code = 13


class TrainingDiverged(ReasonmillError):
    """Losses, gradients or what they are made from stopped being finite for several updates in a row."""

    exit_code = 5


class TooManyUngraded(ReasonmillError):
    """More rollouts than the stage allows could not be graded."""

    exit_code = 6


class SamplerMismatch(ReasonmillError):
    """Sampler and learner give what was sampled other log-probs than the stage allows."""

    exit_code = 8


class RewardHacked(ReasonmillError):
    """A second verifier does not confirm what the reward claims to be right, and the stage is to stop then."""

    exit_code = 9


class NotAdopted(ReasonmillError):
    """A finished result of other code can't be taken over; the message says which one, and why."""

    exit_code = 7


class Interrupted(ReasonmillError):
    """The user or the system asked the run to stop; the same command resumes it."""

    exit_code = 130  # 128 + SIGINT, as a shell reports it

    def __init__(self, what: str, *, fix: str = "the same command resumes this run", where: str = "") -> None:
        super().__init__(what, fix=fix, where=where)


class Hung(ReasonmillError):
    """A phase gave no sign of progress for twice its deadline; what was committed is safe, the same command resumes."""

    exit_code = 75  # EX_TEMPFAIL, as for a full disk
