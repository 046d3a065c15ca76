"""Who may import whom, read from the source: one table, and a proof that the check sees what it should."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import reasonmill

PACKAGE = "reasonmill"
SOURCE = Path(reasonmill.__file__).parent
MAX_LINES = 450
# Names that say nothing about what is inside.
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}
THIRD_PARTY = "third-party"

# What computes, which stages get from their context and never import.
WHAT_COMPUTES = {
    *("reasonmill.backends", "reasonmill.sample", "reasonmill.model", "reasonmill.render", "reasonmill.rewards.model"),
    *("reasonmill.learn.adamw", "reasonmill.learn.local", "reasonmill.learn.trained", "reasonmill.learn.scalar"),
    *("reasonmill.learn.reference", "reasonmill.learn.state_file"),
}

# A room (a folder or module right under the package) and what it never imports: names with all that is below them,
# or everything that does not come with Python. "*" speaks of every room.
NEVER_IMPORTS: dict[str, set[str]] = {
    "*": {"reasonmill.cli", "reasonmill.__main__"},
    "types": {"reasonmill", THIRD_PARTY},
    "errors": {"reasonmill", THIRD_PARTY},
    "randomness": {"reasonmill", THIRD_PARTY},
    "transcript": {"reasonmill", THIRD_PARTY},
    "settings": {"reasonmill"},
    "templates": {"reasonmill", THIRD_PARTY},
    "activity": {"reasonmill", THIRD_PARTY},
    "languages": {"torch", "transformers"},
    # What runs in the jail can't see the package; the rest of the room knows of no task and no grader.
    "jail": {
        *("torch", "transformers", "pydantic", "numpy", "reasonmill.grading", "reasonmill.tasks", "reasonmill.plugins"),
        *("reasonmill.recipe", "reasonmill.stages", "reasonmill.store", "reasonmill.mill", "reasonmill.types"),
    },
    # Graders run in processes of their own, where torch would cost seconds and memory.
    "tasks": {
        *("torch", "transformers", "reasonmill.algo", "reasonmill.model", "reasonmill.sample", "reasonmill.learn"),
        *("reasonmill.stages", "reasonmill.mill"),
        "reasonmill.plugins",  # tasks are found, and find nobody
    },
    "grading": {
        *("torch", "transformers", "reasonmill.world", "reasonmill.stages", "reasonmill.mill", "reasonmill.store"),
        *("reasonmill.plugins", "reasonmill.recipe"),
    },
    "world": {"torch", "reasonmill.plugins", "reasonmill.recipe", "reasonmill.stages", "reasonmill.mill"},
    # A catalogue is asked for names by recipes and stages, and knows of neither but what they are called.
    "plugins": {
        *("torch", "transformers", "reasonmill.recipe", "reasonmill.mill", "reasonmill.store", "reasonmill.algo"),
        *("reasonmill.model", "reasonmill.sample", "reasonmill.learn", "reasonmill.stages"),
    },
    "recipe": {"torch", "transformers", "reasonmill.stages", "reasonmill.mill", "reasonmill.store"},
    "content": {THIRD_PARTY, "reasonmill.store", "reasonmill.recipe", "reasonmill.plugins", "reasonmill.mill"},
    "servers": {
        *("torch", "transformers", "reasonmill.sample", "reasonmill.learn", "reasonmill.rewards", "reasonmill.stages"),
        *("reasonmill.store", "reasonmill.mill"),
    },
    "data": {
        *("torch", "transformers", "reasonmill.algo", "reasonmill.model", "reasonmill.sample", "reasonmill.learn"),
        *("reasonmill.plugins", "reasonmill.recipe", "reasonmill.stages", "reasonmill.store", "reasonmill.mill"),
    },
    "published": {
        *("torch", "transformers", "reasonmill.algo", "reasonmill.model", "reasonmill.sample", "reasonmill.learn"),
        *("reasonmill.plugins", "reasonmill.recipe", "reasonmill.stages", "reasonmill.store", "reasonmill.mill"),
    },
    "gym": {
        *("torch", "transformers", "reasonmill.algo", "reasonmill.model", "reasonmill.sample", "reasonmill.learn"),
        *("reasonmill.plugins", "reasonmill.recipe", "reasonmill.stages", "reasonmill.store", "reasonmill.mill"),
    },
    "worked": {
        *("torch", "transformers", "reasonmill.algo", "reasonmill.model", "reasonmill.sample", "reasonmill.learn"),
        *("reasonmill.plugins", "reasonmill.recipe", "reasonmill.stages", "reasonmill.store", "reasonmill.mill"),
    },
    "curation": {
        *("torch", "reasonmill.algo", "reasonmill.learn", "reasonmill.sample", "reasonmill.stages"),
        "reasonmill.plugins",
    },
    "audit": {
        *("torch", "transformers", "reasonmill.algo", "reasonmill.model", "reasonmill.sample", "reasonmill.learn"),
        *("reasonmill.stages", "reasonmill.mill", "reasonmill.store"),
    },
    "workers": {
        *("torch", "transformers", "numpy", "reasonmill.plugins", "reasonmill.tasks", "reasonmill.rewards"),
        *("reasonmill.recipe", "reasonmill.store", "reasonmill.stages", "reasonmill.mill", "reasonmill.world"),
    },
    "rewards": {"reasonmill.plugins", "reasonmill.stages", "reasonmill.recipe", "reasonmill.mill"},
    "store": {"torch", "transformers", "reasonmill.stages", "reasonmill.mill"},
    "algo": {"transformers", "reasonmill.tasks", "reasonmill.model", "reasonmill.sample", "reasonmill.learn"},
    "model": {"reasonmill.sample", "reasonmill.learn", "reasonmill.tasks", "reasonmill.stages"},
    "sample": {"reasonmill.learn", "reasonmill.tasks", "reasonmill.stages", "reasonmill.mill"},
    "learn": {"reasonmill.sample", "reasonmill.tasks", "reasonmill.stages", "reasonmill.mill"},
    "stages": {"reasonmill.mill", *WHAT_COMPUTES},
    "stage": {"reasonmill.stages", "reasonmill.recipe", "reasonmill.mill", *WHAT_COMPUTES},
    "placement": {"torch", "reasonmill.stages", "reasonmill.mill", *WHAT_COMPUTES},
    "protocols": {"reasonmill.stages", "reasonmill.mill", *WHAT_COMPUTES},
    "backends": {"reasonmill.stages", "reasonmill.mill", "reasonmill.store", "reasonmill.world"},
    # What is measured is what a backend makes; what is looked at is what runs use.
    "planning": {"reasonmill.stages", *WHAT_COMPUTES},
    "fitness": {*WHAT_COMPUTES},
    "evaluation": {*WHAT_COMPUTES},
    "kept": {"reasonmill.stages", "reasonmill.mill", *WHAT_COMPUTES},
    "kept_samples": {"reasonmill.stages", "reasonmill.mill", *WHAT_COMPUTES},
    "peak_memory": {"reasonmill"},
    "doctor": {"transformers", "reasonmill.stages", "reasonmill.mill", *WHAT_COMPUTES},
}
# Stages that stand in another room.
STAGES_ELSEWHERE = {"world/pretrain.py"}
# Rooms that others are open to, and never import themselves: only what is listed does, each for a reason. For type
# checkers, estimates know what they estimate.
FOUND_BY_NAME: dict[str, dict[str, str]] = {
    "world": {"mill/workload.py": "reasonmill.world.pretrain"},
}
# The tiny world's tasks are named in its own room and in recipes.
WORLD_TASKS = frozenset(tomllib.loads((SOURCE / "world" / "offers.toml").read_text(encoding="utf-8"))["tasks"])
# The one place that may import the composition root.
EXCEPTIONS = {("__main__", "reasonmill.cli")}

# Rooms that change a home only through the store's one module for that, so that tests see each of the changes.
WRITERS = {"store", "mill"}
DISK = "store/disk.py"
# What changes a disk, as a method of whatever it is called on; `replace` of one argument is that of a path.
CHANGES = {
    *("rename", "renames", "fsync", "fdatasync", "mkdir", "makedirs", "unlink", "remove", "rmdir", "removedirs"),
    *("write_text", "write_bytes", "touch", "symlink", "symlink_to", "link", "hardlink_to", "truncate", "ftruncate"),
    *("pwrite", "sendfile", "copyfile", "copytree", "copy2", "rmtree", "move", "make_archive", "O_CREAT", "O_TRUNC"),
    *("O_APPEND", "O_WRONLY", "mkstemp", "mkdtemp", "NamedTemporaryFile"),
}
STATEMENT = re.compile(r"COMMIT|END|VACUUM.*|PRAGMA (JOURNAL_MODE =|SYNCHRONOUS|WAL_CHECKPOINT).*", re.IGNORECASE)


def room_of(path: Path, source: Path) -> str:
    return path.relative_to(source).parts[0].removesuffix(".py")


@cache  # each rule looks through all of them
def nodes(source: bytes) -> list[ast.AST]:
    """All of a module's syntax."""
    return list(ast.walk(ast.parse(source)))


def imports(path: Path, source: Path) -> Iterator[str]:
    """Full names of all that a module imports anywhere: at its top, in functions and for type checks."""
    package = [PACKAGE, *path.relative_to(source).parent.parts]
    for node in nodes(path.read_bytes()):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            origin += [node.module] if node.module else []
            # What is imported from a package may be a module of it.
            yield from (".".join([*origin, alias.name]) for alias in node.names)


def texts(path: Path) -> Iterator[str]:
    """All texts that a module has as constants, also within f-strings; docstrings are texts, too."""
    for node in nodes(path.read_bytes()):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_within(name: str, area: str) -> bool:
    if area == THIRD_PARTY:
        return name.split(".")[0] not in {*sys.stdlib_module_names, PACKAGE}
    return name == area or name.startswith(area + ".")


def disk_changes(path: Path) -> Iterator[str]:
    """What a module does to a disk other than through the module `disk`."""
    for node in nodes(path.read_bytes()):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "tempfile"):
            yield f"names from {node.module} without it"
        elif isinstance(node, ast.Attribute) and node.attr in CHANGES and not _is_of_disk(node):
            yield node.attr
        elif isinstance(node, ast.Constant) and STATEMENT.fullmatch(str(node.value)):
            yield str(node.value)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "replace" and len(node.args) == 1 and not node.keywords:
                yield "replace"
            if name == "open" and _opens_for_writing(node):
                yield "open for writing"


def _is_of_disk(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "disk"


def _opens_for_writing(call: ast.Call) -> bool:
    """Whether a mode is given that may write; `os.open` has flags instead."""
    modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    return any(len(text) <= 3 and set(text) & set("wax+") for text in texts)


def violations(source: Path) -> list[str]:
    """One line for each rule that a module breaks."""
    found = []
    for path in sorted(source.rglob("*.py")):
        place = str(path.relative_to(source))
        room = room_of(path, source)
        refused = (
            NEVER_IMPORTS["*"]
            | NEVER_IMPORTS.get(room, set())
            | (WHAT_COMPUTES if place in STAGES_ELSEWHERE else set())
        )
        for name in imports(path, source):
            for area in refused:
                if is_within(name, area) and (room, area) not in EXCEPTIONS:
                    found.append(f"{place} imports {name}")
            for other, importers in FOUND_BY_NAME.items():
                known = importers.get(place, "nothing")
                if room != other and is_within(name, f"{PACKAGE}.{other}") and not is_within(name, known):
                    found.append(f"{place} imports {name}")
        if room != "world":
            found += [f"{place} names the task {name}" for name in texts(path) if name in WORLD_TASKS]
        if room in WRITERS and place != DISK:
            found += [f"{place} changes the disk by itself: {change}" for change in disk_changes(path)]
        found += [f"{place} has a name that says nothing" for part in path.with_suffix("").parts if part in NAMELESS]
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            found.append(f"{place} has {lines} lines")
    return found


def test_the_rooms_keep_apart() -> None:
    assert len(list(SOURCE.rglob("*.py"))) > 40
    assert violations(SOURCE) == []


def test_the_exceptions_are_still_needed() -> None:
    for importers in FOUND_BY_NAME.values():
        for place, name in importers.items():
            assert any(is_within(found, name) for found in imports(SOURCE / place, SOURCE)), place


def test_the_table_speaks_of_rooms_that_exist() -> None:
    rooms = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix in ("", ".py")}
    named = {area.split(".")[1] for areas in NEVER_IMPORTS.values() for area in areas if area.startswith("reasonmill.")}
    assert (NEVER_IMPORTS.keys() - {"*"}) | named <= rooms


WITHOUT_TORCH = (
    *("reasonmill.tasks.named", "reasonmill.store.home", "reasonmill.curation.selection", "reasonmill.upkeep"),
    *("reasonmill.plugins.catalogue", "reasonmill.recipe.load", "reasonmill.grading.code"),
    *("reasonmill.audit.command", "reasonmill.doctor.command", "reasonmill.peak_memory"),
    *("reasonmill.tasks.graded", "reasonmill.grade"),
    *("reasonmill.world.countdown", "reasonmill.world.general", "reasonmill.servers.client"),
)
# Imports modules one after the other, and says which was the first to load torch.
LOADS_TORCH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(name)
"""


def first_with_torch(*modules: str, path: Path = SOURCE.parent) -> str:
    command = [sys.executable, "-c", LOADS_TORCH, *modules]
    ended = subprocess.run(command, env={"PYTHONPATH": str(path)}, stderr=subprocess.PIPE, text=True, check=False)
    return ended.stderr.strip()


def test_these_rooms_do_not_even_load_torch() -> None:
    """Neither by themselves nor through what they import: if all of them together do not, none of them does."""
    assert first_with_torch(*WITHOUT_TORCH) == ""


def test_the_first_that_loads_torch_is_named(tmp_path: Path) -> None:
    for name, code in {"torch": "", "without": "import json", "within": "import without, torch", "later": ""}.items():
        (tmp_path / f"{name}.py").write_text(code)
    assert first_with_torch("without", "within", "later", path=tmp_path) == "within"


# The check itself


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("types.py", "import numpy"),
        ("types.py", "from reasonmill.errors import StoreError"),
        ("randomness.py", "from . import types"),
        ("jail/level.py", "from reasonmill.grading.code import CodeGrader"),
        ("tasks/sums.py", "import torch"),
        ("tasks/sums.py", "from torch.nn import functional"),
        ("tasks/sums.py", "from reasonmill.algo.losses import LossSettings"),
        ("tasks/deep/sums.py", "from ...algo import losses"),
        ("algo/losses.py", "def f():\n    import reasonmill.tasks.named as named"),
        ("algo/losses.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..tasks import named"),
        ("world/corpus.py", "import torch.nn"),
        ("world/corpus.py", "from reasonmill.plugins.catalogue import installed"),
        ("world/countdown.py", "from reasonmill.mill import results"),
        ("world/pretrain.py", "from reasonmill.cli import main"),
        ("world/pretrain.py", "from reasonmill.stages.sft import Settings"),
        ("tasks/named.py", "from reasonmill.world.lexicon import language_share"),
        ("tasks/named.py", "from reasonmill.plugins.catalogue import installed"),
        ("grading/choice.py", "from reasonmill.plugins.catalogue import installed"),
        ("curation/filters.py", "from reasonmill.world.lexicon import language_share"),
        ("rewards/rules/language.py", "def f():\n    from ...world import lexicon"),
        ("stages/evaluate.py", "import reasonmill.world"),
        ("mill/workload.py", "from reasonmill.world import corpus"),
        ("plugins/catalogue.py", "from reasonmill.world.countdown import Countdown"),
        ("plugins/catalogue.py", "from reasonmill.stages.rl import Settings"),
        ("plugins/plugin.py", "from reasonmill.recipe.graph import Node"),
        ("plugins/target.py", "import torch"),
        ("recipe/load.py", "from reasonmill.stages.registry import kinds"),
        ("recipe/load.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..stages import rl"),
        ("stage.py", "from reasonmill.recipe.reference import ModelRef"),
        ("content.py", "import numpy"),
        ("servers/client.py", "from reasonmill.sample.http import HttpSampler"),
        ("stages/evaluate.py", "TASKS = {'facts': 3}"),
        ("mill/results.py", "row = ('tasks', 'harmful-requests', 'unsafe')"),
        ("cli.py", "def f(task='countdown'): ..."),
        ("curation/filters.py", "from reasonmill.stages.collect import Settings"),
        ("store/home.py", "import torch"),
        ("audit/attacks.py", "from reasonmill.stages.evaluate import evaluate_model"),
        ("sample/native.py", "from reasonmill import learn"),
        ("learn/local.py", "from ..sample.native import NativeSampler"),
        ("stages/rl.py", "from reasonmill.mill.report import write_report"),
        ("stages/rl.py", "from reasonmill.sample.native import NativeSampler"),
        ("stages/rl.py", "def run():\n    from reasonmill.learn.local import LocalLearner"),
        ("stages/rl.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from reasonmill.learn import adamw"),
        ("stages/sft.py", "from ..model import decoder"),
        ("stages/rl.py", "from reasonmill.rewards.model import ModelScorer"),
        ("stages/rl.py", "import reasonmill.backends.native"),
        ("world/pretrain.py", "from reasonmill.model.decoder import new_decoder"),
        ("stage.py", "from reasonmill.backends.native import NativeBackend"),
        ("planning/probes.py", "from reasonmill.backends.native import NativeBackend"),
        ("doctor/facts.py", "from reasonmill.mill.pipeline import run_recipe"),
        ("mill/report.py", "from reasonmill.cli import main"),
        ("protocols.py", "from reasonmill import cli"),
        ("stages/utils.py", ""),
        ("common/__init__.py", ""),
        ("mill/report.py", "x = 1\n" * (MAX_LINES + 1)),
        ("store/home.py", "import os\nos.rename(a, b)"),
        ("store/home.py", "from os import rename"),
        ("store/objects.py", "import os\nlater = os.fsync"),
        ("store/commit.py", "path.write_bytes(data)"),
        ("store/commit.py", "path.replace(target)"),
        ("store/commit.py", "with path.open('wb') as file:\n    pass"),
        ("store/commit.py", "open(path, mode='a')"),
        ("store/home.py", "os.open(path, os.O_RDWR | os.O_CREAT)"),
        ("store/ledger.py", "database.execute('commit')"),
        ("store/ledger.py", "database.execute(f'PRAGMA synchronous = {level}')"),
        ("store/ledger.py", "database.execute('PRAGMA wal_checkpoint (TRUNCATE)')"),
        ("mill/pipeline.py", "import shutil\nshutil.rmtree(old)"),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, place: str, code: str) -> None:
    source = tmp_path / PACKAGE
    (source / place).parent.mkdir(parents=True)
    (source / place).write_text(code)
    (found,) = violations(source)
    assert found.startswith(place)


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("__main__.py", "from reasonmill.cli import main"),
        ("types.py", "import json\nfrom collections.abc import Sequence"),
        ("tasks/sums.py", "import torchlike\nfrom reasonmill.types import Problem\nfrom .algorithm import solve"),
        ("world/corpus.py", "from reasonmill.world.countdown import Countdown"),
        ("world/named.py", "OFFERS = {'tasks': {'facts': 'reasonmill.world.general:facts'}}"),
        ("world/pretrain.py", "from reasonmill.stage import StageSettings"),
        ("mill/workload.py", "from reasonmill.world import pretrain"),
        ("stages/evaluate.py", "text = 'the same prompts of facts and small talk'"),
        ("learn/local.py", "import torch\nfrom reasonmill.model.decoder import Decoder"),
        ("mill/report.py", "x = 1\n" * MAX_LINES),
        ("store/disk.py", "import os\nos.rename(a, b)"),
        ("store/home.py", "disk.rename(a, b)\ntext.replace('a', 'b')\nos.open(path, os.O_RDWR)\npath.open('rb')"),
        ("stages/gate.py", "path.write_text(text)"),
        ("stages/rl.py", "from reasonmill.learn.on_policy import Update\nfrom reasonmill.rewards.views import VIEWS"),
        ("world/corpus.py", "from reasonmill.model.saving import COMPANIONS"),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path: Path, place: str, code: str) -> None:
    source = tmp_path / PACKAGE
    (source / place).parent.mkdir(parents=True)
    (source / place).write_text(code)
    assert violations(source) == []
