"""What stages read: where each input is, and the digest that identifies it; no object of a home is read here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reasonmill.content import directory_digest, path_digest
from reasonmill.mill.artifacts import made_digest
from reasonmill.recipe.graph import Node, Recipe
from reasonmill.recipe.hub import HubModel
from reasonmill.recipe.reference import DirectorySource, HubSource, StageSource
from reasonmill.stage import Input
from reasonmill.store.home import Home
from reasonmill.types import Artifact


def stage_inputs(node: Node, artifacts: Mapping[str, Artifact], home: Home | None, recipe: Recipe) -> dict[str, Input]:
    """What a stage reads, by the key of the settings that refers to it.

    Args:
        artifacts: what earlier stages made, by their names.
    """
    inputs = {}
    for name, source in node.sources.items():
        if isinstance(source, StageSource):
            assert home is not None  # it holds the artifact
            digest = made_digest(artifacts[source.stage])
            inputs[name] = Input(model_path(home, digest, recipe), digest)
        elif isinstance(source, HubSource):
            inputs[name] = Input(hub_directory(source.model, home), source.model.digest)
        else:
            inputs[name] = Input(source.path, path_digest(source.path))
    return inputs


def parents(node: Node, inputs: Mapping[str, Input], artifacts: Mapping[str, Artifact]) -> tuple[str, ...]:
    """The digests that a stage's artifact was made from: its inputs, and the verdicts through which it came by them."""
    sources = [artifacts[name] for name in node.stage_inputs]
    verdicts = [artifact.digest for artifact in sources if artifact.kind == "verdict"]
    return (*(read.digest for read in inputs.values()), *verdicts)


def model_path(home: Home, digest: str, recipe: Recipe) -> Path:
    """The directory of an object, or of the model from outside that a gate left in place and no home holds."""
    if not home.objects.exists(digest):
        for source in {source for node in recipe.nodes for source in node.sources.values()}:
            if isinstance(source, HubSource) and source.model.digest == digest:
                return hub_directory(source.model, home)
            if isinstance(source, DirectorySource) and directory_digest(source.path) == digest:
                return source.path
    return home.objects.location(digest)


def hub_directory(model: HubModel, home: Home | None) -> Path:
    """Where stages find a model of the hub. With a template of the recipe's it is made when a stage needs it."""
    return model.directory if model.template is None or home is None else home.scratch(f"hub-{model.digest}")


def apply_template(model: HubModel, home: Home) -> None:
    """Makes the directory that stages read a model of the hub from, where that is not the hub's own."""
    if model.template is not None:
        model.link_with_template(hub_directory(model, home))
