"""Rows in splits: the content of a prompt decides, and rows that are the same count once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reasonmill.curation.deduplication import normalised_turns
from reasonmill.data.items import Item, Made
from reasonmill.randomness import key
from reasonmill.tasks.splits import SPLITS
from reasonmill.types import Conversation, Group, Message, Problem

# A tenth each is held out, unless a recipe says otherwise.
DEFAULT_SHARES: Mapping[str, float] = {"train": 0.8, "dev": 0.1, "test": 0.1}
_STEPS = 2**32


@dataclass
class Counts:
    """What became of the rows: every row is in one of these.

    Attributes:
        splits: those that are used, by split.
        duplicates: those that say the same as an earlier one.
        contradictory: those that ask the same and disagree about the answer or the label; none of them is used.
        also_held_out: those to train on whose prompt a held-out split has.
        bad: those that are not understood.
    """

    splits: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    contradictory: int = 0
    also_held_out: int = 0
    bad: int = 0


@dataclass(frozen=True)
class Sorted:
    """Items by their splits, and what was left out.

    Attributes:
        left_out: (place, why) of each row that is not used.
    """

    items: Mapping[str, Sequence[Item]]
    counts: Counts
    left_out: Sequence[tuple[str, str]]


def split_by_content(prompt: Sequence[Message], shares: Mapping[str, float]) -> str:
    """The split of all that has this prompt, whatever data it comes from: capitals, white space and system messages
    do not matter.

    Args:
        shares: of each split; they add up to 1.
    """
    turns = normalised_turns([message for message in prompt if message.role != "system"])
    place = key("rows", *(part for turn in turns for part in turn)) % _STEPS / _STEPS
    for split in SPLITS[:0:-1]:  # train is what the others leave
        place -= shares.get(split, 0.0)
        if place < 0:
            return split
    return SPLITS[0]


def sort(items: Iterable[tuple[str | None, Item]], shares: Mapping[str, float]) -> Sorted:
    """Items in their splits, in their order.

    Args:
        items: each with the split of its file, None where its content decides.
    """
    counts, left_out = Counts(), []
    first: dict[str, tuple[str, Item]] = {}
    contradicted: dict[str, str] = {}
    for given, item in items:
        split = item.split or given or split_by_content(item.prompt, shares)
        known = first.get(item.same)
        if known is None:
            first[item.same] = (split, item)
        elif known[1].decided != item.decided:
            contradicted[item.same] = item.place
            counts.contradictory += 1
            left_out.append((item.place, f"it asks the same as {known[1].place}, and the answer is another one"))
        else:
            counts.duplicates += 1
            left_out.append((item.place, f"it is the same as {known[1].place}"))
            if SPLITS.index(split) > SPLITS.index(known[0]):  # what is held out anywhere is held out
                first[item.same] = (split, item)
    found: defaultdict[str, list[Item]] = defaultdict(list)
    for same, (split, item) in first.items():
        if same in contradicted:
            counts.contradictory += 1
            left_out.append((item.place, f"{contradicted[same]} asks the same, and the answer is another one"))
        else:
            found[split].append(item)
    held_out = {_asked(item) for split in SPLITS[1:] for item in found[split]}
    trained = [item for item in found["train"] if _asked(item) not in held_out]
    if len(trained) < len(found["train"]):
        kept = set(map(id, trained))
        left_out += [(i.place, "a held-out split asks the same") for i in found["train"] if id(i) not in kept]
        counts.also_held_out = len(found["train"]) - len(trained)
    found["train"] = trained
    splits = {split: found[split] for split in SPLITS if found[split]}
    counts.splits = {split: len(each) for split, each in splits.items()}
    return Sorted(splits, counts, left_out)


def in_split(made: Made, split: str) -> Made:
    """What a row was made into, which knows its split from now on."""
    if isinstance(made, Problem | Conversation):
        return replace(made, split=split)
    if isinstance(made, Group):
        return replace(made, problem=replace(made.problem, split=split))
    return made


def _asked(item: Item) -> object:
    return normalised_turns([message for message in item.prompt if message.role != "system"])
