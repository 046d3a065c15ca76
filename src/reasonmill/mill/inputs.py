"""What stages read: where each input is, and the digest that identifies it; the keys that this gives the stages, under
which what they make is recorded. No object of a home is read here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reasonmill.content import directory_digest, path_digest
from reasonmill.errors import StoreError
from reasonmill.mill.artifacts import made_digest, made_from_adopted
from reasonmill.mill.models import Note, known_digest, make_ready, object_of, ready_directory
from reasonmill.recipe.graph import Node, Recipe, stage_key
from reasonmill.recipe.hub import fetch
from reasonmill.recipe.models import RecipeModel
from reasonmill.recipe.reference import DirectorySource, FileSource, ModelSource, StageSource
from reasonmill.settings import decisive
from reasonmill.stage import Input
from reasonmill.store.home import Home
from reasonmill.store.ledger import FROM_ADOPTED, StageRecord
from reasonmill.types import Artifact, content_digest


@dataclass(frozen=True)
class KeyedStage:
    """A stage of a recipe whose inputs are there, so that its key is known.

    Attributes:
        inputs: what it reads, by the key of the settings that refers to it.
        parents: the digests that its artifact is made from: its inputs, and the verdicts through which it came by them.
        adopted: those that it is made from, directly or not, and that were adopted from other code.
    """

    node: Node
    recipe: Recipe
    key: str
    inputs: Mapping[str, Input]
    parents: tuple[str, ...]
    adopted: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.node.settings.name

    @property
    def kind(self) -> str:
        return self.node.settings.kind

    @property
    def config_digest(self) -> str:
        return content_digest(decisive(self.node.settings))

    def key_with(self, **changed: Any) -> str:
        """The key that the stage would have if these of its settings were others."""
        other = replace(self.node, settings=self.node.settings.model_copy(update=changed))
        return stage_key(other, self.inputs, self.recipe.seed)

    @property
    def marks(self) -> dict[str, Any]:
        """What the metrics of all that it makes say of it."""
        return {FROM_ADOPTED: list(self.adopted)} if self.adopted else {}

    def commit(
        self, home: Home, digest: str, kind: str, metrics: Mapping[str, Any], seconds: float, tokens: int
    ) -> StageRecord:
        """Records under the stage's key what was made, an object of the home; the run was begun with the stage."""
        known = dict.fromkeys((*metrics.get(FROM_ADOPTED, ()), *self.adopted))
        marked = {**metrics, FROM_ADOPTED: list(known)} if known else metrics
        artifact = Artifact(digest, kind, self.name, self.parents, self.config_digest, marked)
        record = home.ledger.commit_stage(
            key=self.key,
            run=self.recipe.name,
            name=self.name,
            kind=self.kind,
            artifact=artifact,
            seconds=seconds,
            tokens=tokens,
        )
        home.back_up_ledger()
        return record


def keyed(node: Node, artifacts: Mapping[str, Artifact], home: Home | None, recipe: Recipe) -> KeyedStage:
    """A stage with its inputs and its key.

    Args:
        artifacts: what earlier stages made, by their names.
        home: that of these artifacts; None has nothing.
    """
    inputs: dict[str, Input] = {}
    for name, source in node.sources.items():
        if isinstance(source, StageSource):
            assert home is not None  # it holds the artifact
            digest = made_digest(artifacts[source.stage], source.step)
            inputs[name] = Input(model_path(home, digest, recipe), digest)
        elif isinstance(source, ModelSource):
            digest = _known(source.model, home)
            inputs[name] = Input(ready_directory(source.model, digest, home), digest)
        else:
            inputs[name] = Input(source.path, path_digest(source.path))
    sources = [artifacts[name] for name in node.stage_inputs]
    verdicts = [artifact.digest for artifact in sources if artifact.kind == "verdict"]
    parents = (*(read.digest for read in inputs.values()), *verdicts)
    adopted = tuple(made_from_adopted(recipe.nodes, artifacts)[node.settings.name])
    return KeyedStage(node, recipe, stage_key(node, inputs, recipe.seed), inputs, parents, adopted)


def model_path(home: Home, digest: str, recipe: Recipe) -> Path:
    """The directory of an object, or of the model from outside that a gate left in place and no home holds."""
    if not home.objects.exists(digest):
        for source in {source for node in recipe.nodes for source in node.sources.values()}:
            if isinstance(source, ModelSource) and known_digest(source.model, home) == digest:
                return ready_directory(source.model, digest, home)
            if isinstance(source, DirectorySource) and directory_digest(source.path) == digest:
                return source.path
    return home.objects.location(digest)


def make_inputs_ready(stage: KeyedStage, home: Home, note: Note) -> None:
    """Makes sure that what a stage reads from outside is there, and known to the ledger: it can be a parent."""
    for name, source in stage.node.sources.items():
        is_made_here = isinstance(source, ModelSource) and object_of(source.model, home) is not None
        if not isinstance(source, StageSource) and not is_made_here:
            base = source.model.title if isinstance(source, ModelSource) else source.path.name
            kind = "file" if isinstance(source, FileSource) else "base"
            home.ledger.register(Artifact(stage.inputs[name].digest, kind, base, (), content_digest(None)))
    read = {read.digest for read in stage.inputs.values()}
    for model in stage.recipe.models.values():  # also one that a gate promoted
        if known_digest(model, home) in read:
            if model.hub is not None:
                fetch(model)
            make_ready(model, home, note)


def unknown_models(node: Node, home: Home | None) -> tuple[str, ...]:
    """What a stage reads and what the home has never had, so that nobody knows what is in it: packages."""
    models = (source.model for source in node.sources.values() if isinstance(source, ModelSource))
    return tuple(model.title for model in models if known_digest(model, home) is None)


def _known(model: RecipeModel, home: Home | None) -> str:
    digest = known_digest(model, home)
    if digest is None:
        raise StoreError(
            f"the home has never had {model.title}, so that it knows no stage that read it",
            fix="run the recipe, which downloads it",
            where=str(home.path) if home is not None else "",
        )
    return digest
