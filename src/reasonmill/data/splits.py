"""Rows in splits: the content of a prompt decides, and rows that are the same count once."""

from __future__ import annotations

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
# Data may repeat each problem a hundred times.
MOST_NAMED = 10_000


@dataclass
class Counts:
    """What became of the rows: every row is in one of these.

    Attributes:
        splits: those that are used, by split.
        duplicates: those that say the same as an earlier one.
        contradictory: those of one split that ask the same and disagree about the answer or the label; none is used.
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
        left_out: (place, why) of the rows that are not used, the first `MOST_NAMED` of them.
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
    counts = Counts()
    left_out: list[tuple[str, str]] = []
    first: dict[str, tuple[str, Item]] = {}
    contradicted: set[str] = set()

    def leave_out(item: Item, why: str) -> None:
        if len(left_out) < MOST_NAMED:
            left_out.append((item.place, why))

    for given, item in items:
        named = item.split or given
        if item.same not in first:
            first[item.same] = (named or split_by_content(item.prompt, shares), item)
            continue
        split, known = first[item.same]
        if known.decided == item.decided:
            counts.duplicates += 1
            leave_out(item, f"it is the same as {known.place}")
            if _is_further_out(named, split):
                first[item.same] = (named or split, item)
        elif named in (None, split):
            counts.contradictory += 1
            leave_out(item, f"it is at odds with {known.place} about the answer or the label")
            contradicted.add(item.same)
        else:  # a held-out split keeps its own
            counts.also_held_out += 1
            dropped = known if _is_further_out(named, split) else item
            leave_out(dropped, "a held-out split asks the same, with another answer or label")
            if dropped is known:
                first[item.same] = (named or split, item)
    found: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for same, (split, item) in first.items():
        if same in contradicted:
            counts.contradictory += 1
            leave_out(item, "it is at odds with a later row about the answer or the label")
        else:
            found[split].append(item)
    held_out = {_asked(item) for split in SPLITS[1:] for item in found[split]}
    train = SPLITS[0]
    apart = [item for item in found[train] if _asked(item) not in held_out]
    if len(apart) < len(found[train]):
        kept = set(map(id, apart))
        counts.also_held_out += len(found[train]) - len(apart)
        for item in found[train]:
            if id(item) not in kept:
                leave_out(item, "a held-out split asks the same")
        found[train] = apart
    splits = {split: rows for split, rows in found.items() if rows}
    counts.splits = {split: len(each) for split, each in splits.items()}
    return Sorted(splits, counts, left_out)


def _is_further_out(named: str | None, split: str) -> bool:
    """Whether a split is held out more than another one: what is held out anywhere is held out."""
    return named is not None and SPLITS.index(named) > SPLITS.index(split)


def in_split(made: Made, split: str) -> Made:
    """What a row was made into, which knows its split from now on."""
    if isinstance(made, Problem | Conversation):
        return replace(made, split=split)
    if isinstance(made, Group):
        return replace(made, problem=replace(made.problem, split=split))
    return made


def _asked(item: Item) -> object:
    return normalised_turns([message for message in item.prompt if message.role != "system"])
