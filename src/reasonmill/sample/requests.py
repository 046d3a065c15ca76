"""What engines have in common on the host: which requests they refuse, when a completion ends, what it says."""

from __future__ import annotations

from collections.abc import Sequence

from reasonmill.errors import UnsupportedModel
from reasonmill.model.decoder import Decoder, refuse_beyond
from reasonmill.protocols import Renderer
from reasonmill.types import Completion, Finish, Request

# How many more tokens are looked at for a stop string than it has bytes: what is cut in front may read differently.
_MARGIN = 8


def longest(request: Request) -> int:
    """Tokens that the request's sequence may come to."""
    return len(request.prompt_tokens) + request.params.max_tokens


def refuse(request: Request, decoder: Decoder, renderer: Renderer) -> None:
    """Refuses a request that can't be run.

    Raises:
        UnsupportedModel: it does not fit into the model's context, has a token without a row, or is over before it
            begins.
    """
    refuse_beyond(decoder.network, request.prompt_tokens)
    if (last := request.prompt_tokens[-1]) in renderer.stop_tokens:
        raise UnsupportedModel(
            f"a prompt ends in token {last}, which ends a text: what follows would be of no conversation",
            fix="correct the model's chat template, or keep its tokenizer from adding its end token to prompts",
            where=decoder.network.name_or_path,
        )
    limit = decoder.context
    if limit is not None and longest(request) > limit:
        raise UnsupportedModel(
            f"a prompt of {len(request.prompt_tokens)} and a completion of {request.params.max_tokens} tokens "
            f"do not fit into the model's {limit} positions",
            fix="lower max_tokens, or shorten the prompts",
        )


def not_finite(
    request: Request, ticket: int, place: int, counts: tuple[int, int], decoder: Decoder, version: int
) -> UnsupportedModel:
    """The error for logits that are not finite.

    Args:
        place: number of the token that could not be drawn, in the completion of the first request that has such.
        counts: how many requests have such, and of how many.
    """
    return UnsupportedModel(
        f"the model's logits are not finite for {counts[0]} of {counts[1]} requests, the first of them ticket "
        f"{ticket} at token {place} of its completion, behind a prompt of {len(request.prompt_tokens)} tokens",
        fix="the weights are too large for their precision or were spoilt in training: go back to a model from "
        'before, lower schedule.peak, or use precision = "fp32"',
        where=f"{decoder.network.name_or_path}, weights of step {version}",
    )


def stop_strings(request: Request, renderer: Renderer) -> tuple[str, ...]:
    """The texts that end the request's completion: its own, and the model's."""
    return (*request.params.stop, *renderer.stop_strings)


def reach(stops: Sequence[str]) -> int:
    """How many of the last tokens show whether a text has just come to one of its stop strings."""
    return max(len(stop.encode()) for stop in stops) + _MARGIN  # each token has a byte at least


def says(tokens: Sequence[int], stops: Sequence[str], renderer: Renderer) -> bool:
    """Whether the text of the tokens has a stop string."""
    text = renderer.text(tokens)
    return any(stop in text[len(renderer.opening) :] for stop in stops)


def completion(
    request: Request,
    renderer: Renderer,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    finish: Finish,
    version: int,
) -> Completion:
    """What a request has come to."""
    text = renderer.text(tokens)
    # A stop string ends the text, though the tokens that spell it were drawn and stay.
    said = len(renderer.opening)
    ends = [place for stop in stop_strings(request, renderer) if (place := text.find(stop, said)) >= 0]
    return Completion(
        tokens=tuple(tokens),
        logprobs=tuple(logprobs),
        sampled=(True,) * len(tokens),
        text=text[: min(ends)] if ends else text,
        finish=finish,
        policy_version=version,
    )
