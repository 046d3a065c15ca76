"""Frames on a socket between two processes: a header, which is JSON, and bytes that belong to it.

Only the standard library, because the smallest of the processes reads frames, too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

_LENGTHS = struct.Struct(">II")
Frame = tuple[dict[str, Any], bytes]


def frame(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A frame as it is sent."""
    encoded = json.dumps(header).encode()
    return _LENGTHS.pack(len(encoded), len(body)) + encoded + body


class Frames:
    """Takes apart what is received.

    Args:
        limit: how many bytes a frame may have; None trusts the other side.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._received = bytearray()

    def of(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with `data`.

        Raises:
            ValueError: what was received is no frame, or is too long.
        """
        self._received += data
        while len(self._received) >= _LENGTHS.size:
            header, body = _LENGTHS.unpack_from(self._received)
            end = _LENGTHS.size + header + body
            if self._limit is not None and end > self._limit:
                raise ValueError(f"a frame of {end} bytes, and {self._limit} are allowed")
            if len(self._received) < end:
                return
            text = bytes(self._received[_LENGTHS.size : _LENGTHS.size + header])
            content = bytes(self._received[_LENGTHS.size + header : end])
            del self._received[:end]
            read = json.loads(text)
            if not isinstance(read, dict):
                raise ValueError(f"the header of a frame is {type(read).__name__}")
            yield read, content
