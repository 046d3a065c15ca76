"""What both sides of `cpu_vs_trl.py` are given and what is measured of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from reasonmill.plugins.catalogue import installed
from reasonmill.types import Problem

TASK = "countdown-3"
REWARDS = {"accuracy": 1.0, "format": 1.0}


@dataclass(frozen=True)
class Workload:
    """What both sides are given."""

    model: str
    seed: int
    steps: int
    problems: int
    samples: int
    max_tokens: int
    learning_rate: float
    threads: int

    @property
    def rollouts(self) -> int:
        """Completions of one step."""
        return self.problems * self.samples

    def problem(self, index: int) -> Problem:
        """Training problem `index`; step s uses those from s * problems on."""
        return installed().task(TASK).problem("train", self.seed, index)


@dataclass
class Step:
    """One step of one side. `rewards` holds the mean reward of each problem's group, in the order of the problems."""

    step_s: float
    rollout_s: float
    tokens: int
    rewards: list[float]


@dataclass
class Measured:
    """All steps of one run. `total_s` has everything between the first step's begin and the trained model."""

    seed: int
    steps: list[Step]
    total_s: float


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def environment(threads: int) -> dict[str, str]:
    """The same for both sides; nothing is fetched from anywhere."""
    count = str(threads)
    return {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}


def graded(rewards: Sequence[float | None]) -> list[float]:
    """The rewards, of which none may be missing."""
    known = [reward for reward in rewards if reward is not None]
    if len(known) != len(rewards):
        raise RuntimeError("a rollout could not be graded, which the rules of this task never refuse")
    return known
