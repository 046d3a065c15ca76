"""Groups of a stage that are damaged or gone: a finished stage does without them, or gets them back from a repair."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from damage import flip
from reasonmill.errors import Interrupted
from reasonmill.store.groups import GROUPS_FILE
from reasonmill.store.home import Home
from reasonmill.store.verification import verify_home
from small_runs import Runs, run_and_listen, stop_after

# A stage that learns from groups, which are drawn from its weights and differ between machines.
LEARN = """
from pathlib import Path
from typing import Literal

from pydantic import Field

from reasonmill.errors import Interrupted, TrainingDiverged
from reasonmill.recipe.reference import ModelRef
from reasonmill.stage import ArtifactKind, Outcome, StageSettings
from reasonmill.store.accounts import ALWAYS, account
from reasonmill.store.steps import committed_groups, forget_groups_of_other_weights, sound_state
from reasonmill.types import Completion, Grade, Group, Message, Problem, Rollout

HERE = Path(__file__).parent
MAKES: ArtifactKind = "model"


class Settings(StageSettings):
    kind: Literal["learn"]
    from_: ModelRef = Field(alias="from")


def run(settings, inputs, context):
    machine = "".join(path.read_text() for path in HERE.glob("machine"))
    home, key = context.home, context.key
    start, place = sound_state(home, key) or (0, inputs["from"].path)
    weights = (place / "weights.txt").read_text()
    forget_groups_of_other_weights(home, key, start)

    def sample(step):
        with (HERE / "steps").open("a") as steps:
            steps.write(f"{step}\\n")
        completion = Completion((1,), (-0.5,), (True,), weights + machine, "stop", step)
        problem = Problem("countdown-3", (Message("user", "make 24"),), "24")
        return [Group(problem, (Rollout((5,), completion, Grade(1.0, {"accuracy": 1.0})),))]

    def write(directory):
        (directory / "config.json").write_text("{}")
        (directory / "weights.txt").write_text(weights)

    for step in range(start, 4):
        if context.stop_requested():
            raise Interrupted(f"stopped at step {step}")
        groups = committed_groups(home, key, step, lambda: sample(step))
        weights += groups[0].rollouts[0].completion.text[-1:] + str(step)
        metrics = {"reward/mean": 1.0, "machine": float(len(machine)), **account(groups, step, ALWAYS)}
        home.ledger.record_metrics(key, step, metrics)
        if step == 1 and (HERE / "keeps states").exists():
            home.ledger.commit_state(key, 2, home.objects.put(write))
        if (HERE / "diverges").exists():
            raise TrainingDiverged("the loss is not finite")
    return Outcome(write)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(recipe_file: Path, path: Path) -> Runs:
    """Runs the small recipe in a newly opened home."""
    return partial(run_and_listen, recipe_file, path)


@pytest.fixture
def learning(stages: Any, recipe_file: Path, base: Path) -> Any:
    """The small recipe is a stage that learns from groups now; returns the folder of the stages."""
    stages.offer("learn", LEARN)
    recipe_file.write_text(f'name = "small"\n\n[[stage]]\nname = "zero"\nkind = "learn"\nfrom = "{base}"\n')
    return stages


def steps_of(path: Path, key: str) -> list[str | None]:
    with Home.open(path, write=False) as home:
        return [digest for _, digest in home.ledger.steps(key)]


def lose(path: Path, digest: str | None) -> None:
    flip(path / "objects" / str(digest) / GROUPS_FILE)


def test_a_finished_stage_stays_finished_when_its_groups_are_lost(run: Runs, learning: Any, path: Path) -> None:
    (made,) = run()[0].stages
    assert learning.steps == ["0", "1", "2", "3"]
    digests = steps_of(path, made.key)
    shutil.rmtree(path / "objects" / str(digests[1]))
    result, (told,) = run()
    assert result.stages[0].cached
    assert told == (
        f"objects/{digests[1]} is missing; stage zero stays finished without the rollouts of step 1, which "
        "`reasonmill run` with --repair rebuilds"
    )
    assert run()[1] == []  # it is said once
    assert learning.steps == []
    (found,) = verify_home(path).problems  # and named until it is mended
    assert found.file == f"objects/{digests[1]}"
    assert "--repair" in found.recovery
    run(repair=True)
    assert learning.steps == ["1"]
    assert steps_of(path, made.key) == digests
    assert verify_home(path).problems == ()


def test_a_repair_gets_damaged_groups_of_a_finished_stage_back(run: Runs, learning: Any, path: Path) -> None:
    (made,) = run()[0].stages
    assert learning.steps == ["0", "1", "2", "3"]
    digests = steps_of(path, made.key)
    lose(path, digests[1])
    with pytest.raises(Interrupted, match="at step 1"):
        run(stop_requested=stop_after(2), repair=True)  # before the stage, and at its step 0
    with Home.open(path, write=False) as home:
        assert home.ledger.stage(made.key) is not None
    assert learning.steps == []
    result, told = run(repair=True)
    assert learning.steps == ["1"]
    assert [note.split("; ")[1] for note in told] == ["stage zero is run again for the groups of step 1"]
    assert (result.stages[0].artifact, result.stages[0].cached) == (made.artifact, True)
    assert steps_of(path, made.key) == digests
    assert verify_home(path).problems == ()


@pytest.mark.parametrize("hindrance", ["machine", "diverges"])
def test_a_finished_stage_does_without_groups_that_do_not_come_back(
    run: Runs, learning: Any, path: Path, hindrance: str
) -> None:
    (made,) = run()[0].stages
    digests = steps_of(path, made.key)
    with Home.open(path, write=False) as home:
        metrics = home.ledger.metrics(made.key)
    lose(path, digests[1])
    (learning.folder / hindrance).write_text("!")
    result, (damaged, lost) = run(repair=True)
    assert result.stages[0].artifact == made.artifact
    assert result.stages[0].machines == made.machines
    assert damaged.endswith("; stage zero is run again for the groups of step 1")
    assert lost.startswith(f"objects/{digests[1]} is lost for good, the groups of step 1: they ")
    assert lost.endswith("; what was made of them stays as it is")
    assert steps_of(path, made.key) == [digests[0], None, *digests[2:]]
    with Home.open(path, write=False) as home:
        assert home.ledger.metrics(made.key) == metrics
    assert verify_home(path).problems == ()
    assert learning.steps
    assert run(repair=True)[1] == []
    assert learning.steps == []


def test_lost_groups_behind_a_step_that_has_none_are_given_up_at_once(run: Runs, learning: Any, path: Path) -> None:
    (made,) = run()[0].stages
    digests = steps_of(path, made.key)
    with Home.open(path) as home:
        home.ledger.forget_groups(made.key, 0)
    lose(path, digests[2])
    assert learning.steps
    result, (_, lost) = run(repair=True)
    assert "another step has lost its groups for good" in lost
    assert result.stages[0].artifact == made.artifact
    assert steps_of(path, made.key) == [None, digests[1], None, digests[3]]
    assert learning.steps == []


def test_a_stage_that_lost_its_model_and_groups_is_made_anew_from_there_on_another_machine(
    run: Runs, learning: Any, path: Path
) -> None:
    (made,) = run()[0].stages
    digests = steps_of(path, made.key)
    lose(path, digests[1])
    flip(path / "objects" / made.artifact.digest / "weights.txt")
    (learning.folder / "machine").write_text("!")
    assert learning.steps
    result, told = run(repair=True)
    (after,) = result.stages
    assert learning.steps == ["1", "1", "2", "3"]  # the first attempt finds that they differ
    assert any("they differ when they are sampled again, as on another class" in note for note in told)
    assert told[-1].startswith("zero  rebuilt with different content")
    now = steps_of(path, made.key)
    assert now[0] == digests[0]
    assert not {*digests[1:], None} & {*now[1:]}  # all that follows from it is its own
    assert verify_home(path).problems == ()
    assert run()[0].stages[0].artifact == after.artifact
    assert learning.steps == []


def test_a_stopped_stage_goes_on_from_a_state_that_came_of_lost_groups(run: Runs, learning: Any, path: Path) -> None:
    (learning.folder / "keeps states").touch()
    with pytest.raises(Interrupted):
        run(stop_requested=stop_after(3))  # before the stage, and at its steps 0 and 1
    with Home.open(path, write=False) as home:
        (key,) = home.ledger.begun_stages()
    digests = steps_of(path, key)
    lose(path, digests[1])
    (learning.folder / "machine").write_text("!")
    assert learning.steps == ["0", "1"]
    result, told = run()
    assert learning.steps == ["1", "2", "3"]
    assert told[1].startswith(f"objects/{digests[1]} is lost for good, the groups of step 1")
    assert steps_of(path, key)[:2] == [digests[0], None]
    with Home.open(path, write=False) as home:
        weights = home.objects.path(result.stages[0].artifact.digest) / "weights.txt"
        assert weights.read_text() == "basee001!2!3"
    assert verify_home(path).problems == ()
