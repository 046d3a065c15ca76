"""A conversation with a model, reply by reply, as text that appears while it is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from reasonmill.model.decoder import load_decoder, working_dtype
from reasonmill.randomness import key
from reasonmill.render import renderer_for
from reasonmill.sample.engines import engine_of
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
        self._sampler = EngineSampler(engine_of(self._decoder, self._renderer, num_slots=1))
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
            text = self._cut(self._renderer.text(tokens))
            # A character of several bytes may be unfinished; it is shown once the next token completes it.
            if not text.endswith("�") and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        whole = self._cut(self._renderer.text(tokens), ended=True)
        if len(whole) > len(shown):
            yield whole[len(shown) :]

    def _cut(self, text: str, *, ended: bool = False) -> str:
        """A reply's text up to a stop string, or to what may become one while the reply has not ended."""
        said = len(self._renderer.opening)
        places = [place for stop in self._renderer.stop_strings if (place := text.find(stop, said)) >= 0]
        if places:
            return text[: min(places)]
        beginnings = () if ended else (s[:size] for s in self._renderer.stop_strings for size in range(1, len(s)))
        held_back = max((len(start) for start in beginnings if text[said:].endswith(start)), default=0)
        return text[: len(text) - held_back]
