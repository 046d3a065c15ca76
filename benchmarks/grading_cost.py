"""What it costs in processor time to grade a response in a worker: the process that trains, the manager, the workers.

    python benchmarks/grading_cost.py                        # 20,000 responses, two workers
    python benchmarks/grading_cost.py --busy 10              # the same beside ten processes that only compute

The grader does nothing, so that all of it is the way there and back. It is measured several times, after a first time
in which workers start.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from busy import busy

from reasonmill.plugins.catalogue import Catalogue, TaskUse
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion

# A grader that answers at once.
GRADER = """
from reasonmill.types import Grade, Message, Problem

class Quick:
    domain = "reasoning"

    def problem(self, split, seed, index):
        return Problem("quick", (Message("user", "?"),), "1")

    def problems(self, split, seed):
        return iter((self.problem(split, seed, 0),))

    def grade(self, problem, completions):
        return [Grade(1.0, {"accuracy": 1.0}) for _ in completions]
"""
TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Milliseconds for a response."""

    trainer: float
    manager: float
    workers: float
    wall: float


def times_of(process: int) -> tuple[float, float]:
    """Processor time of a process, and of those of its children that have ended, in seconds."""
    # Behind the name, which may hold anything, the 12th to 15th fields are user and system time, own and children's.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    own_user, own_system, user, system = map(int, fields[11:15])
    return (own_user + own_system) / TICKS, (user + system) / TICKS


def children_of(process: int) -> list[int]:
    """The processes whose parent a process is."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def of_workers(manager: int) -> float:
    """Processor time of all that a manager has started."""
    return times_of(manager)[1] + sum(sum(times_of(child)) for child in children_of(manager))


def measured(task: NamedTask, manager: int, responses: int) -> Cost:
    """What that many responses cost, which are all there at once."""
    problem = task.problem("train", 0, 0)
    completions = [Completion((), None, (), f"response {place}", "stop", 0) for place in range(responses)]
    began, own = time.perf_counter(), time.process_time()
    managed, worked = times_of(manager)[0], of_workers(manager)
    task.grade(problem, completions)
    of_one = 1000 / responses
    return Cost(
        of_one * (time.process_time() - own),
        of_one * (times_of(manager)[0] - managed),
        of_one * (of_workers(manager) - worked),
        of_one * (time.perf_counter() - began),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute meanwhile")
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "quick.py").write_text(GRADER, encoding="utf-8")
        catalogue = Catalogue({"tasks": {"quick": TaskUse(use="./quick.py:Quick")}}, folder)
        task = catalogue.task("quick")
        with catalogue.workers.limited_to(given.workers):
            task.grade(task.problem("train", 0, 0), [Completion((), None, (), "first", "stop", 0)])
            (manager,) = children_of(os.getpid())
            measured(task, manager, given.responses)
            with busy(given.busy):
                costs = [measured(task, manager, given.responses) for _ in range(given.repeat)]
    titles = ("the process that trains", "the manager", "the workers", "on the clock")
    for field, what in zip(Cost._fields, titles, strict=True):
        values = sorted(getattr(cost, field) for cost in costs)
        print(f"{what}: {statistics.median(values):.3f} ms a response ({values[0]:.3f} to {values[-1]:.3f})")
    rate = 1000 / statistics.median(cost.wall for cost in costs)
    print(f"{rate:,.0f} responses a second, {given.workers} workers, {given.busy} other programs")


if __name__ == "__main__":
    main()
