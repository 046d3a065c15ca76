"""A conversation with a model, reply by reply, as text that appears while it is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from reasonmill.model.decoder import load_decoder, working_dtype
from reasonmill.randomness import key
from reasonmill.render import renderer_for
from reasonmill.sample.engine import NativeEngine
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Message, Request, SamplingParams

# What R1's authors advise for talking to it: temperature 0.6, top-p 0.95.
_TEMPERATURE, _TOP_P = 0.6, 0.95
_LONGEST_REPLY = 2048


class ChatSession:
    """Replies of one model; the same conversation with the same seed gets the same reply."""

    def __init__(self, model_dir: Path, device: str, *, seed: int = 0) -> None:
        self._decoder = load_decoder(model_dir, device=device, dtype=working_dtype("auto", device))
        self._renderer = renderer_for(model_dir)
        self._sampler = EngineSampler(NativeEngine(self._decoder, self._renderer, num_slots=1))
        self._seed = seed

    def reply(self, messages: Sequence[Message]) -> Iterator[str]:
        """Pieces of the reply's text, thinking tags included.

        Raises:
            UnsupportedModel: the conversation fills the model's context.
        """
        prompt = self._renderer.render(messages)
        context = self._decoder.context
        room = _LONGEST_REPLY if context is None else min(_LONGEST_REPLY, context - len(prompt))
        params = SamplingParams(temperature=_TEMPERATURE, top_p=_TOP_P, max_tokens=max(1, room))
        request = Request(prompt, params, key("chat", self._seed, len(messages), *prompt))
        tokens: list[int] = []
        shown = ""
        for token in self._sampler.stream(request):
            tokens.append(token)
            text = self._renderer.text(tokens)
            # A character of several bytes may be unfinished; it is shown once the next token completes it.
            if not text.endswith("�") and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
