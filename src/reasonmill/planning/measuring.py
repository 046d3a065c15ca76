"""Which measurements the stages of a recipe need, on which models, and which of them a home has already."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cache
from math import ceil, log2
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from reasonmill.content import path_digest
from reasonmill.mill.artifacts import made_digest
from reasonmill.mill.inputs import model_path
from reasonmill.mill.machine import machine_class
from reasonmill.mill.models import found_directory, known_digest
from reasonmill.mill.workload import Workload
from reasonmill.peak_memory import give_back, used_bytes
from reasonmill.placement import SLOTS, Backend, Precision
from reasonmill.planning.probes import (
    Learned,
    LearnerPasses,
    Passes,
    RewardPasses,
    Sampled,
    measure_learning,
    measure_sampling,
)
from reasonmill.recipe.graph import Node, Recipe
from reasonmill.recipe.reference import DirectorySource, ModelSource, Source, StageSource
from reasonmill.rollouts import TaskMix
from reasonmill.store.home import Home
from reasonmill.types import Artifact, Problem, content_digest

Found = TypeVar("Found", Sampled, Learned)

_ON_POLICY = ("rl", "distill")


@dataclass(frozen=True)
class Model:
    """A model that a measurement is made on: its directory, and what identifies its content."""

    path: Path
    digest: str


@dataclass
class Measurements:
    """Makes measurements, and keeps them.

    Attributes:
        kept: by what was measured, as JSON: those of the home at first.
        process_bytes: what this process, or one that made a measurement, has in use without a model.
    """

    recipe: Recipe
    backend: Backend
    home: Home | None
    artifacts: Mapping[str, Artifact]
    kept: dict[str, Any]
    note: Callable[[str], None]
    process_bytes: int
    _nodes: dict[str, Node] = field(init=False)
    _models: dict[Source, Model | None] = field(default_factory=dict, init=False)  # whose digests take long to make
    _open: ExitStack = field(default_factory=ExitStack, init=False)

    def __post_init__(self) -> None:
        self._nodes = {node.settings.name: node for node in self.recipe.nodes}

    def close(self) -> None:
        """Removes the directories of models that are prompted otherwise than by their own files."""
        self._open.close()

    def model(self, node: Node, key: str = "from") -> Model | None:
        """What stands for the model that a stage reads: that model, or the one that it will be made from.

        None where the recipe makes it from nothing, or it is on no disk here.
        """
        source = node.sources.get(key)
        if source is not None and source not in self._models:
            self._models[source] = self._found(source)
        return self._models[source] if source is not None else None

    def _found(self, source: Source) -> Model | None:
        if isinstance(source, DirectorySource):
            return Model(source.path, path_digest(source.path))
        if isinstance(source, ModelSource):
            directory, digest = found_directory(source.model, self.home), known_digest(source.model, self.home)
            if directory is None or digest is None or not (directory / "config.json").is_file():
                return None
            if source.model.is_as_it_lies:
                return Model(directory, digest)
            prompted = Path(self._open.enter_context(TemporaryDirectory())) / "model"
            source.model.link_as_meant(prompted, directory)
            return Model(prompted, digest)
        if not isinstance(source, StageSource):
            return None
        made = self.artifacts.get(source.stage)
        if made is not None and self.home is not None:
            digest = made_digest(made, source.step)
            return Model(model_path(self.home, digest, self.recipe), digest)
        earlier = self._nodes[source.stage]
        return self.model(earlier, "candidate" if earlier.settings.kind == "gate" else "from")

    def sampling(self, node: Node) -> Sampled | None:
        """How fast the stage's sampler is, and how long its responses are; None where there is no model yet."""
        settings: Any = node.settings
        model = self.model(node)
        if model is None:
            return None
        slots = getattr(settings.sampling, "slots", SLOTS)
        tasks = {key: plugin.identity for key, plugin in node.plugins.items() if plugin.group == "tasks"}
        shape = [model.digest, _precision(settings), settings.sampling.model_dump(), slots, _samples(settings)]
        shape += [tasks, _asked(settings)]
        return self._kept(Sampled, node, "sampling", shape, lambda: self._sample(node, model, slots))

    def learning(self, node: Node, work: Workload) -> Learned | None:
        """How fast the stage's learner is on texts as long as the stage's; None where there is no model yet."""
        settings: Any = node.settings
        row, texts = _nearly(work.row), _nearly(work.text)
        if settings.kind == "pretrain":
            model, digest = None, content_digest([settings.model_type, settings.model])
        else:
            model = self.model(node)
            if model is None:
                return None
            digest = model.digest
        lora = work.lora and work.lora.model_dump()
        shape = [digest, _precision(settings), row, texts, settings.kind == "reward-model", lora]
        shape.append(work.recompute)
        return self._kept(Learned, node, "learning", shape, lambda: self._learn(node, model, work, row, texts))

    def _kept(
        self, kind: type[Found], node: Node, what: str, shape: Sequence[Any], measure: Callable[[], Found]
    ) -> Found:
        """What the home has of a measurement, or a new one."""
        key = content_digest([what, machine_class(self.backend.placement.device), _code(), list(shape)])
        if key not in self.kept:
            self.note(f"{node.settings.name}  measures {what}")
            measured = asdict(measure())
            gc.collect()  # the model
            give_back("cpu")  # and its memory, so that what is in use now is so without a model
            self.kept[key] = {"measured": measured, "process": used_bytes("cpu")}
        self.process_bytes = max(self.process_bytes, self.kept[key]["process"] or 0)
        return kind(**self.kept[key]["measured"])

    def _sample(self, node: Node, model: Model, slots: int) -> Sampled:
        settings: Any = node.settings
        began = time.monotonic()
        renderer = self.backend.renderer(model.path)
        # A learner's sampler shares its weights, so that it is as fast as one of its own.
        sampler = self.backend.sampler(model.path, slots=slots, precision=_precision(settings))
        loading = time.monotonic() - began
        tasks = {name: self.recipe.catalogue.task(name) for name in settings.tasks}
        samples = _samples(settings)
        found = measure_sampling(
            sampler,
            renderer,
            tasks,
            self._problems(settings, ceil(slots / samples)),
            samples=samples,
            params=settings.sampling.params(),
            device=self.backend.placement.device,
        )
        return Sampled(**{**asdict(found), "load_s": loading})

    def _problems(self, settings: Any, at_most: int) -> list[Problem]:
        """Problems of one call of the stage, no more than run at the same time."""
        tasks = {name: self.recipe.catalogue.task(name) for name in settings.tasks}
        if settings.kind in _ON_POLICY:
            mix = TaskMix(tasks, settings.tasks)
            count = min(at_most, settings.problems_per_step)
            return [mix.problem("train", self.recipe.seed, index) for index in range(count)]
        whole = sum(settings.tasks.values())
        share = min(1.0, at_most / whole)
        return [
            tasks[name].problem(settings.split, self.recipe.seed, index)
            for name, count in settings.tasks.items()
            for index in range(ceil(count * share))
        ][:at_most]

    def _learn(self, node: Node, model: Model | None, work: Workload, row: int, text: int) -> Learned:
        settings: Any = node.settings
        began = time.monotonic()
        passes: Passes
        if model is None:
            config = {**settings.model, "vocab_size": settings.tokenizer.vocab_size}
            made = self.backend.new_learner(
                settings.model_type, config, settings.optimizer, seed=0, precision=settings.precision
            )
            passes = LearnerPasses(made, text)
        elif settings.kind == "reward-model":
            judged = self.backend.reward_learner(
                model.path, settings.optimizer, view="answer", precision=settings.precision
            )
            passes = RewardPasses(judged, text)
        else:
            how = {"precision": settings.precision, "lora": work.lora, "recompute": work.recompute}
            learner = self.backend.learner(model.path, settings.optimizer, **how)
            passes = LearnerPasses(learner, text)
        loading = time.monotonic() - began
        found = measure_learning(
            passes,
            row=row,
            device=self.backend.placement.device,
        )
        return Learned(**{**asdict(found), "load_s": loading})


def _precision(settings: Any) -> Precision:
    """That of stages which say nothing of it is the device's."""
    precision: Precision = getattr(settings, "precision", "auto")
    return precision


def _samples(settings: Any) -> int:
    return int(settings.group_size if settings.kind in _ON_POLICY else settings.samples)


def _asked(settings: Any) -> list[Any]:
    return [list(settings.tasks.items()), getattr(settings, "problems_per_step", None)]


def _nearly(tokens: float) -> int:
    """Tokens of a text or a row as a power of two, so that nearly equal shapes share a measurement."""
    return int(2 ** round(log2(max(2.0, tokens))))


@cache
def _code() -> str:
    """Identifies the package's code: what was measured of other code says nothing."""
    package = Path(__file__).parents[1]
    return content_digest(
        [[str(file.relative_to(package)), path_digest(file)] for file in sorted(package.rglob("*.py"))]
    )
