"""Splits hang on the content of a problem: no seed and no index can move a problem to another split."""

import random
from collections import Counter

import pytest

from reasonmill.errors import RecipeError
from reasonmill.tasks.splits import SPLITS, draw_from_split, split_of


def draw(rng: random.Random) -> int:
    """One of 50 problems: few, so that splits that overlap could not go unnoticed."""
    return rng.randrange(50)


def drawn(split: str, seed: int, count: int = 300) -> set[int]:
    return {draw_from_split("small", split, seed, index, draw, lambda content: (content,)) for index in range(count)}


def test_splits_never_change() -> None:
    # Worked out with another program: `printf '["split","countdown-3",1,2,23]' | b2sum -l 64`, bytes reversed, halved,
    # last digit 0 for test and 1 for dev. What is "train" here was in the corpus of every base that exists.
    held_out = {target: split for target in range(4, 60) if (split := split_of("countdown-3", 1, 2, target)) != "train"}
    assert held_out == {**dict.fromkeys([23, 44, 58], "test"), **dict.fromkeys([37, 40, 53], "dev")}


def test_a_tenth_each_is_held_out() -> None:
    counts = Counter(split_of("a task", number) for number in range(10_000))
    assert set(counts) == set(SPLITS) == {"train", "dev", "test"}
    assert abs(counts["test"] - 1000) < 150  # 5 standard deviations
    assert abs(counts["dev"] - 1000) < 150


def test_every_problem_is_in_the_same_split_for_every_seed() -> None:
    found = {split: drawn(split, seed=1) | drawn(split, seed=2) for split in SPLITS}
    assert set.union(*found.values()) == set(range(50))
    assert sum(map(len, found.values())) == 50
    assert all(split_of("small", content) == split for split in SPLITS for content in found[split])


def test_tasks_have_splits_of_their_own() -> None:
    assert [split_of("one", number) for number in range(100)] != [split_of("two", number) for number in range(100)]


def test_the_arguments_name_the_draw() -> None:
    def large(rng: random.Random) -> float:
        return rng.random()

    def number(task: str = "t", split: str = "train", seed: int = 0, index: int = 0) -> float:
        return draw_from_split(task, split, seed, index, large, lambda content: (str(content),))

    assert number() == number()
    assert len({number(), number(task="u"), number(split="test"), number(seed=1), number(index=1)}) == 5


def test_draws_that_failed_are_drawn_again() -> None:
    def sometimes(rng: random.Random) -> int | None:
        value = rng.randrange(4)
        return value or None

    found = {draw_from_split("t", "train", 0, index, sometimes, lambda _: ("x", 7)) for index in range(100)}
    assert split_of("t", "x", 7) == "train"
    assert found == {1, 2, 3}


def test_an_unknown_split_is_an_error() -> None:
    with pytest.raises(RecipeError, match="unknown split 'validation'") as raised:
        drawn("validation", seed=0)
    assert "train, dev, test" in raised.value.fix


def test_a_split_without_problems_is_an_error_and_no_endless_search() -> None:
    with pytest.raises(RecipeError, match="no problem 3 for split 'test'"):
        draw_from_split("t", "test", 0, 3, lambda rng: None, lambda content: ())
