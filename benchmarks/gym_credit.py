"""For which answers do reasoning-gym's scorers give the whole point, and for which does its task here?

    python benchmarks/gym_credit.py                        # every family, four items each; two minutes
    python benchmarks/gym_credit.py chain_sum puzzle24     # some

Each item gets its own answer, and eighteen others: sprayed, with something beside it, empty, nonsense. A line for each
family names those that have the whole point from its scorer and those that are right here. The scorers evaluate what
they are given, and so nothing else than these answers is given to them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress

from reasoning_gym.factory import DATASETS

from reasonmill.gym.families import score
from reasonmill.gym.grader import GymGrader
from reasonmill.gym.task import ReasoningGym
from reasonmill.types import Problem

ITEMS = 4
OWN = "its own answer"


def answers(problem: Problem, other: Problem) -> Iterator[tuple[str, str]]:
    """Answers to an item, by what they are; `other` is another item of the family."""
    gold, their = problem.answer, other.answer
    yield OWN, gold
    yield "or, right first", f"{gold} or {their}"
    yield "or, right last", f"{their} or {gold}"
    yield "lines, right first", f"{gold}\n{their}"
    yield "lines, right last", f"{their}\n{gold}"
    yield "comma", f"{gold}, {their}"
    yield "twice", f"{gold} {gold}"
    yield "a sentence", f"the answer is {gold}"
    yield "a word behind it", f"{gold} banana"
    yield "minus", f"-{gold}"
    yield "brackets", f"[{gold}]"
    yield "many numbers", " ".join(map(str, range(200)))
    yield "the question", str(problem.meta["item"]["question"])
    for nothing in ("", "None", "[]", "{}", "yes no"):
        yield repr(nothing), nothing
    if their != gold:
        yield "of another item", their


def passing(family: str) -> Mapping[str, Counter[str]]:
    """How often each answer has the whole point of the family's scorer, and is right here."""
    task, grader = ReasoningGym(family), GymGrader()
    problems = [task.problem("train", 3, index) for index in range(ITEMS)]
    found: dict[str, Counter[str]] = {"scorer": Counter(), "here": Counter()}
    for problem, other in zip(problems, [*problems[1:], problems[0]], strict=True):
        if problem.meta["item"]["answer"] is None:
            continue  # it has no answer of its own that others could be made of
        for what, answer in answers(problem, other):
            with suppress(Exception):  # some scorers raise at what they can't read
                found["scorer"][what] += score(family, {}, problem.meta["item"], answer) == 1.0
            found["here"][what] += grader.judge(problem, f"<answer>{answer}</answer>").outcome == "right"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", default=sorted(set(DATASETS) - {"composite"}))
    families = parser.parse_args().family
    own = others = 0
    for family in families:
        found = passing(family)
        for who, counts in found.items():
            passed = ", ".join(f"{what} {count}" for what, count in counts.items() if count and what != OWN)
            if passed:
                print(f"{family:26} {who:6} {passed}", flush=True)
        own += found["here"][OWN]
        others += any(count for what, count in found["here"].items() if what != OWN)
    print(f"{len(families)} families; {own} own answers are right; in {others} families another one is right here")


if __name__ == "__main__":
    main()
