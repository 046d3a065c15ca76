"""What of a home belongs to which run: what goes if runs are forgotten, and what stays, because others refer to it.

A stage is of a run that has it now, had it, or finished it: its key says what it computes, so runs share stages. What
is recorded without a run (the beginning of a stage whose settings were changed, an artifact of a stage that was made
again) may be of any run: it goes with the last one.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from reasonmill.store.ledger import ADOPTED, OF_STAGE, Ledger
from reasonmill.store.ledger_runs import RunRecord

_OBJECT = re.compile(r"\b[0-9a-f]{64}\b")
# Kinds of artifacts that come from outside: no stage made them.
_FROM_OUTSIDE = frozenset({"base", "file"})


@dataclass(frozen=True)
class Removal:
    """What goes from the ledger with some runs, see `Ledger.forget_runs`."""

    runs: tuple[str, ...]
    keys: frozenset[str]
    makings: frozenset[int]
    heirs: Mapping[str, str]


NOTHING = Removal((), frozenset(), frozenset(), {})


class Holdings:
    """Who has what in a home, as its ledger says now.

    Attributes:
        runs: all runs, by their names.
    """

    def __init__(self, ledger: Ledger, objects: Collection[str]) -> None:
        """Reads the ledger; beside a writer this is done `at_one_moment`.

        Args:
            objects: digests of the objects that the home has.
        """
        self.runs = {run.name: run for run in ledger.runs()}
        self._makings = {making.number: making for making in ledger.makings()}
        self._finished = ledger.finished()
        self._keys = ledger.known_keys()
        self._states = {key: [digest for _, digest in ledger.states(key)] for key in self._keys}
        self._groups = {key: [it for _, it in ledger.steps(key) if it is not None] for key in self._keys}
        self._objects = frozenset(objects)
        # A run that evaluates a model of the home has the path of its object in its recipe.
        self._named = {name: set(_OBJECT.findall(json.dumps(run.recipe))) for name, run in self.runs.items()}
        self._parents = {parent for making in self._makings.values() for parent in making.parents}
        self._owners = self._read_owners()

    def removal(self, runs: Collection[str]) -> Removal:
        """What is forgotten with these runs."""
        staying = self.runs.keys() - set(runs)
        keys = {key for key in self._keys if not self._stays(key, staying)}
        staying_makings = self._staying_makings(keys, staying)
        heirs = {
            key: next(name for name in self._owners[key] if name in staying)
            for key, finished in self._finished.items()
            if key not in keys and finished.run in runs
        }
        return Removal(tuple(runs), frozenset(keys), frozenset(self._makings.keys() - staying_makings), heirs)

    def needed_without(self, removal: Removal) -> set[str]:
        """Digests of all that the ledger refers to once these are forgotten."""
        artifacts = {it.digest for it in self._makings.values() if it.number not in removal.makings}
        keys = [key for key in self._keys if key not in removal.keys]
        return artifacts.union(*(self._states[key] + self._groups[key] for key in keys))

    def reached(self, run: str) -> set[str]:
        """Digests of all that a run has or names, and of what its artifacts were made from."""
        keys = [key for key in self._keys if run in self._owners.get(_stage_of(key), ())]
        named = [number for number, making in self._makings.items() if making.digest in self._named[run]]
        made = self._with_ancestors([*named, *(number for key in keys for number in self._made_by(key))])
        return {self._makings[number].digest for number in made}.union(
            *(self._states[key] + self._groups[key] for key in keys)
        )

    def of_stage(self, key: str) -> set[str]:
        """Digests of what a stage made and keeps, its states too."""
        keys = [it for it in self._keys if _stage_of(it) in (key, self._log_key(key))]
        made = {self._makings[number].digest for it in keys for number in self._made_by(it)}
        return made.union(*(self._states[it] + self._groups[it] for it in keys))

    def only_states(self) -> set[str]:
        """Digests of states that are nothing else; the last one may be the very object that a stage made."""
        others = {making.digest for making in self._makings.values()}.union(*self._groups.values())
        return set[str]().union(*self._states.values()) - others

    def is_finished(self, run: RunRecord) -> bool:
        """Whether all stages of a run's recipe are."""
        done = {stage.name for stage in run.stages if stage.key in self._finished}
        names = {settings["name"] for settings in run.recipe.get("stage", ())}
        return done >= names.union(stage.name for stage in run.stages)

    def _read_owners(self) -> dict[str, list[str]]:
        """The runs that each stage is of, by its key; a stage that was adopted needs the one it was adopted from."""
        owners: dict[str, list[str]] = {}
        for run in self.runs.values():
            for key in (*(stage.key for stage in (*run.stages, *run.earlier)), *run.recorded):
                owners.setdefault(key, []).append(run.name)
        for key, finished in self._finished.items():
            owners.setdefault(key, []).append(finished.run)
        for key in self._finished:
            origin = self._log_key(key)
            if origin != key:
                owners.setdefault(origin, []).extend(owners[key])
        return owners

    def _log_key(self, key: str) -> str:
        """The key under which a stage's steps are: that of the stage it was adopted from, if it was."""
        finished = self._finished.get(key)
        origin = self._makings[finished.number].metrics.get(ADOPTED) if finished else None
        return str(origin["key"]) if origin else key

    def _stays(self, key: str, staying: Collection[str]) -> bool:
        """Whether a stage, or what is kept beside it, is of a run that stays, or may be."""
        owners = self._owners.get(_stage_of(key))
        return bool(staying) if owners is None else any(name in staying for name in owners)

    def _staying_makings(self, doomed: Collection[str], staying: Collection[str]) -> set[int]:
        """The numbers of the artifacts that stay, with all that they were made from."""
        of_stages = {finished.number: key for key, finished in self._finished.items() if key not in doomed}
        had = {finished.number for finished in self._finished.values()}
        named = set[str]().union(*(self._named[name] for name in staying))
        unfinished = any(not self.is_finished(self.runs[name]) for name in staying) or any(
            _stage_of(key) not in self._owners for key in self._keys if key not in doomed
        )
        kept = self._with_ancestors(
            number
            for number, making in self._makings.items()
            if number in of_stages
            or making.digest in named
            or (OF_STAGE in making.metrics and self._stays(making.metrics[OF_STAGE], staying))
            or (number not in had and OF_STAGE not in making.metrics and self._may_be_read(number, staying, unfinished))
        )
        # What came from outside may be recorded twice, and only once as a parent: each record says something else.
        digests = {self._makings[number].digest for number in kept}
        return {
            number
            for number, making in self._makings.items()
            if number in kept or (making.kind in _FROM_OUTSIDE and making.digest in digests)
        }

    def _may_be_read(self, number: int, staying: Collection[str], unfinished: bool) -> bool:
        """Whether a run that stays may read an artifact that no stage has, although nothing that stays was made of it.

        An unfinished stage does not say what it reads, nor does one that no run has any more. What has no object only
        says what something is, and takes no room.
        """
        making = self._makings[number]
        if making.kind in _FROM_OUTSIDE:
            return unfinished or (bool(staying) and making.digest not in self._objects)
        return bool(staying) and number not in self._parents

    def _made_by(self, key: str) -> Iterator[int]:
        """The artifact of a stage, and the models that it kept on its way."""
        if key in self._finished:
            yield self._finished[key].number
        yield from (number for number, making in self._makings.items() if making.metrics.get(OF_STAGE) == key)

    def _with_ancestors(self, numbers: Iterable[int]) -> set[int]:
        found: set[int] = set()
        waiting = list(numbers)
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += self._makings[number].parents
        return found


def _stage_of(key: str) -> str:
    """The key of a stage, of which this is the key, or that of something beside it, such as the verdicts of a judge."""
    return key.split("/")[0]
