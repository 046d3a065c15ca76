"""Graded groups to examples to train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from reasonmill.algo.losses import Normalisation
from reasonmill.randomness import Part, generator
from reasonmill.types import Example, Group


def pg_examples(
    group: Group, advantages: Sequence[float | None], normalisation: Normalisation, max_tokens: int
) -> list[Example]:
    """Policy-gradient examples of a group's rollouts.

    A rollout gives none if it has no advantage (ungraded) or no token that the policy sampled.

    What an environment wrote weighs nothing, and is no part of a length. With "sequence" and "constant" normalisation a
    completion's weights sum to 1 and to its sampled tokens / max_tokens, so that each completion counts as one, or by
    its length alone; with "token" every sampled token counts as one.

    Raises:
        ValueError: a completion has no log-probs; only a foreign teacher's may lack them.
    """
    examples = []
    for rollout, advantage in zip(group.rollouts, advantages, strict=True):
        completion = rollout.completion
        if advantage is None or not completion.num_sampled:
            continue
        if completion.logprobs is None:
            raise ValueError("a rollout without log-probs can't be trained on by policy gradient")
        prompt = [0.0] * len(rollout.prompt_tokens)
        share = {"token": 1.0, "sequence": 1.0 / completion.num_sampled, "constant": 1.0 / max_tokens}[normalisation]
        examples.append(
            Example(
                tokens=rollout.prompt_tokens + completion.tokens,
                weights=prompt + [share if sampled else 0.0 for sampled in completion.sampled],
                loss="pg",
                advantages=prompt + [advantage] * len(completion.tokens),
                sampler_logprobs=prompt + list(completion.logprobs),
            )
        )
    return examples


def minibatches(examples: Sequence[Example], count: int, noise: tuple[Part, ...]) -> list[list[Example]]:
    """The examples in `count` parts that were drawn, as equal as can be, each in the order in which it was given.

    Fewer examples than parts give parts of one. `noise` names the draw.
    """
    places = list(range(len(examples)))
    generator("minibatches", *noise).shuffle(places)
    bounds = [len(places) * part // count for part in range(count + 1)]
    drawn = [sorted(places[start:stop]) for start, stop in pairwise(bounds)]
    return [[examples[place] for place in part] for part in drawn if part]


def soft_overlong(length: int, longest: int, soft: int) -> float:
    """DAPO's soft punishment (arXiv 2503.14476, equation 13): 0 up to longest - soft tokens, then down to -1."""
    return -min(1.0, max(0.0, (length - (longest - soft)) / soft))


def denominator(examples: Sequence[Example], normalisation: Normalisation) -> float:
    """What a step's summed loss is divided by: its trained tokens, or its completions."""
    if normalisation == "token":
        return math.fsum(float(np.asarray(example.weights, np.float64).sum()) for example in examples)
    return float(len(examples))
