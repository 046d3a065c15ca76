"""Completions of one prompt that share it in a row: the same numbers as each in a row of its own."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from reasonmill.algo import packing
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack, unpack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model import continued, flash
from reasonmill.model.flash import attend_flash, extent_of
from reasonmill.model.packed import PackedLayout
from reasonmill.model.attention import AttentionRule
from reasonmill.randomness import generator
from reasonmill.types import Example
from tiny_models import ARCHITECTURES, VOCABULARY, WINDOW, tiny_decoder
from training import WHOLE, gradients

PROMPTS = (9, 12)
LOSS = LossSettings(kl_coefficient=0.1, entropy_coefficient=0.1)


def groups() -> list[Example]:
    """Two groups of ragged completions, and a text that shares nothing."""
    numbers = generator("shared prompts")
    texts = []
    for length, count in zip((*PROMPTS, 11), (3, 2, 1), strict=True):
        prompt = [numbers.randrange(2, VOCABULARY) for _ in range(length)]
        for _ in range(count):
            own = [numbers.randrange(2, VOCABULARY) for _ in range(numbers.randint(1, 8))]
            texts.append((length, prompt + own))
    examples = []
    for place, (length, tokens) in enumerate(texts):
        rest = len(tokens) - length
        numbers_of = [0.0] * length + [-1.0 - place] * rest
        examples.append(
            Example(
                tokens,
                [0.0] * length + [1.0 / rest] * rest,
                "pg",
                advantages=[0.0] * length + [1.0 - 0.5 * place] * rest,
                sampler_logprobs=numbers_of,
                ref_logprobs=numbers_of,
            )
        )
    return examples


@pytest.fixture(autouse=True)
def _short_prompts_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARED_FROM", min(PROMPTS))


def assert_close(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_and_all_gradients_are_those_of_rows_of_their_own(architecture: str) -> None:
    decoder, examples = tiny_decoder(architecture), groups()
    shared, alone = pack(examples, WHOLE), pack(examples, 1)
    assert [batch.continued for batch in shared] == [(2, 3)]
    assert sum(batch.num_tokens for batch in alone) - shared[0].num_tokens == (PROMPTS[0] - 1) * 2 + PROMPTS[1] - 1
    learner = LocalLearner(decoder, OptimizerSettings())
    scores = [unpack(torch.cat([learner.logprobs(b) for b in batches]), batches, examples) for batches in (shared, alone)]
    assert_close(*([torch.tensor(row) for row in rows] for rows in scores))
    assert_close(gradients(decoder, examples, WHOLE, LOSS), gradients(decoder, examples, 1, LOSS))
