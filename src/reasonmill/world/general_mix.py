"""Non-reasoning data of the tiny world: facts, small talk and requests (R1 paper: 200k of the 800k samples)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from reasonmill.randomness import Part, generator
from reasonmill.types import Conversation, Message
from reasonmill.world.requests import request_exchange
from reasonmill.world.talk import FACT_PROMPTS, SMALL_TALK_PROMPTS, Exchange, talk_exchange

_TOPICS = ("fact", "small_talk", "request")
_WEIGHTS = (2, 1, 2)  # as in the world's corpus


class GeneralMix:
    """Talk of the world, and how well the assistant behaves in it.

    Args:
        better_share: responses with better manners.
        refusal_share: harmful requests that are refused.
        over_refusal_share: harmless look-alikes that are refused.
    """

    def __init__(
        self,
        better_share: Annotated[float, Field(ge=0, le=1)] = 1.0,
        refusal_share: Annotated[float, Field(ge=0, le=1)] = 1.0,
        over_refusal_share: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        self._better_share = better_share
        self._refusal_share = refusal_share
        self._over_refusal_share = over_refusal_share

    def conversation(self, index: int, *, noise: tuple[Part, ...]) -> Conversation:
        """Conversation `index`, from the world's train split; `noise` names the draw, for example (seed, stage)."""
        exchange = self._exchange(index, noise)
        return Conversation(
            messages=(Message("user", exchange.prompt),),
            response=f"<think></think><answer> {exchange.response}</answer>",
            source="general",
            problem_id=exchange.source,
        )

    def _exchange(self, index: int, noise: tuple[Part, ...]) -> Exchange:
        rng = generator("general", *noise, index)
        topic = rng.choices(_TOPICS, weights=_WEIGHTS)[0]
        if topic == "request":
            return request_exchange(
                rng,
                better_share=self._better_share,
                refusal_share=self._refusal_share,
                over_refusal_share=self._over_refusal_share,
            )
        prompts = FACT_PROMPTS if topic == "fact" else SMALL_TALK_PROMPTS
        return talk_exchange(rng, prompts, better_share=self._better_share)
