"""Recovery: a run whose home is damaged goes on from what is good, and says so."""

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import reasonmill.store.commit
from damage import flip
from failing_disk import fail_reading
from reasonmill.content import file_digest
from reasonmill.errors import StoreError
from reasonmill.learn.checkpoints import Checkpoints
from reasonmill.learn.state_file import StateFile, write_state
from reasonmill.store.garbage import collect_garbage
from reasonmill.store.groups import GROUPS_FILE
from reasonmill.store.home import Home
from reasonmill.store.ledger_backup import SEAL, encode_seal, read_seal
from reasonmill.store.steps import committed_groups, give_up_lost_groups, lost_groups
from reasonmill.store.verification import verify_home
from reasonmill.types import Completion, Grade, Group, Message, Problem, Rollout
from small_runs import Runs, run_and_listen


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
        self.keeps_last_state = False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home"


def save_states(path: Path, steps: range) -> list[Path]:
    """Saves a state before each of the steps; returns the files of those that are kept."""
    with Home.open(path) as home:
        checkpoints = Checkpoints(Run(home), 1)
        for step in steps:
            checkpoints.before_step(step, 100, partial(write_state, tensors={"weight": torch.tensor([float(step)])}))
        return [home.objects.path(digest) / "state.safetensors" for _, digest in home.ledger.states("k")]


def resumed(path: Path) -> tuple[int, list[float], list[str]]:
    """The step that a resumed stage goes on with, the weights that it loads and what is told."""
    told: list[str] = []
    loaded: list[float] = []

    def load(directory: Path) -> None:
        loaded.extend(StateFile(directory)["weight"].tolist())

    with Home.open(path) as home:
        home.incidents.tell(told.append)
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


def test_damaged_groups_that_were_trained_on_are_sampled_again_and_must_be_the_same(path: Path) -> None:
    with Home.open(path) as home:
        committed_groups(home, "k", 0, lambda: groups("8 * 3"))
        home.ledger.record_metrics("k", 0, {"loss": 1.0})
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
        assert "only be rebuilt by the machine" in caught.value.fix
    assert verify_home(path).problems[0].file == f"objects/{digest}"


def test_other_groups_take_the_place_of_damaged_ones_that_nothing_was_made_of(path: Path) -> None:
    with Home.open(path) as home:
        committed_groups(home, "k", 0, lambda: groups("8 * 3"))
        lost = str(home.ledger.step_groups("k", 0))
    flip(path / "objects" / lost / GROUPS_FILE)
    with Home.open(path) as home:
        assert committed_groups(home, "k", 0, lambda: groups("12 + 12")) == groups("12 + 12")
        assert committed_groups(home, "k", 0, lambda: groups("not asked for")) == groups("12 + 12")
        told = [str(incident) for incident in home.ledger.incidents()]
    assert told[1] == (
        f"objects/{lost} is lost for good, the groups of step 0: they differ now; the new ones take their place"
    )
    assert verify_home(path).problems == ()


def test_a_state_that_came_of_lost_groups_is_gone_on_from_without_them(path: Path) -> None:
    save_states(path, range(2, 5))
    with Home.open(path) as home:
        digests = []
        for step in range(4):
            committed_groups(home, "k", step, lambda step=step: groups(f"{step}"))
            home.ledger.record_metrics("k", step, {"loss": 1.0})
            digests.append(str(home.ledger.step_groups("k", step)))
    flip(path / "objects" / digests[1] / GROUPS_FILE)
    assert resumed(path)[0] == 0
    with Home.open(path) as home:
        give_up_lost_groups(home, "k", "they differ")
    assert resumed_without_a_word(path) == 4
    # Now step 0 can be made again, but step 1 can not, and neither can what follows from it.
    flip(path / "objects" / digests[3] / GROUPS_FILE)
    with Home.open(path) as home:
        assert lost_groups(home, "k", lambda step: "nothing") == []
        assert home.ledger.steps("k") == [(0, digests[0]), (1, None), (2, digests[2]), (3, None)]
    assert resumed_without_a_word(path) == 4


def resumed_without_a_word(path: Path) -> int:
    with Home.open(path) as home:
        before = home.ledger.incidents()
        step = Checkpoints(Run(home), 1).resume(lambda directory: None)
        assert home.ledger.incidents() == before
    return step


# The pipeline


@pytest.fixture
def run(recipe_file: Path, path: Path) -> Runs:
    """Runs the small recipe in a newly opened home."""
    return partial(run_and_listen, recipe_file, path)


def test_a_cached_rerun_reads_nothing_of_what_stages_made(
    run: Runs, stages: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = run()
    flip(path / "objects" / before.stages[0].artifact.digest / "weights.txt")
    read: list[str] = []

    def note(file: Path) -> str:
        read.append(file.name)
        return file_digest(file)

    monkeypatch.setattr(reasonmill.store.commit, "file_digest", note)
    after, told = run()
    assert [stage.cached for stage in after.stages] == [True] * 3
    assert told == []
    assert "report.html" in read
    assert "weights.txt" not in read


def test_a_damaged_artifact_is_rebuilt_to_the_bit_when_it_is_used(run: Runs, stages: Any, path: Path) -> None:
    before, _ = run()
    assert stages.calls == ["first", "second", "check"]
    digest = before.stages[0].artifact.digest
    flip(path / "objects" / digest / "weights.txt")
    after, (told,) = run("second.text=c")
    assert stages.calls == ["first", "second", "check"]
    assert after.stages[0].artifact == before.stages[0].artifact
    assert (after.directory / "model" / "weights.txt").read_text() == "baseaaac"
    assert told.startswith(f"objects/{digest}/weights.txt is damaged and now in quarantine/")
    assert told.endswith("; stage first is rebuilt from what is good")
    assert verify_home(path).problems == ()
    with Home.open(path, write=False) as home:
        assert home.ledger.incidents()[0].digest == digest


def test_a_repair_finds_damage_that_nothing_uses(run: Runs, stages: Any, path: Path) -> None:
    before, _ = run()
    assert stages.calls == ["first", "second", "check"]
    digest = before.stages[0].artifact.digest
    flip(path / "objects" / digest / "weights.txt")
    assert run()[1] == []
    (found,) = verify_home(path).problems
    assert found.file == f"objects/{digest}/weights.txt"
    assert "--repair" in found.recovery
    after, (told,) = run(repair=True)
    assert stages.calls == ["first"]
    assert [stage.artifact for stage in after.stages] == [stage.artifact for stage in before.stages]
    assert told.endswith("; stage first is rebuilt from what is good")
    assert verify_home(path).problems == ()


def test_a_damaged_model_is_not_published_but_rebuilt(run: Runs, stages: Any, path: Path) -> None:
    before, _ = run()
    assert stages.calls == ["first", "second", "check"]
    flip(path / "objects" / before.stages[1].artifact.digest / "weights.txt")
    shutil.rmtree(before.directory / "model")
    after, told = run()
    assert stages.calls == ["second"]
    assert (after.directory / "model" / "weights.txt").read_text() == "baseaaab"
    assert any(note.endswith("; stage second is rebuilt from what is good") for note in told)
    assert verify_home(path).problems == ()


def test_damage_that_shows_before_the_last_stage_goes_back_by_several_stages(
    run: Runs, stages: Any, path: Path
) -> None:
    before, _ = run(until="second")
    for stage in before.stages:
        flip(path / "objects" / stage.artifact.digest / "weights.txt")
    assert stages.calls == ["first", "second"]
    after, told = run()  # "check" reads "second", which reads "first"
    assert stages.calls == ["first", "second", "check"]
    assert [stage.artifact for stage in after.stages[:2]] == [stage.artifact for stage in before.stages]
    assert [note.split("; ")[1] for note in told] == [
        "stage second is rebuilt from what is good",
        "stage first is rebuilt from what is good",
    ]
    assert verify_home(path).problems == ()


def test_a_file_in_the_place_of_an_artifact_is_found_and_mended(run: Runs, stages: Any, path: Path) -> None:
    digest = run()[0].stages[0].artifact.digest
    shutil.rmtree(path / "objects" / digest)
    (path / "objects" / digest).touch()
    (found,) = verify_home(path).problems
    assert found.file == f"objects/{digest}/manifest.json"
    assert found.recovery.startswith("run the recipe that needs")
    _, (told,) = run()
    assert told.endswith("; stage first is rebuilt from what is good")
    assert stages.calls == ["first", "second", "check", "first"]
    assert verify_home(path).problems == ()


@pytest.mark.parametrize("harm", ["cut", "gone", "added", "manifest"])
def test_damage_that_shows_without_reading_is_mended_by_any_run(run: Runs, stages: Any, path: Path, harm: str) -> None:
    digest = run()[0].stages[0].artifact.digest
    file = path / "objects" / digest / "weights.txt"
    if harm == "cut":
        file.write_text(file.read_text()[:-1])
    elif harm == "gone":
        file.unlink()
    elif harm == "added":
        (file.parent / "more.txt").write_text("more")
    else:
        flip(file.parent / "manifest.json")
    assert stages.calls == ["first", "second", "check"]
    result, told = run()
    assert stages.calls == ["first"]
    assert result.stages[0].artifact.digest == digest
    assert len(told) == 1
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
    after, told = run(repair=True)
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
        _, told = run(repair=name.startswith("model/"))
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
    with pytest.raises(StoreError, match="not known what is needed"):
        collect_garbage(path)
    Home.open(path).close()
    assert collect_garbage(path).objects == ()  # what the old ledger knew may still be wanted
    assert {stage.artifact.digest for stage in before.stages} <= set(os.listdir(path / "objects"))
    after, _ = run()
    assert stages.calls == ["second", "check"]
    assert [stage.artifact for stage in after.stages] == [stage.artifact for stage in before.stages]
    assert verify_home(path).problems == ()
