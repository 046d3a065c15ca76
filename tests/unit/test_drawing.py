"""The noise against SplitMix64 itself, and draws against the distributions that they claim to be from."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reasonmill.randomness import key
from reasonmill.sample import drawing
from reasonmill.sample.drawing import Filters, draw, uniform

MASK = (1 << 64) - 1


def splitmix64(seed: int, number: int) -> int:
    """Output `number` of the stream, as the paper's program computes it."""
    state = (seed + 0x9E3779B97F4A7C15 * (number + 1)) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def filters(count: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Filters:
    return Filters(
        torch.full((count,), temperature),
        torch.full((count,), top_k),
        torch.full((count,), top_p),
        sorts=top_k > 0 or top_p < 1,
    )


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


# Noise


def test_the_noise_is_splitmix64() -> None:
    # The first outputs for seed 1234567, as published with the generator.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix64(1234567, number) for number in range(4)] == published
    noise = uniform(torch.full((4,), 1234567), torch.arange(4))
    assert noise.tolist() == [(output >> 11) * 2.0**-53 for output in published]


@pytest.mark.parametrize("seed", [0, 1, (1 << 63) - 1, key("sample", 7, "rl", 3, 0, 1)])
def test_the_noise_is_right_for_every_key_and_far_positions(seed: int) -> None:
    positions = [0, 1, 2, 31, 32_767, 1 << 40]
    noise = uniform(torch.full((len(positions),), seed), torch.tensor(positions))
    assert noise.tolist() == [(splitmix64(seed, position) >> 11) * 2.0**-53 for position in positions]
    assert noise.dtype == torch.float64


def test_the_noise_of_neighbouring_keys_and_positions_is_uniform() -> None:
    keys, positions = torch.meshgrid(torch.arange(64), torch.arange(256), indexing="ij")
    noise = uniform(keys.flatten(), positions.flatten())
    counts = torch.histc(noise, bins=16, min=0, max=1)
    expected = noise.numel() / 16
    # 99.9 % quantile of chi-square with 15 degrees of freedom; the draws are fixed.
    assert float(((counts - expected) ** 2 / expected).sum()) < 37.70
    assert len(set(noise.tolist())) == noise.numel()


# Draws


def test_a_row_is_drawn_from_the_same_whatever_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows of a large vocabulary at a time, to the bit."""
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(1))
    mixed = Filters(torch.linspace(0, 1.5, 7), torch.arange(7), torch.linspace(0.3, 1, 7), sorts=True)
    noise = uniform(torch.arange(7), torch.arange(7))
    together = draw(logits, mixed, noise)
    monkeypatch.setattr(drawing, "_CPU_LOGITS", 3 * 11)
    for whole, apart in zip(together, draw(logits, mixed, noise), strict=True):
        assert whole.tolist() == apart.tolist()


@pytest.mark.parametrize(
    ("noise", "token"), [(0.0, 1), (0.2499, 1), (0.2501, 2), (0.7499, 2), (0.7501, 4), (1 - 2**-53, 4)]
)
def test_a_draw_inverts_the_distribution_function(noise: float, token: int) -> None:
    """Tokens 0, 3 and 5 are impossible: not even the ends of the unit interval may give them."""
    logits = logits_of(0.0, 0.25, 0.5, 0.0, 0.25, 0.0)
    tokens, logprobs = draw(logits, filters(1), torch.tensor([noise], dtype=torch.float64))
    assert tokens.tolist() == [token]
    assert logprobs.tolist() == pytest.approx([math.log([0, 0.25, 0.5, 0, 0.25][token])])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        # squares, over their sum of 0.285
        ({"temperature": 0.5}, [0.01 / 0.285, 0.16 / 0.285, 0.0025 / 0.285, 0.09 / 0.285, 0.0225 / 0.285]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        # 0.4 and 0.3 have not reached 0.75 yet, so that 0.15 stays as well
        ({"top_p": 0.75}, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        # top-p sees what top-k leaves: 0.4 / 0.85 and 0.3 / 0.85 have reached 0.8 together, 0.4 and 0.3 had not
        ({"top_k": 3, "top_p": 0.8}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 99}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),
    ],
)
def test_frequencies_and_log_probs_are_those_of_the_distribution(
    settings: dict[str, Any], expected: list[float]
) -> None:
    count = 4000
    keys = torch.tensor([key("draw", number) for number in range(count)])
    noise = uniform(keys, torch.zeros(count, dtype=torch.int64))
    logits = logits_of(0.1, 0.4, 0.05, 0.3, 0.15).expand(count, -1)
    tokens, logprobs = draw(logits, filters(count, **settings), noise)
    counts = torch.bincount(tokens, minlength=5).tolist()
    possible = [token for token in range(5) if expected[token] > 0]
    assert sum(counts[token] for token in possible) == count
    # 99.9 % quantile of chi-square with 4 degrees of freedom; the draws are fixed.
    assert sum((counts[t] - count * expected[t]) ** 2 / (count * expected[t]) for t in possible) < 18.47
    of_each = torch.tensor(expected).log()[tokens]
    torch.testing.assert_close(logprobs, of_each, rtol=1e-5, atol=1e-6)


def test_of_equally_likely_tokens_top_k_keeps_as_many_as_it_says() -> None:
    noise = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    tokens, logprobs = draw(torch.zeros(50, 8), filters(50, top_k=3), noise)
    assert set(tokens.tolist()) == {0, 1, 2}
    assert logprobs.tolist() == pytest.approx([-math.log(3)] * 50)


def test_temperature_zero_takes_the_likeliest_token_and_reports_its_plain_log_prob() -> None:
    tokens, logprobs = draw(logits_of(0.3, 0.6, 0.1), filters(1, temperature=0.0), torch.tensor([0.99]))
    assert tokens.tolist() == [1]
    assert logprobs.tolist() == pytest.approx([math.log(0.6)])


def test_every_row_follows_its_own_settings() -> None:
    rows = Filters(
        torch.tensor([0.0, 1.0, 1.0, 0.5]), torch.tensor([0, 1, 0, 0]), torch.tensor([1.0, 1.0, 0.5, 1.0]), sorts=True
    )
    tokens, logprobs = draw(logits_of(0.4, 0.35, 0.25).expand(4, -1), rows, torch.full((4,), 0.9, dtype=torch.float64))
    squares = 0.4**2 + 0.35**2 + 0.25**2
    assert tokens.tolist() == [0, 0, 1, 2]
    expected = [math.log(0.4), 0.0, math.log(0.35 / 0.75), math.log(0.25**2 / squares)]
    assert logprobs.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_row_without_filters_is_not_filtered_because_another_one_is() -> None:
    """In fp32 the sum over a large vocabulary passes 1 before its end, which must not cut the last tokens off."""
    logits = torch.randn(2, 150_000, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = logits.min() - 1  # the least likely token, and the one that noise 0 draws
    tokens, logprobs = draw(
        logits, Filters(torch.ones(2), torch.tensor([0, 5]), torch.ones(2), sorts=True), torch.zeros(2).double()
    )
    alone = draw(logits[:1], filters(1), torch.zeros(1).double())
    assert tokens[0] == alone[0][0] == 0
    assert logprobs[0].item() == pytest.approx(alone[1][0].item(), abs=1e-5)
    assert tokens[1] == logits[1].topk(5).indices.min()
