"""Values between a program and its tests, as JSON: what they are is written down, and never code that makes them.

A program sends what it likes, so whoever reads trusts nothing: there are limits of length and depth, only plain values
come out, and they compare by Python's own rules, whatever classes the program had.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_BYTES = 16_000_000
_MAX_DEPTH = 100
# JSON's readers may take larger integers for floats, or refuse them.
_PLAIN_INTEGER = 1 << 53


class WireError(Exception):
    """What came over the wire is nothing that it carries."""


class Closed(Exception):
    """The other side is gone."""


def send(channel: int, message: Any) -> None:
    """Writes one message.

    Raises:
        Closed: nobody reads any more.
        WireError: it is too long.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        raise WireError(f"a value of more than {MAX_BYTES // 1_000_000} MB")
    rest = memoryview(struct.pack("=I", len(data)) + data)
    try:
        while rest:
            rest = rest[os.write(channel, rest) :]
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed from error


def receive(channel: int) -> Any:
    """Reads one message.

    Raises:
        Closed: there is none, and there will be none.
        WireError: it is too long, or no JSON.
    """
    (length,) = struct.unpack("=I", _read(channel, 4))
    if length > MAX_BYTES:
        raise WireError(f"a value of more than {MAX_BYTES // 1_000_000} MB")
    try:
        return json.loads(_read(channel, length))
    except (ValueError, RecursionError) as error:
        raise WireError("no message at all") from error


def _read(channel: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        try:
            part = os.read(channel, length - len(data))
        except ConnectionResetError as error:
            raise Closed from error
        if not part:
            raise Closed
        data += part
    return bytes(data)


def encode(value: Any, other: Callable[[Any], Any], depth: int = 0) -> Any:
    """JSON of a value.

    Args:
        other: what becomes of a value that is not plain.

    Raises:
        WireError: it is nested too deeply, or in itself.
    """
    if depth > _MAX_DEPTH:
        raise WireError(f"a value that is nested more than {_MAX_DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        plain = int(value)
        return plain if -_PLAIN_INTEGER < plain < _PLAIN_INTEGER else ["i", hex(plain)]
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)

    def within(item: Any) -> Any:
        return encode(item, other, depth + 1)

    for kind, tag in _SEQUENCES.items():
        if isinstance(value, kind):
            return [tag, *map(within, value)]
    if isinstance(value, dict):
        return ["d", *([within(key), within(item)] for key, item in value.items())]
    for scalar, (tag, written, _) in _SCALARS.items():
        if isinstance(value, scalar):
            return [tag, written(value)]
    return other(value)


def decode(message: Any, other: Callable[[Any], Any], depth: int = 0) -> Any:
    """The value of what `encode` made.

    Args:
        other: makes a value of what the other side's `other` wrote.

    Raises:
        WireError: it is nothing that `encode` makes.
    """
    if depth > _MAX_DEPTH:
        raise WireError(f"a value that is nested more than {_MAX_DEPTH} deep")
    if message is None or isinstance(message, bool | int | float | str):
        return message
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise WireError("a value of no known kind")
    tag, items = message[0], message[1:]
    try:
        if tag in _MADE_OF_ITEMS:
            return _MADE_OF_ITEMS[tag](decode(item, other, depth + 1) for item in items)
        if tag == "d":
            return {decode(key, other, depth + 1): decode(item, other, depth + 1) for key, item in items}
        if tag in _MADE_OF_TEXT:
            return _MADE_OF_TEXT[tag](items[0])
    except (TypeError, ValueError, ArithmeticError, IndexError, RecursionError) as error:
        raise WireError(f"a value that is none: {error}") from error
    return other(message)


def _complex(parts: Any) -> complex:
    real, imaginary = parts
    return complex(real, imaginary)


# In the order in which they are looked for: a class comes before those that it derives from.
_SEQUENCES: dict[type[Any], str] = {list: "l", tuple: "t", set: "s", frozenset: "f", deque: "q"}
_MADE_OF_ITEMS: dict[str, Callable[[Any], Any]] = {tag: kind for kind, tag in _SEQUENCES.items()}
_SCALARS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    bytes: ("b", bytes.hex, bytes.fromhex),
    bytearray: ("a", bytearray.hex, bytearray.fromhex),
    complex: ("c", lambda value: [value.real, value.imag], _complex),
    range: ("r", lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    Fraction: ("F", lambda value: f"{value.numerator:x}/{value.denominator:x}", lambda text: _fraction(text)),
    Decimal: ("D", str, Decimal),
    datetime: ("T", datetime.isoformat, datetime.fromisoformat),
    date: ("Y", date.isoformat, date.fromisoformat),
    timedelta: ("E", lambda value: [value.days, value.seconds, value.microseconds], lambda parts: timedelta(*parts)),
}
_MADE_OF_TEXT: dict[str, Callable[[Any], Any]] = {
    "i": lambda text: int(text, 16),
    **{tag: made for tag, _, made in _SCALARS.values()},
}


def _fraction(text: str) -> Fraction:
    numerator, denominator = text.split("/")
    return Fraction(int(numerator, 16), int(denominator, 16))
