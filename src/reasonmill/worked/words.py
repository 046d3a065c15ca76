"""Worked solutions of reasoning-gym's families that look at the letters of words.

A tokenizer hides the letters of a word, so every solution spells it first.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from reasonmill.worked.solution import Solution


def letter_counting(item: Mapping[str, Any], rng: random.Random) -> Solution:
    """Each word spelled, with how often it has the letter, and the sum so far where that changes."""
    letter = item["target_letter"]
    steps = [rng.choice((f"I spell each word and count {letter}.", f"Word by word, I look for {letter}."))]
    total = 0
    for word in item["span"]:
        count = word.lower().count(letter.lower())
        total += count
        spelled = " ".join(word.lower())
        steps.append(f"{word}: {spelled}, {count}, so {total}" if count else f"{word}: {spelled}, 0")
    return Solution(steps, str(total))


def spell_backward(item: Mapping[str, Any], rng: random.Random) -> Solution:
    """The letters with their numbers, the same from the last one on, and what they make together."""
    word = item["word"]
    letters = [f"{place} {letter}" for place, letter in enumerate(word, 1)]
    opening = rng.choice((f"The letters of {word} are", f"I spell {word}:"))
    steps = [f"{opening} {', '.join(letters)}", f"From the last one: {', '.join(reversed(letters))}"]
    return Solution(steps, word[::-1])
