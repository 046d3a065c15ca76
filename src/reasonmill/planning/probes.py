"""Measurements of a few seconds: the real sampler and the real learner, at the shapes of a stage.

Each begins small and grows to the stage's own shape, as far as its time allows. How long responses are is measured
along the way where enough of them end by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from scipy.optimize import nnls

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import Batch, TextRow, pack, pack_texts
from reasonmill.peak_memory import begin_peak, give_back, memory_of, peak_bytes, used_bytes
from reasonmill.protocols import Learner, Renderer, RewardLearner, Sampler
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.rollouts import collect
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Example, Problem, SamplingParams

Made = TypeVar("Made")

# What a measurement of one shape may take, in seconds, as far as it can be told beforehand.
BUDGET_S = 1.5
_MORE_SEQUENCES, _LONGER, _WIDER = 8, 8, 8
# How many times as long the next shape is taken to last, before two of them were measured.
_FIRST_GROWTH = 3.0
_SHORT = 8  # tokens of the first responses
_NARROW = 512  # tokens of the first row
# Of responses that were cut off before the stage's own limit, so many may be for their mean to say something.
_CUT_OFF = 0.05
# Token ids that every vocabulary has.
_IDS = 32


@dataclass(frozen=True)
class Sampled:
    """How fast a sampler is, in seconds: for each token of a prompt, each step of all its sequences, each token.

    Attributes:
        response, longest: tokens of the mean and of the longest response; None where too many were cut off.
        prompt: tokens of the mean prompt.
        slot_bytes: of each token of a sequence, what was in use beyond the model and copies of its weights; None where
            the system does not say.
        copied_bytes: of copies of weights while all sequences of the stage run.
        load_s: what it took to make the sampler.
    """

    prompt_s: float
    step_s: float
    token_s: float
    prompt: float
    response: float | None
    longest: float | None
    slot_bytes: float | None
    copied_bytes: int = 0
    load_s: float = 0.0


@dataclass(frozen=True)
class Learned:
    """How fast a learner is, in seconds: for each token that is trained on or scored, and each step of its optimizer.

    Attributes:
        activation_bytes: of each token of a row; None where the system does not say.
        row_bytes: of a row, however long it is: the head's gradient before it is added, and what else has its size.
        load_s: what it took to make the learner.
    """

    trained_s: float
    scored_s: float
    step_s: float
    activation_bytes: float | None
    row_bytes: float = 0.0
    load_s: float = 0.0


@dataclass(frozen=True)
class _Run:
    """One call of a sampler: its seconds, and what they were for."""

    seconds: float
    prompts: int
    steps: int
    tokens: int


def measure_sampling(
    sampler: Sampler,
    renderer: Renderer,
    tasks: Mapping[str, NamedTask],
    problems: Sequence[Problem],
    *,
    samples: int,
    params: SamplingParams,
    device: str,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> Sampled:
    """Asks the sampler as a stage does, and grades what comes back.

    Args:
        problems: those of one call of the stage, or as many of them as run at the same time.
        samples: attempts at each.
    """
    runs: list[_Run] = []
    lengths: list[int] = []

    def ask(sequences: int, limit: int) -> float:
        nonlocal lengths
        each = min(sequences, samples)
        began = clock()
        groups = collect(
            sampler,
            renderer,
            tasks,
            problems[: max(1, sequences // samples)],
            rewards=ACCURACY_ALONE,
            num_samples=each,
            params=replace(params, max_tokens=limit),
            noise=("plan", sequences, limit),
        )
        seconds = clock() - began
        lengths = [rollout.completion.num_sampled for group in groups for rollout in group.rollouts]
        prompts = sum(len(group.rollouts[0].prompt_tokens) for group in groups)
        runs.append(_Run(seconds, prompts, max(lengths), sum(lengths)))
        return seconds

    together, limit = len(problems) * samples, min(_SHORT, params.max_tokens)
    ask(1, limit)
    runs.clear()  # the first call makes what later ones reuse
    if device == "cpu":
        give_back(device)
    begin_peak(device)
    before_bytes = used_bytes(device)
    sequences, seconds, growth = 1, ask(1, limit), _FIRST_GROWTH
    while sequences < together and seconds * growth < budget_s:
        sequences, before = min(together, sequences * _MORE_SEQUENCES), seconds
        seconds = ask(sequences, limit)
        growth = seconds / before
    growth = _FIRST_GROWTH
    while limit < params.max_tokens and seconds * growth < 2 * budget_s:
        limit, before = min(params.max_tokens, limit * _LONGER), seconds
        seconds = ask(sequences, limit)
        growth = seconds / before
    peak = peak_bytes(device)
    cut_off = sum(length >= limit for length in lengths) / len(lengths)
    is_known = limit == params.max_tokens or cut_off <= _CUT_OFF
    prompt_s, step_s, token_s = _fit([(run.prompts, run.steps, run.tokens) for run in runs], [r.seconds for r in runs])
    asked = {problem.messages for problem in problems}
    copied = sampler.copied_bytes(sequences)
    used = None if before_bytes is None or peak is None else max(0, peak - before_bytes - copied)
    prompt = sum(len(renderer.render(messages)) for messages in asked) / len(asked)
    return Sampled(
        prompt_s,
        step_s,
        token_s,
        prompt=prompt,
        response=sum(lengths) / len(lengths) if is_known else None,
        longest=float(max(lengths)) if is_known else None,
        slot_bytes=None if used is None else used / (sequences * (prompt + limit)),
        copied_bytes=sampler.copied_bytes(together),
    )


class Passes(Protocol):
    """What a measurement of a learner does: passes over rows of so many tokens, and steps of the optimizer."""

    def train(self, tokens: int) -> int:
        """A forward and a backward pass of about so many tokens; returns how many they were."""

    def score(self, tokens: int) -> int:
        """A forward pass alone."""

    def step(self) -> None:
        """A step of the optimizer on what was gathered, which moves no weight."""


@dataclass(frozen=True)
class LearnerPasses:
    """Passes of a learner over texts of one length."""

    learner: Learner
    text: int

    def train(self, tokens: int) -> int:
        batch = self._batch(tokens)
        self.learner.forward_backward(batch, LossSettings(), float(batch.num_tokens))
        return batch.num_tokens

    def score(self, tokens: int) -> int:
        batch = self._batch(tokens)
        self.learner.logprobs(batch)
        return batch.num_tokens

    def step(self) -> None:
        self.learner.optim_step(0.0)

    def _batch(self, tokens: int) -> Batch:
        made = []
        for length in _lengths(self.text, tokens):
            weights = np.ones(length, np.float32)
            weights[0] = 0.0
            made.append(Example(np.arange(length) % _IDS, weights, "ce"))
        (batch,) = pack(made, max(tokens, self.text))
        return batch


@dataclass(frozen=True)
class RewardPasses:
    """Passes of a reward model's learner over texts of one length."""

    learner: RewardLearner
    text: int

    def train(self, tokens: int) -> int:
        row = self._row(tokens)
        self.learner.forward_backward(row, lambda rewards: rewards, float(len(row.lengths)))
        return sum(row.lengths)

    def score(self, tokens: int) -> int:
        row = self._row(tokens)
        self.learner.rewards(row)
        return sum(row.lengths)

    def step(self) -> None:
        self.learner.optim_step(0.0)

    def _row(self, tokens: int) -> TextRow:
        texts = [[[place % _IDS for place in range(length)]] for length in _lengths(self.text, tokens)]
        (row,) = pack_texts(texts, max(tokens, self.text))
        return row


def measure_learning(
    passes: Passes,
    *,
    row: int,
    device: str,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> Learned:
    """Learns from rows as a stage does, with weights that stay as they are.

    Args:
        row: tokens of one forward pass of the stage.
    """

    def timed(do: Callable[[], Made]) -> tuple[float, Made]:
        began = clock()
        made = do()
        if device == "cuda":  # which is asked, and answers later
            torch.cuda.synchronize()
        return clock() - began, made

    def measured(size: int) -> tuple[float, int, int | None]:
        """Seconds of a row, its tokens, and bytes that were used for it."""
        if device == "cpu":  # where what rows before it had looks as if it were in use
            give_back(device)
        begin_peak(device)
        before = used_bytes(device)
        seconds, tokens = timed(partial(passes.train, size))
        peak = peak_bytes(device)
        return seconds, tokens, None if before is None or peak is None else max(0, peak - before)

    size = min(_NARROW, row)
    # The first one makes what later ones reuse, gradients too. These stay while rows are measured, as in a step of
    # several rows: where the first row makes them, its activations go meanwhile, and less is in use together.
    passes.train(size)
    passes.step()
    passes.train(size)
    # For a shorter row torch would compile a GPU's layers once more.
    shorter = measured(max(1, size // 2)) if device == "cpu" else None
    while True:
        seconds, tokens, most = measured(size)
        wider = min(row, size * _WIDER)
        needed = (most or 0) / tokens * wider
        if size == row or seconds * _WIDER > budget_s or needed > memory_of(device)[0]:
            break
        size = wider
    scoring, scored = timed(partial(passes.score, size))
    stepping, _ = timed(passes.step)
    activations, whatever = line_of((tokens, most) if shorter is None else shorter[1:], (tokens, most))
    return Learned(seconds / tokens, scoring / scored, stepping, activations, whatever)


def line_of(less: tuple[int, int | None], more: tuple[int, int | None]) -> tuple[float | None, float]:
    """Bytes of each token, and those of any row, of the bytes of two rows of so many tokens."""
    (fewer, least), (tokens, most) = less, more
    if least is None or most is None:
        return None, 0.0
    if tokens <= fewer:
        return most / tokens, 0.0
    each = min(max(0.0, (most - least) / (tokens - fewer)), most / tokens)
    return each, most - each * tokens


def _lengths(text: int, tokens: int) -> list[int]:
    """Lengths of texts that make about so many tokens together."""
    return [min(text, tokens)] * max(1, tokens // max(text, 2))


def _fit(work: Sequence[tuple[int, int, int]], seconds: Sequence[float]) -> tuple[float, ...]:
    """What each unit of work takes, none less than nothing: the least squares of relative differences."""
    weights = 1 / np.maximum(np.asarray(seconds), 1e-9)
    found, _ = nnls(np.asarray(work, dtype=float) * weights[:, None], np.ones(len(seconds)))
    return tuple(float(value) for value in found)
