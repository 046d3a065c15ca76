"""Batches of a few examples for learners with tiny decoders, and what training on them comes to."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reasonmill.algo.examples import denominator
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder
from reasonmill.randomness import generator
from reasonmill.types import Example
from tiny_models import VOCABULARY

WHOLE = 10_000  # tokens of a batch that holds all examples


def ragged_examples(count: int = 8, *, loss: Any = "pg", seed: int = 0) -> list[Example]:
    """Examples of 4 to 20 tokens with a prompt, as a sampler with somewhat other weights might have drawn them."""
    numbers = generator("learner", seed)
    examples = []
    for _ in range(count):
        length, prompt = numbers.randint(4, 20), numbers.randint(1, 3)
        advantage = numbers.choice([-1.3, 0.4, 1.1])
        examples.append(
            Example(
                tokens=[numbers.randrange(VOCABULARY) for _ in range(length)],
                weights=[0.0] * prompt + [1 / (length - prompt)] * (length - prompt),
                loss=loss,
                advantages=[advantage] * length,
                sampler_logprobs=[numbers.uniform(-6, -2) for _ in range(length)],
                ref_logprobs=[numbers.uniform(-6, -2) for _ in range(length)],
            )
        )
    return examples


def gradients(decoder: Decoder, examples: Sequence[Example], tokens_per_batch: int, loss: LossSettings) -> list[Tensor]:
    learner = LocalLearner(decoder, OptimizerSettings())
    total = denominator(examples, "sequence")
    for batch in pack(examples, tokens_per_batch):
        learner.forward_backward(batch, loss, total)
    grads = [parameter.grad.clone() for parameter in decoder.network.parameters() if parameter.grad is not None]
    decoder.network.zero_grad()
    return grads


def train(learner: LocalLearner, steps: range, learning_rate: float = 1e-2) -> None:
    for step in steps:
        examples = ragged_examples(4, seed=step)
        for batch in pack(examples, WHOLE):
            learner.forward_backward(batch, LossSettings(), denominator(examples, "sequence"))
        learner.optim_step(learning_rate)


def weights_of(learner: LocalLearner) -> dict[str, Tensor]:
    """The learner's weights by name, not copied."""
    return {name: weight.detach() for name, weight in learner.decoder.network.named_parameters()}


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in weights.items()}


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
