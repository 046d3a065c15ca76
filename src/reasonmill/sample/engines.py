"""Which engine runs a decoder."""

from __future__ import annotations

from reasonmill.model.decoder import Decoder
from reasonmill.protocols import Engine, Renderer
from reasonmill.sample.engine import NativeEngine


def engine_of(decoder: Decoder, renderer: Renderer, *, num_slots: int) -> Engine:
    """The engine of the device that the decoder is on."""
    if decoder.device.type == "cuda":
        # Imported only here: its kernels need Triton, which torch brings along on CUDA alone.
        from reasonmill.sample.cuda.engine import CudaEngine

        return CudaEngine(decoder, renderer, num_slots=num_slots)
    return NativeEngine(decoder, renderer, num_slots=num_slots)
