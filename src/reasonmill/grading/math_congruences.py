"""Congruences: 1 (mod 4) and 5 (mod 4) are the same numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reasonmill.grading.math_words import without_marks

_CONGRUENCE = re.compile(
    r"(?:(?P<name>[A-Za-z])\s*(?:\\equiv|=)\s*)?(?P<residues>-?\d{1,30}(?:(?:\s*,\s*|\s+(?:or|and)\s+)-?\d{1,30})*)\s*"
    r"(?:\\p?mod|\\bmod|\(?\s*mod(?:ulo)?)\s*\{?\s*(?P<modulus>\d{1,30})\s*\}?\s*\)?",
    re.IGNORECASE,
)
_WHOLE = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Congruence:
    """The numbers with some residues of a modulus.

    Attributes:
        name: of the unknown; empty where none is named.
        residues: between 0 and the modulus.
        written: the residues as they are written.
    """

    name: str
    residues: frozenset[int]
    modulus: int
    written: frozenset[int]

    def same(self, answer: Congruence) -> bool:
        """Whether an answer has the same numbers; a name that only one of the two has does not matter."""
        names = {self.name, answer.name} - {""}
        return len(names) < 2 and (self.modulus, self.residues) == (answer.modulus, answer.residues)


def congruence_of(text: str) -> Congruence | None:
    """The congruence that a text is; None for all else."""
    if "mod" not in text:
        return None
    match = _CONGRUENCE.fullmatch(without_marks(text))
    if match is None or int(match["modulus"]) == 0:
        return None
    written = frozenset(map(int, _WHOLE.findall(match["residues"])))
    modulus = int(match["modulus"])
    return Congruence(match["name"] or "", frozenset(each % modulus for each in written), modulus, written)
