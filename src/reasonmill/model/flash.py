"""Attention over sequences of any lengths that lie end to end, without padding: torch's own flash attention, on CUDA.

The kernels read a key head once for all query heads that share it, know windows, and keep an order of summing in the
backward pass where `torch.use_deterministic_algorithms` asks for one. They are operators of their own here, so that
compiled layers hold them; torch's `varlen_attn` has grouped heads in its newest versions only.

Sequences that continue another one attend twice: to their own keys, and, all of them as one sequence, to the keys of
that other one, without a mask. model/continued.py says how the two become one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16)
_WIDEST_HEAD = 256
_HEAD_MULTIPLE = 8
_NO_WINDOW = -1


@dataclass(frozen=True)
class Extent:
    """Where sequences lie, in two tensors, so that compiled code is the same for rows with and without a sequence that
    others continue. Only the operators read them.

    Attributes:
        places: int32, on the device: the ends [B + 1] of all sequences, 0 first. Where F of them, the first ones, are
            continued: then the ends [F + 1] of what continues each, counted from the end of the first ones, and of
            these themselves.
        sizes: int64, on the CPU: how many sequences there are, the longest, the longest of the first ones, the longest
            of what continues one, and where in the row the first ones end, and what continues them.
        reach: positions of the longest text that continues a sequence, that included; 0 where there is none.
    """

    places: Tensor
    sizes: Tensor
    reach: int

    def knows(self, window: int | None) -> bool:
        """Whether a window is none, or hides nothing of a sequence that is continued, which no kernel here could."""
        return window is None or window >= self.reach


def extent_of(lengths: Sequence[int], continued: Sequence[int], device: torch.device) -> Extent:
    """The extent of sequences of these lengths; `continued` as of `PackedLayout`."""
    count = len(continued)
    bounds = list(accumulate(continued, initial=count))
    following = [lengths[start:stop] for start, stop in pairwise(bounds)]
    totals = [sum(own) for own in following]
    places = [*accumulate(lengths, initial=0)]
    if count:
        places += [*accumulate(totals, initial=0), *places[: count + 1]]
    first = sum(lengths[:count])
    sizes = [len(lengths), max(lengths), max(lengths[:count], default=0), max(totals, default=0), first]
    return Extent(
        torch.tensor(places, dtype=torch.int32).to(device),
        torch.tensor([*sizes, first + sum(totals)]),
        max((before + max(own) for before, own in zip(lengths, following, strict=False)), default=0),
    )


def runs_flash(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether the kernels know this attention: on CUDA, in half precision, without a soft cap, and with heads that are
    equally wide in query [H, N, D] and value [K, N, E], by 8, and no wider than 256."""
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in _DTYPES
        and softcap is None
        and width == value.shape[-1]
        and width % _HEAD_MULTIPLE == 0
        and width <= _WIDEST_HEAD
    )


def attend_flash(query: Tensor, key: Tensor, value: Tensor, extent: Extent, scale: float, window: int | None) -> Tensor:
    """query [N, H, D], key and value [N, K, D] of the same positions -> [N, H, D]; a position sees itself and those
    before it in its sequence and in the one that this continues, at most `window` in all, which `extent` must know."""
    states = (query.contiguous(), key.contiguous(), value.contiguous())
    before = _NO_WINDOW if window is None else window - 1
    out: Tensor = _forward(*states, extent.places, extent.sizes, scale, before)[0]
    return out


class _Borders(NamedTuple):
    """What one call of a kernel attends from and to: ends of sequences of queries and of keys, the longest of each,
    whether a query sees only what comes before it, and how many positions at most (-1: all)."""

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    is_causal: bool
    before: int

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, int | None]]:
        """Positional ones, with no dropout, and named ones."""
        whole = self.before == _NO_WINDOW
        positional = (self.queries, self.keys, self.longest_query, self.longest_key, 0.0, self.is_causal and whole)
        window = {"window_size_left": None if whole else self.before, "window_size_right": None if whole else 0}
        return positional, window


class _Row(NamedTuple):
    """A row's calls: each sequence to itself, and queries that continue a sequence to that one, where there are any."""

    own: _Borders
    first: _Borders | None
    keys: slice  # of the first sequences, which are continued
    queries: slice  # of what continues them


def _row(places: Tensor, sizes: Tensor, before: int) -> _Row:
    count, longest, longest_first, longest_following, first, following = sizes.tolist()
    ends, others = places[: count + 1], places[count + 1 :]
    own = _Borders(ends, ends, longest, longest, True, before)
    to_first = None
    if len(others):
        queries, keys = others.chunk(2)
        to_first = _Borders(queries, keys, longest_following, longest_first, False, _NO_WINDOW)
    return _Row(own, to_first, slice(0, first), slice(first, following))


@torch.library.custom_op("reasonmill::flash", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, places: Tensor, sizes: Tensor, scale: float, before: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, normalisers [H, N] and the state of a random generator that draws nothing; `before`: how many
    positions before its own each sees, -1 for all."""
    row = _row(places, sizes, before)
    out, normalisers, state = _attend(query, key, value, row.own, scale)
    if row.first is not None:
        first, of_first, _ = _attend(query[row.queries], key[row.keys], value[row.keys], row.first, scale)
        own, of_own = out[row.queries], normalisers[:, row.queries]
        of_both = torch.logaddexp(of_own, of_first)
        own_share, first_share = (torch.exp(of_part - of_both).T[:, :, None] for of_part in (of_own, of_first))
        own.copy_((own * own_share).addcmul_(first, first_share))  # in fp32
        of_own.copy_(of_both)
    return out, normalisers, state


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, places: Tensor, sizes: Tensor, scale: float, before: int
) -> tuple[Tensor, Tensor, Tensor]:
    normalisers = query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)
    return torch.empty_like(query), normalisers, query.new_empty(2, dtype=torch.uint64)


@torch.library.custom_op("reasonmill::flash_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    normalisers: Tensor,
    state: Tensor,
    places: Tensor,
    sizes: Tensor,
    scale: float,
    before: int,
) -> tuple[Tensor, Tensor, Tensor]:
    row = _row(places, sizes, before)
    gradients = _gradients_of(grad, query, key, value, out, normalisers, state, row.own, scale)
    if row.first is not None:
        queries, keys = row.queries, row.keys
        of_first = _gradients_of(
            grad[queries],
            query[queries],
            key[keys],
            value[keys],
            out[queries],
            normalisers[:, queries].contiguous(),
            state,
            row.first,
            scale,
        )
        for gradient, part, more in zip(gradients, (queries, keys, keys), of_first, strict=True):
            gradient[part] += more
    return gradients


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, normalisers: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, places, sizes, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output, places, sizes)


def _gradients(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, borders: _Borders, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    positional, window = borders.arguments()
    made = torch.ops.aten._flash_attention_forward(query, key, value, *positional, False, scale=scale, **window)
    out, normalisers, state, _, _ = made
    return out, normalisers, state


def _gradients_of(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    normalisers: Tensor,
    state: Tensor,
    borders: _Borders,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    positional, window = borders.arguments()
    of_query, of_key, of_value = torch.ops.aten._flash_attention_backward(
        grad,
        query,
        key,
        value,
        out,
        normalisers,
        *positional,
        state,
        torch.empty(0, device=grad.device),
        scale=scale,
        **window,
    )
    return of_query, of_key, of_value
