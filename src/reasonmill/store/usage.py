"""How much of a home's disk each run and stage takes."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from reasonmill.store.garbage import object_sizes
from reasonmill.store.holdings import NOTHING, Holdings
from reasonmill.store.ledger import Ledger
from reasonmill.store.ledger_runs import RunRecord
from reasonmill.store.looking import size_below
from reasonmill.store.views import RUNS, own_entries

# What a run has besides its stages.
OTHER = "earlier results and inputs"


@dataclass(frozen=True)
class Usage:
    """Bytes of one stage, or of a run.

    Args:
        own: of what only this run refers to, but for states: artifacts, groups and kept models.
        states: of states that only this run refers to, from which a stage resumes.
        shared: of what other runs refer to, too, or what may be of other runs.
    """

    own: int = 0
    states: int = 0
    shared: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.own + other.own, self.states + other.states, self.shared + other.shared)


@dataclass(frozen=True)
class RunUsage:
    """Bytes that a run takes.

    Args:
        stages: by the names of its stages, and `OTHER`; what two of them have counts for the first.
        views: of its directory's views, which are its own.
    """

    name: str
    stages: Mapping[str, Usage]
    views: int

    @property
    def total(self) -> Usage:
        """The sum; `own` and `states` are what `rm` would free."""
        return sum(self.stages.values(), Usage(own=self.views))


def usage(home: Path, ledger: Ledger) -> list[RunUsage]:
    """What each run takes, in the order of the ledger's runs. Reads sizes only, and needs no lock."""
    sizes = object_sizes(home)
    holdings = Holdings(ledger, sizes)
    needed, states = holdings.needed_without(NOTHING), holdings.only_states()
    found = []
    for run in holdings.runs.values():
        own = needed - holdings.needed_without(holdings.removal([run.name]))
        stages: dict[str, Usage] = {}
        told: set[str] = set()
        for name, digests in _parts(run, holdings):
            new = (digests & sizes.keys()) - told
            told |= new
            stages[name] = stages.get(name, Usage()) + Usage(
                own=_sum(sizes, (new & own) - states),
                states=_sum(sizes, new & own & states),
                shared=_sum(sizes, new - own),
            )
        views = sum(map(size_below, own_entries(home / RUNS / run.name)))
        found.append(RunUsage(run.name, stages, views))
    return found


def _parts(run: RunRecord, holdings: Holdings) -> list[tuple[str, set[str]]]:
    """The digests of each stage of a run, and of what else it reaches."""
    stages = [(stage.name, holdings.of_stage(stage.key)) for stage in run.stages]
    return [*stages, (OTHER, holdings.reached(run.name))]


def _sum(sizes: Mapping[str, int], digests: AbstractSet[str]) -> int:
    return sum(sizes[digest] for digest in digests)
