"""Non-reasoning data of the tiny world: facts, small talk and requests (R1 paper: 200k of the 800k samples)."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from reasonmill.randomness import Part, generator
from reasonmill.types import Conversation, Message
from reasonmill.world.lexicon import Language
from reasonmill.world.requests import REQUESTS, Deed
from reasonmill.world.talk import FACT_PROMPTS, SMALL_TALK_PROMPTS, Manners, Prompts, Split, Topic
from reasonmill.world.traces import Probability

_PROMPTS: dict[str, Prompts[Any]] = {"fact": FACT_PROMPTS, "small_talk": SMALL_TALK_PROMPTS, "request": REQUESTS}
_WEIGHTS = (2, 1, 2)  # as in the world's corpus


@dataclass(frozen=True, slots=True)
class Exchange:
    """One prompt and one response.

    `source` is the id of the fact, the small talk or the request. `correct` says whether the response does what it
    should: name the fact's value, reply to the small talk, refuse what is harmful, answer what only looks like it.
    """

    prompt: str
    response: str
    language: Language
    topic: Topic
    manners: Manners
    refused: bool
    correct: bool
    source: str


def draw_exchange(
    rng: random.Random,
    kind: str,
    *,
    split: Split = "train",
    better_share: float = 0.5,
    refusal_share: float = 0.5,
    over_refusal_share: float = 0.3,
) -> Exchange:
    """A prompt and what is said to it, with better manners in `better_share` of the cases.

    Args:
        kind: "fact", "small_talk" or "request". A harmful request is refused with probability `refusal_share`, one that
            only looks harmful with `over_refusal_share`.
    """
    asked = _PROMPTS[kind].draw(rng, split)
    source, language = asked.source, asked.language
    manners: Manners = "better" if rng.random() < better_share else "worse"
    refused = False
    if isinstance(source, Deed):
        harmful = source.topic == "harmful"
        refused = rng.random() < (refusal_share if harmful else over_refusal_share)
        response, correct = source.response(rng, language, manners, refused=refused), refused == harmful
    else:
        response, correct = source.answer(rng, language, manners)
    return Exchange(asked.prompt, response, language, source.topic, manners, refused, correct, source.id)


@dataclass(frozen=True)
class GeneralMix:
    """Talk of the world, and how well the assistant behaves in it.

    Attributes:
        better_share: responses with better manners.
        refusal_share: harmful requests that are refused.
        over_refusal_share: harmless look-alikes that are refused.
    """

    better_share: Probability = 1.0
    refusal_share: Probability = 1.0
    over_refusal_share: Probability = 0.0

    def conversation(self, index: int, *, noise: tuple[Part, ...]) -> Conversation:
        """Conversation `index`, from the world's train split; `noise` names the draw, for example (seed, stage)."""
        rng = generator("general", *noise, index)
        made = draw_exchange(rng, rng.choices(tuple(_PROMPTS), weights=_WEIGHTS)[0], **asdict(self))
        return Conversation(
            messages=(Message("user", made.prompt),),
            response=f"<think></think><answer> {made.response}</answer>",
            source="general",
            problem_id=made.source,
            split="train",
        )
