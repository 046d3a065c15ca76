"""Counter-based randomness: what is drawn depends on a name, never on how much was drawn before.

A draw is addressed by the parts that identify it, for example (run seed, stage, step, problem, sample), so it
does not depend on a global generator, on the batch that a request shared or on the order of completion.
"""

import hashlib
import json
import random

Part = int | str

_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: keys are drawn by the million


def key(*parts: Part) -> int:
    """A 63-bit key of the parts, the same in every process and on every machine.

    It fits a signed 64-bit integer, so that it can also seed tensors of noise.
    """
    return int.from_bytes(hashlib.blake2b(_encode(parts).encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: Part) -> random.Random:
    """A generator of its own for the draw that the parts name."""
    return random.Random(key(*parts))
