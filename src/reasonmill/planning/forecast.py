"""The plan of a recipe: each stage that is not cached, measured and summed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reasonmill.mill.machine import machine_class
from reasonmill.mill.model_size import ModelSize, sizes_by_stage
from reasonmill.mill.planning import PlannedStage, plan_key
from reasonmill.mill.space import expected_writes, weight_bytes
from reasonmill.mill.workload import AT_MOST, LIKELY, Guess, Workload, workloads
from reasonmill.peak_memory import memory_of
from reasonmill.planning.costs import Cost, missing, numbers_of, priced, seconds_of
from reasonmill.planning.lengths import Lengths, expected_length, guess_of, taught_steps
from reasonmill.planning.measuring import Measurements
from reasonmill.planning.memory import Numbers, Peak, at_a_time, peak, what_lowers
from reasonmill.planning.probes import Learned, Sampled
from reasonmill.recipe.graph import Node
from reasonmill.store.plans import Plan


@dataclass(frozen=True)
class Machine:
    """What a plan is made for.

    Attributes:
        free_bytes, memory_bytes: of the device's memory, nobody's and all.
        price_per_hour: of a device; None where nobody said.
    """

    device: str
    devices: int
    free_bytes: float
    memory_bytes: float
    price_per_hour: float | None = None

    @classmethod
    def here(cls, device: str, devices: int, price_per_hour: float | None) -> Machine:
        """This one."""
        free, whole = memory_of(device)
        return cls(device, devices, free, whole, price_per_hour)


@dataclass(frozen=True)
class Forecast:
    """A plan.

    Attributes:
        likely, most: what each stage that is not cached will take, by its name: with responses as long as expected, and
            with all of them as long as they may be.
        lengths: the expected responses of stages that sample.
        plans: what is kept of it.
    """

    likely: Mapping[str, Cost]
    most: Mapping[str, Cost]
    lengths: Mapping[str, Lengths]
    plans: tuple[Plan, ...]


def forecast(
    nodes: Sequence[Node], planned: Sequence[PlannedStage], measurements: Measurements, machine: Machine
) -> Forecast:
    """Plans the stages that are not cached, and measures what was not measured before.

    Args:
        planned: what a run would do with each of the nodes.
    """
    return _Forecaster(nodes, planned, measurements, machine).forecast()


class _Forecaster:
    def __init__(
        self, nodes: Sequence[Node], planned: Sequence[PlannedStage], measurements: Measurements, machine: Machine
    ) -> None:
        self._open = {p.name: (node, p) for node, p in zip(nodes, planned, strict=True) if p.status != "cached"}
        self._nodes, self._measurements, self._machine = tuple(nodes), measurements, machine
        self._sizes = sizes_by_stage(self._nodes, measurements.home)
        self._sampled: dict[str, Sampled | None] = {}

    def forecast(self) -> Forecast:
        artifacts = self._measurements.artifacts
        behind = taught_steps(self._nodes, artifacts.keys())
        first = workloads(self._nodes, artifacts, LIKELY)
        home, run = self._measurements.home, self._measurements.recipe.name
        lengths: dict[str, Lengths] = {}
        likely: dict[str, Guess] = {}
        most: dict[str, Guess] = {}
        for name, (node, _) in self._open.items():
            work = first[name]
            if work is None or not work.sampled:
                continue
            settings: Any = node.settings
            measured = self._sampled[name] = self._measured_sampling(node, work)
            lengths[name] = expected_length(node, measured, behind[name], home.ledger if home else None, run)
            prompt = measured.prompt if measured else None
            likely[name] = guess_of(lengths[name], settings.sampling.max_tokens, prompt)
            most[name] = AT_MOST if prompt is None else replace(AT_MOST, prompt_tokens=prompt)
        works = workloads(self._nodes, artifacts, LIKELY, likely)
        limits = workloads(self._nodes, artifacts, AT_MOST, most)
        costs: dict[str, Cost] = {}
        bounds: dict[str, Cost] = {}
        for name in self._open:
            costs[name], bounds[name] = self._costs(name, works[name], limits[name])
        return Forecast(costs, bounds, lengths, self._plans(costs))

    def _costs(self, name: str, likely: Workload | None, most: Workload | None) -> tuple[Cost, Cost]:
        if likely is None or most is None:
            nothing = Cost(unknown=("how much data it reads",))
            return nothing, nothing
        node, _ = self._open[name]
        learned = None
        if (likely.trained or likely.scored) and not self._does_not_fit(node, likely):
            learned = self._measurements.learning(node, likely)
        return self._cost(name, likely, learned), self._cost(name, most, learned)

    def _cost(self, name: str, work: Workload, learned: Learned | None) -> Cost:
        node, stage = self._open[name]
        settings, sizes = node.settings, self._sizes[name]
        width = self._weight_bytes(node)
        if work.rescored and width < 4:
            work = replace(work, scored={**work.scored, "from": work.scored.get("from", 0.0) + work.rescored})
        left = _left(settings, stage)
        policy = self._policy(node)
        found = self._peak(node, work, learned) if policy else None
        computes = bool(work.sampled or work.trained or work.scored)
        is_here = not computes or settings.kind == "pretrain" or self._measurements.model(node) is not None
        refused = self._does_not_fit(node, work) if is_here else ""
        if policy:  # where memory is short, sequences wait
            work = replace(work, sequences=at_a_time(self._numbers(node, work, policy, learned)))
        seconds = None if work.served else seconds_of(work, self._sampled.get(name), learned, policy, sizes)
        writes = expected_writes(settings, work, policy, weight_bytes=width, resumes_at=stage.resumes_at)
        cost = Cost(
            tokens=work.tokens * left,
            seconds=None if seconds is None else seconds * left,
            memory_bytes=found.total if found and computes else None if computes else 0.0,
            disk_bytes=writes.total,
            unknown=(*missing(work, is_here, found), *((refused,) if refused else ())),
            fix=self._fix(node, work, found, learned),
        )
        return priced(cost, self._machine.price_per_hour, self._machine.devices)

    def _measured_sampling(self, node: Node, work: Workload) -> Sampled | None:
        return None if self._does_not_fit(node, work) else self._measurements.sampling(node)

    def _does_not_fit(self, node: Node, work: Workload) -> str:
        """Why the stage is not measured: what it needs is not free. Empty where it is."""
        if self._policy(node) is None:
            return ""
        found = self._peak(node, work, None)
        if found.total - found.parts.get("process", 0.0) <= self._machine.free_bytes:
            return ""
        return "how fast it is: too little memory is free to measure it"

    def _peak(self, node: Node, work: Workload, learned: Learned | None) -> Peak:
        policy = self._policy(node)
        assert policy is not None  # asked before
        return peak(self._numbers(node, work, policy, learned))

    def _numbers(self, node: Node, work: Workload, policy: ModelSize, learned: Learned | None) -> Numbers:
        name = node.settings.name
        process = self._measurements.process_bytes if self._machine.device == "cpu" else 0
        sampled = self._sampled.get(name)
        card = self._machine.free_bytes if self._machine.device == "cuda" else None
        return numbers_of(work, policy, self._sizes[name], self._weight_bytes(node), sampled, learned, process, card)

    def _fix(self, node: Node, work: Workload, found: Peak | None, learned: Learned | None) -> str:
        policy = self._policy(node)
        if found is None or policy is None or found.total <= self._machine.memory_bytes:
            return ""
        numbers = self._numbers(node, work, policy, learned)
        has_slots = hasattr(getattr(node.settings, "sampling", None), "slots")
        can_recompute = getattr(node.settings, "recompute", None) is False
        name, memory = node.settings.name, self._machine.memory_bytes
        return what_lowers(found, numbers, name, memory, has_slots=has_slots, can_recompute=can_recompute)

    def _policy(self, node: Node) -> ModelSize | None:
        sizes = self._sizes[node.settings.name]
        return sizes[""] or sizes.get("from")

    def _weight_bytes(self, node: Node) -> int:
        return weight_bytes(node.settings, 2 if self._machine.device == "cuda" else 4)

    def _plans(self, costs: Mapping[str, Cost]) -> tuple[Plan, ...]:
        """What is kept: of stages that take time here."""
        recipe, home = self._measurements.recipe, self._measurements.home
        machine = machine_class(self._machine.device)
        made = []
        for name, cost in costs.items():
            node, stage = self._open[name]
            if cost.seconds:
                begun = len(home.ledger.steps(stage.key)) if home and stage.key else 0
                key = plan_key(recipe, node)
                made.append(Plan(key, machine, begun, cost.seconds, cost.memory_bytes))
        return tuple(made)


def _left(settings: Any, stage: PlannedStage) -> float:
    """The share of a stage that is not done yet."""
    steps: int | None = getattr(settings, "steps", None)
    return 1 - stage.resumes_at / steps if stage.resumes_at is not None and steps else 1.0
