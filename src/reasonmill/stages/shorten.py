"""A smaller student: the model without some of its layers (R1 paper: distillation goes into smaller models)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file

from reasonmill.errors import RecipeError
from reasonmill.recipe.reference import ModelRef
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.store.commit import MANIFEST

MAKES: ArtifactKind = "model"

_CONFIG, _WEIGHTS, _DEPTH = "config.json", "*.safetensors", "num_hidden_layers"
# The number of a layer within the name of a weight, as transformers' decoders have it.
_OF_LAYER = re.compile(r"(?P<before>^|.*\.)layers\.(?P<layer>\d+)\.(?P<after>.*)")


class Settings(StageSettings):
    """Settings of a `shorten` stage."""

    kind: Literal["shorten"]
    from_: ModelRef = Field(alias="from", description="the model that loses layers")
    layers: int = Field(ge=2, description="how many are left, spread evenly, the first and the last among them")


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Leaves out layers of the model `from` refers to. Nothing is trained: what is left has to learn anew.

    Raises:
        RecipeError: it has no more layers than are to be left, or no weights as safetensors.
    """
    source = inputs["from"].path
    config = json.loads((source / _CONFIG).read_text(encoding="utf-8"))
    depth = config.get(_DEPTH, 0)
    if settings.layers >= depth:
        raise RecipeError(
            f"the model has {depth} layers, and {settings.layers} are to be left",
            where=f"layers of stage {settings.name!r}",
            fix="leave fewer",
        )
    if not any(source.glob(_WEIGHTS)):
        raise RecipeError(
            "the model has no weights as safetensors",
            where=str(source),
            fix="save it with save_pretrained of transformers",
        )
    kept = layers_left(depth, settings.layers)
    metrics = {"layers": len(kept), "layers_before": depth, "kept": list(kept)}
    context.progress.begin(settings.name, 1, "models")
    context.progress.end({"layers": len(kept)})
    return Outcome(lambda target: _write(source, target, config, kept), metrics)


def layers_left(depth: int, left: int) -> tuple[int, ...]:
    """The numbers of the layers that stay, from 0 on: the first, the last, and others at even distances."""
    return tuple(round(place * (depth - 1) / (left - 1)) for place in range(left))


def _write(source: Path, target: Path, config: Mapping[str, Any], kept: Sequence[int]) -> None:
    depth = config[_DEPTH]
    # What a config says layer by layer, such as which attention each has, is a list of as many entries.
    each = {
        name: [value[layer] for layer in kept]
        for name, value in config.items()
        if isinstance(value, list) and len(value) == depth
    }
    text = json.dumps({**config, **each, _DEPTH: len(kept)}, indent=2)
    (target / _CONFIG).write_text(text + "\n", encoding="utf-8")
    place_of = {layer: place for place, layer in enumerate(kept)}
    weights = {}
    for file in sorted(source.glob(_WEIGHTS)):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no dictionary
                new = _name_of(name, place_of)
                if new is not None:
                    weights[new] = opened.get_tensor(name)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    # What a home adds to what it keeps is no file of the model.
    written = {_CONFIG, MANIFEST, "model.safetensors.index.json", *(file.name for file in source.glob(_WEIGHTS))}
    for file in source.iterdir():
        if file.is_file() and file.name not in written:
            shutil.copyfile(file, target / file.name)


def _name_of(name: str, place_of: Mapping[int, int]) -> str | None:
    """What a weight is called in the model that is left; None for one of a layer that is not."""
    found = _OF_LAYER.fullmatch(name)
    if found is None:
        return name
    place = place_of.get(int(found["layer"]))
    return None if place is None else f"{found['before']}layers.{place}.{found['after']}"
