"""Which way a decoder's new tokens are read."""

from __future__ import annotations

from reasonmill.model.decoder import Decoder
from reasonmill.sample.cuda.memory import Memory
from reasonmill.sample.cuda.rows import Rows
from reasonmill.sample.cuda.steps import Logits, by_modules


def forward_of(decoder: Decoder, memory: Memory, rows: Rows) -> Logits:
    return by_modules(decoder, memory, rows)
