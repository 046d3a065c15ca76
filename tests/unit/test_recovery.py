"""Recovery: a run whose home is damaged goes on from what is good, and says so."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from failing_disk import fail_reading
from kept_progress import KeptProgress
from reasonmill.errors import StoreError
from reasonmill.learn.checkpoints import Checkpoints
from reasonmill.mill.pipeline import RunResult, run_recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.store.garbage import collect_garbage
from reasonmill.store.groups import GROUPS_FILE
from reasonmill.store.home import Home
from reasonmill.store.ledger_backup import SEAL, encode_seal, read_seal
from reasonmill.store.steps import committed_groups
from reasonmill.store.verification import verify_home
from reasonmill.types import Completion, Grade, Group, Message, Problem, Rollout


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def groups(answer: str) -> list[Group]:
    completion = Completion((1, 2), (-0.5, -0.25), (True, True), answer, "stop", 0)
    problem = Problem("countdown-3", (Message("user", "make 24"),), "24")
    return [Group(problem, (Rollout((5,), completion, Grade(1.0, {"accuracy": 1.0})),))]


class Run:
    """What checkpoints need of a stage's context."""

    def __init__(self, home: Home) -> None:
        self.key = "k"
        self.home = home
        self.stop_requested: Callable[[], bool] = lambda: False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home"


def save_states(path: Path, steps: range) -> list[Path]:
    """Saves a state before each of the steps; returns the files of those that are kept."""
    with Home.open(path) as home:
        checkpoints = Checkpoints(Run(home), 1)
        for step in steps:
            checkpoints.before_step(step, 100, lambda step=step: {"weight": torch.tensor([float(step)])})
        return [home.objects.path(digest) / "state.safetensors" for _, digest in home.ledger.states("k")]


def resumed(path: Path) -> tuple[int, list[float], list[str]]:
    """The step that a resumed stage goes on with, the weights that it loads and what is told."""
    told: list[str] = []
    loaded: list[float] = []

    def load(state: Any) -> None:
        weight: Tensor = state["weight"]
        loaded.extend(weight.tolist())

    with Home.open(path) as home:
        home.tell_incidents(told.append)
        step = Checkpoints(Run(home), 1).resume(load)
        assert [str(incident) for incident in home.ledger.incidents()] == told
    return step, loaded, told


def test_a_damaged_state_makes_way_for_the_one_before_it(path: Path) -> None:
    _, latest = save_states(path, range(1, 4))
    flip(latest)
    step, loaded, (told,) = resumed(path)
    assert (step, loaded) == (2, [2.0])
    assert told.startswith(f"objects/{latest.parent.name}/state.safetensors is damaged and now in quarantine/")
    assert told.endswith("; the state before step 2 is tried")
    assert save_states(path, range(3, 4))[-1] == latest  # the same state, made again in the same place


def test_without_a_whole_state_a_stage_begins_anew(path: Path) -> None:
    for state in save_states(path, range(1, 4)):
        flip(state)
    step, loaded, told = resumed(path)
    assert (step, loaded) == (0, [])
    assert [line.split("; ")[1] for line in told] == [
        "the state before step 2 is tried",
        "the stage goes on from its first step",
    ]


def test_states_that_can_not_be_reached_are_not_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_states(path, range(1, 4))
    with monkeypatch.context() as patch:
        fail_reading(patch, errno.EACCES, path / "objects")
        with pytest.raises(StoreError, match="can't be read or written: Permission denied"):
            resumed(path)
    assert resumed(path) == (3, [3.0], [])


def test_damaged_groups_are_sampled_again_and_must_be_the_same(path: Path) -> None:
    with Home.open(path) as home:
        committed_groups(home, "k", 0, lambda: groups("8 * 3"))
        digest = str(home.ledger.step_groups("k", 0))
    flip(path / "objects" / digest / GROUPS_FILE)
    with Home.open(path) as home:
        assert committed_groups(home, "k", 0, lambda: groups("8 * 3")) == groups("8 * 3")
        assert [incident.done for incident in home.ledger.incidents()] == ["the groups of step 0 are sampled again"]
        assert home.ledger.incidents()[0].digest == digest
    flip(path / "objects" / digest / GROUPS_FILE)
    for _ in range(2):
        with Home.open(path) as home, pytest.raises(StoreError, match="groups of step 0 is recorded") as caught:
            committed_groups(home, "k", 0, lambda: groups("12 + 12"))
        assert "only be made again by the machine" in caught.value.fix
    assert verify_home(path).problems[0].file == f"objects/{digest}"


# The pipeline


Runs = Callable[..., tuple[RunResult, list[str]]]


@pytest.fixture
def run(recipe_file: Path, path: Path) -> Runs:
    """Runs the small recipe in a newly opened home; returns what it made and what was told."""

    def run(until: str | None = None) -> tuple[RunResult, list[str]]:
        progress = KeptProgress()
        with Home.open(path) as home:
            recipe = load_recipe(str(recipe_file))
            made = run_recipe(recipe, home, progress, until=until, device="cpu", stop_requested=lambda: False)
        return made, [note for note in progress.notes if "cached" not in note]

    return run


def test_a_damaged_artifact_is_made_again_to_the_bit(run: Runs, stages: Any, path: Path) -> None:
    before, _ = run()
    assert stages.calls == ["first", "second", "check"]
    digest = before.stages[0].artifact.digest
    flip(path / "objects" / digest / "weights.txt")
    after, (told,) = run()
    assert stages.calls == ["first"]
    assert [stage.artifact for stage in after.stages] == [stage.artifact for stage in before.stages]
    assert told.startswith(f"objects/{digest}/weights.txt is damaged and now in quarantine/")
    assert told.endswith("; stage first is made again from what is good")
    assert verify_home(path).problems == ()
    with Home.open(path, write=False) as home:
        assert home.ledger.incidents()[0].digest == digest


def test_a_file_in_the_place_of_an_artifact_is_found_and_mended(run: Runs, stages: Any, path: Path) -> None:
    digest = run()[0].stages[0].artifact.digest
    shutil.rmtree(path / "objects" / digest)
    (path / "objects" / digest).touch()
    (found,) = verify_home(path).problems
    assert found.file == f"objects/{digest}/manifest.json"
    assert found.recovery.startswith("run the recipe again")
    _, (told,) = run()
    assert told.endswith("; stage first is made again from what is good")
    assert stages.calls == ["first", "second", "check", "first"]
    assert verify_home(path).problems == ()


def test_a_home_without_its_objects_is_one_and_is_mended(run: Runs, stages: Any, path: Path) -> None:
    before, _ = run()
    digests = {stage.artifact.digest for stage in before.stages}
    shutil.rmtree(path / "objects")
    assert {finding.file for finding in verify_home(path).problems} >= {f"objects/{digest}" for digest in digests}
    after, _ = run()
    assert [stage.artifact for stage in after.stages] == [stage.artifact for stage in before.stages]
    assert verify_home(path).problems == ()


def test_an_artifact_that_is_made_again_as_another_one_is_told(run: Runs, stages: Any, path: Path) -> None:
    source = stages.folder / "fake_train.py"
    machine = '"".join(path.read_text() for path in HERE.glob("machine"))'
    source.write_text(source.read_text().replace("text += settings.text", f"text += settings.text + {machine}"))
    digest = run()[0].stages[0].artifact.digest
    assert stages.calls == ["first", "second", "check"]
    flip(path / "objects" / digest / "weights.txt")
    (stages.folder / "machine").write_text("!")
    after, told = run()
    assert stages.calls == ["first", "second", "check"]
    other = after.stages[0].artifact.digest
    assert any(f"{other[:12]} instead of {digest[:12]}" in note for note in told)
    assert verify_home(path).problems == ()
    assert f"objects/{digest}" in {finding.file for finding in verify_home(path).findings}


def test_a_damaged_view_is_written_again(run: Runs, stages: Any, path: Path) -> None:
    directory = run()[0].directory
    for name in ("summary.json", "report.html", "recipe.json", "model/weights.txt"):
        good = (directory / name).read_bytes()
        flip(directory / name)
        assert [finding.file for finding in verify_home(path).problems] == [f"runs/small/{name}"]
        _, told = run()
        assert told == [f"runs/small/{name} is damaged; it is written again"]
        assert verify_home(path).problems == ()
        if name != "summary.json" and name != "report.html":  # these say which stages were cached
            assert (directory / name).read_bytes() == good
    assert stages.calls == ["first", "second", "check"]


def test_views_that_were_cut_off_are_written_again_without_a_word(run: Runs, path: Path) -> None:
    directory = run()[0].directory
    with Home.open(path) as home:
        home.ledger.record_views("small", {})
    (directory / "summary.json").write_text("{")
    (found,) = verify_home(path).findings
    assert (found.file, found.is_problem) == ("runs/small", False)
    assert run()[1] == []
    assert verify_home(path).findings == ()


def test_a_run_makes_again_what_a_ledger_that_fell_back_does_not_know(run: Runs, stages: Any, path: Path) -> None:
    run(until="first")
    early = read_seal(path)
    assert early is not None
    shutil.copytree(path / "backups", path.parent / "early")
    before, _ = run()
    assert stages.calls == ["first", "second", "check"]
    flip(path / "ledger.sqlite")
    shutil.rmtree(path / "backups")
    shutil.copytree(path.parent / "early", path / "backups")
    (path / SEAL).write_bytes(encode_seal(early))
    with pytest.raises(StoreError, match="be told what is needed"):
        collect_garbage(path)
    Home.open(path).close()
    assert collect_garbage(path).objects == ()  # what the old ledger knew may still be wanted
    assert {stage.artifact.digest for stage in before.stages} <= set(os.listdir(path / "objects"))
    after, _ = run()
    assert stages.calls == ["second", "check"]
    assert [stage.artifact for stage in after.stages] == [stage.artifact for stage in before.stages]
    assert verify_home(path).problems == ()
