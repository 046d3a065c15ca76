"""The native sampler: it draws from a decoder in this process."""

from __future__ import annotations

from reasonmill.model.decoder import Decoder
from reasonmill.protocols import Renderer
from reasonmill.sample.engine import NativeEngine
from reasonmill.sample.sampler import EngineSampler


class NativeSampler(EngineSampler):
    """Samples a decoder through an engine of its own.

    Args:
        num_slots: sequences that run at the same time.
        prefill_tokens: prompt tokens that are read in one forward pass.
    """

    def __init__(
        self, decoder: Decoder, renderer: Renderer, *, num_slots: int = 512, prefill_tokens: int = 8192
    ) -> None:
        super().__init__(NativeEngine(decoder, renderer, num_slots=num_slots, prefill_tokens=prefill_tokens))
