"""What stands in a GGUF file before its weights: settings by name, and where each tensor lies.

The format is that of ggml, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The package
gguf reads it, too, but takes 4 seconds for a vocabulary of 49,152 tokens, which are read each time a recipe is.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonmill.errors import UnsupportedModel

# Raised when the same file is made into another model than before: then stages run again.
CONVERSION = 1
_VERSIONS = (2, 3)
# Types of values: formats of `struct` by their numbers; texts and lists are none of them.
_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
# No tensor of a model has more dimensions.
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        shape: as torch has it, the longest step in memory first.
        kind: the number of the type that its weights are kept in.
        start: bytes before it in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """The settings and the tensors of a GGUF file."""

    path: Path
    settings: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """What ggml calls the architecture; empty where the file does not say."""
        return str(self.settings.get("general.architecture", ""))

    def of_model(self, name: str, otherwise: Any = None) -> Any:
        """A setting of the architecture, such as "block_count"."""
        return self.settings.get(f"{self.architecture}.{name}", otherwise)

    def of_tokenizer(self, name: str, otherwise: Any = None) -> Any:
        """A setting of the tokenizer, such as "tokens"."""
        return self.settings.get(f"tokenizer.ggml.{name}", otherwise)


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file.

    Raises:
        UnsupportedModel: the file is none, or it is cut off within the header.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UnsupportedModel("the file is no GGUF: it does not begin with these letters", where=str(path))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            try:
                return _Reader(path, held).header()
            except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
                raise UnsupportedModel(
                    f"the GGUF file can't be read: {type(error).__name__}: {error}",
                    fix="copy or download it again",
                    where=str(path),
                ) from error


class _Reader:
    def __init__(self, path: Path, held: mmap.mmap) -> None:
        self._path, self._held, self._at = path, held, 4

    def header(self) -> GgufHeader:
        version, num_tensors, num_settings = self._plain("IQQ")
        if version not in _VERSIONS:
            raise UnsupportedModel(
                f"the file is GGUF of version {version}, and versions 2 and 3 are read",
                fix="convert it again with a current llama.cpp",
                where=str(self._path),
            )
        settings = {}
        for _ in range(num_settings):
            name = self._text()
            settings[name] = self._value(*self._plain("I"))
        found = [self._tensor() for _ in range(num_tensors)]
        step = int(settings.get("general.alignment", 32))
        begin = -(-self._at // step) * step
        tensors = (GgufTensor(name, shape, kind, begin + start) for name, shape, kind, start in found)
        return GgufHeader(self._path, settings, tuple(tensors))

    def _plain(self, format: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{format}", self._held, self._at)
        self._at += struct.calcsize(f"<{format}")
        return values

    def _text(self) -> str:
        (length,) = self._plain("Q")
        held = self._held[self._at : self._at + length]
        if len(held) < length:
            raise struct.error("it ends within a text")
        self._at += length
        return held.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind in _PLAIN:
            return self._plain(_PLAIN[kind])[0]
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            raise struct.error(f"a value of the unknown type {kind}")
        of, count = self._plain("IQ")
        if count > len(self._held):
            raise struct.error(f"a list of {count} values")
        return list(self._plain(f"{count}{_PLAIN[of]}")) if of in _PLAIN else [self._value(of) for _ in range(count)]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, (dimensions,) = self._text(), self._plain("I")
        if dimensions > _MOST_DIMENSIONS:
            raise struct.error(f"a tensor of {dimensions} dimensions")
        shape = self._plain(f"{dimensions}Q")
        kind, start = self._plain("IQ")
        return name, tuple(reversed(shape)), kind, start
