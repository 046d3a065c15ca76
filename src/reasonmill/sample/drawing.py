"""Drawing tokens: temperature, top-k, top-p, and noise that is a function of request and position alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), its constants as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def uniform(keys: Tensor, positions: Tensor) -> Tensor:
    """Numbers in [0, 1) as float64 [n]: output number `positions` [n] of the SplitMix64 streams `keys` [n] (int64)."""
    state = keys + _GOLDEN * (positions + 1)
    state = (state ^ _shift(state, 30)) * _MIX1
    state = (state ^ _shift(state, 27)) * _MIX2
    state = state ^ _shift(state, 31)
    return _shift(state, 11).double() * 2.0**-53


def _shift(values: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


# Logits that a CPU draws from together: of a large vocabulary a few rows, which stay in its cache. Rows are drawn
# from one by one, whatever stands beside them.
_CPU_LOGITS = 1 << 19


@dataclass(frozen=True)
class Filters:
    """Sampling settings of the rows of a batch, each a tensor [n]; `sorts` says whether any row needs sorting."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    sorts: bool

    def of(self, rows: slice) -> Filters:
        return Filters(self.temperature[rows], self.top_k[rows], self.top_p[rows], self.sorts)


def draw(logits: Tensor, filters: Filters, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one token a row by inverting the distribution function at `noise`.

    Args:
        logits: [n, V] in fp32.
        noise: [n] uniform numbers; not used by rows of temperature 0, which take the likeliest token.

    Returns:
        tokens [n] and their log-probs [n] in the distribution that was drawn from. A greedy token's log-prob is
        that at temperature 1, since the one-point distribution would always report 0.
    """
    if logits.device.type == "cpu" and logits.shape[0] > (size := max(1, _CPU_LOGITS // logits.shape[1])):
        parts = [slice(start, start + size) for start in range(0, logits.shape[0], size)]
        drawn = [draw(logits[part], filters.of(part), noise[part]) for part in parts]
        tokens, logprobs = (torch.cat(values) for values in zip(*drawn, strict=True))
        return tokens, logprobs
    greedy = filters.temperature == 0
    temperature = torch.where(greedy, 1.0, filters.temperature)
    # To divide by 1 changes nothing, and takes as long as any pass over the logits.
    tempered = logits if bool((temperature == 1).all()) else logits / temperature[:, None]
    logprobs = torch.log_softmax(tempered, dim=-1)
    if filters.sorts:
        logprobs = _filtered(logprobs, filters)
    cumulative = logprobs.exp().cumsum_(-1)
    # The total is 1 up to rounding; scaling by it keeps the last token from being drawn by rounding alone.
    total = cumulative[:, -1]
    # noise * total can round up to the total itself, which no token lies above.
    threshold = torch.minimum(noise.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, threshold[:, None], right=True).squeeze(1)
    if bool(greedy.any()):
        tokens = torch.where(greedy, logits.argmax(-1), tokens)
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)


def _filtered(logprobs: Tensor, filters: Filters) -> Tensor:
    """Log-probs renormalised on the tokens that top-k and then top-p keep; the likeliest token always stays."""
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    vocabulary = ordered.shape[1]
    top_k = torch.where(filters.top_k > 0, filters.top_k, vocabulary)
    ranks = torch.arange(vocabulary, device=logprobs.device)
    ordered = ordered.masked_fill(ranks >= top_k[:, None], float("-inf"))
    mass = torch.softmax(ordered, dim=-1)
    # A token stays if the likelier ones together have not reached top_p. By rounding they may reach 1 before the end.
    top_p = torch.where(filters.top_p < 1, filters.top_p, float("inf"))
    ordered = ordered.masked_fill(mass.cumsum(-1) - mass >= top_p[:, None], float("-inf"))
    ordered = torch.log_softmax(ordered, dim=-1)
    return torch.empty_like(logprobs).scatter_(1, order, ordered)
