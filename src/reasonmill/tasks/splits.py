"""Splits that can't overlap: the content of a problem decides its split, for every seed and every corpus."""

from collections.abc import Callable
from typing import Literal, TypeVar, get_args

from reasonmill.errors import RecipeError
from reasonmill.randomness import Part, generator, key

Split = Literal["train", "dev", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
_TENTHS: dict[int, Split] = {0: "test", 1: "dev"}

Content = TypeVar("Content")


def split_of(task: str, *identity: Part) -> Split:
    """The split of the problem with this identity: a tenth each for test and dev, the others train."""
    return _TENTHS.get(key("split", task, *identity) % 10, "train")


def draw_from_split(
    task: str,
    split: str,
    seed: int,
    index: int,
    draw: Callable[..., Content | None],
    identity: Callable[[Content], tuple[Part, ...]],
) -> Content:
    """The first of the draws (seed, split, index, attempt) that gives a problem of the split.

    Args:
        draw: makes a problem's content from a generator, or None where the attempt failed.
        identity: what makes two problems the same, whatever their wording.
    """
    if split not in SPLITS:
        raise RecipeError(f"unknown split {split!r}", fix=f"use one of {', '.join(SPLITS)}")
    for attempt in range(10_000):
        content = draw(generator("problem", task, split, seed, index, attempt))
        if content is not None and split_of(task, *identity(content)) == split:
            return content
    raise RecipeError(f"task {task} found no problem {index} for split {split!r}", fix="report this as a defect")
