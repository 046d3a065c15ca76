"""The families of reasoning-gym: their items, and what their scorers say of an answer."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from reasonmill.errors import RecipeError, suggestion
from reasonmill.gym.evaluated import may_be_evaluated
from reasonmill.randomness import Part
from reasonmill.tasks.splits import draw_from_split

# Keys of JSON objects that stand for what JSON has not.
_TUPLE, _PAIRS, _SET = "(tuple)", "(pairs)", "(set)"
# What decides which items there are, and is not for a recipe to say: splits do.
_OURS = ("seed", "size")
# A mixture of families, which a recipe makes by naming several tasks.
_NO_FAMILY = ("composite",)
_NUMBER_BITS = 31


def dataset_of(family: str, config: Mapping[str, Any], seed: int = 0) -> Any:
    """A data set of the family.

    Raises:
        RecipeError: there is no such family, or it does not take these arguments.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    known = sorted(set(DATASETS) - set(_NO_FAMILY))
    if family not in known:
        raise RecipeError(
            f"reasoning-gym has no family {family!r}",
            fix=suggestion(family, known) or f"use one of {', '.join(known)}",
        )
    taken = [name for name in inspect.signature(DATASETS[family][1]).parameters if name not in _OURS]
    for name in config:
        if name not in taken:
            raise RecipeError(
                f"family {family!r} takes no {name!r}",
                fix=suggestion(name, taken) or f"it takes {', '.join(taken) or 'nothing'}",
            )
    try:
        return reasoning_gym.create_dataset(family, seed=seed, size=1, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise RecipeError(f"family {family!r} refuses its configuration: {error}", fix="correct it") from error


@lru_cache(maxsize=128)
def _kept(family: str, config: str) -> Any:
    """The data set that items are drawn from and answers scored by; some take half a second to make."""
    return dataset_of(family, json.loads(config))


def _kept_for(family: str, config: Mapping[str, Any]) -> Any:
    return _kept(family, json.dumps(config, sort_keys=True))


def prepare(family: str, config: Mapping[str, Any]) -> None:
    """Loads what scoring needs: reasoning-gym takes two seconds to import.

    Raises:
        RecipeError: of `dataset_of`.
    """
    _kept_for(family, config)


def draw_item(family: str, config: Mapping[str, Any], split: str, seed: int, index: int) -> dict[str, Any]:
    """Item `index` of a split, as JSON: its question, answer (None where there is no one right answer) and metadata.

    Its question decides about an item's split, whatever its number is: reasoning-gym counts from the seed on, so that
    the data sets of neighbouring seeds are the same items, shifted by one.

    Raises:
        RecipeError: of `dataset_of`, or the family has no item of the split.
    """
    dataset = _kept_for(family, config)

    def draw(rng: Any) -> dict[str, Any]:
        number = rng.getrandbits(_NUMBER_BITS)
        try:
            item = dataset[number]
        except IndexError:  # a family that makes all items of a data set when it makes the data set
            item = dataset_of(family, config, number)[0]
        return {
            "question": str(item["question"]),
            "answer": None if item["answer"] is None else str(item["answer"]),
            "metadata": as_json(item["metadata"]),
        }

    def identity(item: dict[str, Any]) -> tuple[Part, ...]:
        return (" ".join(item["question"].split()),)

    return draw_from_split("reasoning-gym", split, seed, index, draw, identity)


def score(family: str, config: Mapping[str, Any], item: Mapping[str, Any], answer: str) -> float:
    """What the family's scorer says of an answer: 1.0 where it is right, and less, or some error, otherwise.

    It may evaluate the answer as Python: only for the jail, and 0.0 for what could do more there than have a value.
    """
    dataset = _kept_for(family, config)
    if not may_be_evaluated(answer, inspect.getsource(type(dataset)), f"{item['answer']} {item['question']}"):
        return 0.0
    entry = {"question": item["question"], "answer": item["answer"], "metadata": from_json(item["metadata"])}
    return float(dataset.score_answer(answer, entry))


def as_json(value: Any) -> Any:
    """A value as JSON from which `from_json` makes it again: tuples, sets and objects with other keys than texts, too.

    What else JSON has not becomes its text: scorers don't look at it.
    """
    if isinstance(value, tuple):
        return {_TUPLE: [as_json(each) for each in value]}
    if isinstance(value, list):
        return [as_json(each) for each in value]
    if isinstance(value, set | frozenset):
        return {_SET: sorted((as_json(each) for each in value), key=json.dumps)}
    if isinstance(value, dict):
        if all(isinstance(name, str) for name in value):
            return {name: as_json(each) for name, each in value.items()}
        return {_PAIRS: [[as_json(name), as_json(each)] for name, each in value.items()]}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else str(value)


def from_json(value: Any) -> Any:
    """What `as_json` was given."""
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {_TUPLE}:
        return tuple(from_json(each) for each in value[_TUPLE])
    if value.keys() == {_SET}:
        return {from_json(each) for each in value[_SET]}
    if value.keys() == {_PAIRS}:
        return {from_json(name): from_json(each) for name, each in value[_PAIRS]}
    return {name: from_json(each) for name, each in value.items()}
