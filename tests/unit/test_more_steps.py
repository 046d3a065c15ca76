"""A finished stage whose `steps` is raised: where it goes on from its last step it ends in the same bits, and where it
can't, it says why."""

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from contexts import BACKEND
from forked import fork_server
from kept_progress import KeptProgress
from reasonmill.algo.schedules import Schedule
from reasonmill.errors import Interrupted
from reasonmill.mill.pipeline import RunResult, run_recipe
from reasonmill.mill.planning import plan
from reasonmill.recipe.load import load_recipe
from reasonmill.store.garbage import collect_garbage
from reasonmill.store.home import Home
from reasonmill.store.ledger import Ledger
from reasonmill.store.verification import verify_home

RL = """
[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base-weak"
tasks = { countdown-3 = 1.0 }
steps = 3
problems_per_step = 2
group_size = 4
reference_every = 2
state_every = 2
loss = { kl_coefficient = 0.01 }
schedule = { peak = 1e-3, warmup_steps = 2 }
sampling = { max_tokens = 24 }
"""
DISTILL = """
[[stage]]
name = "zero"
kind = "distill"
from = "tiny-base-weak"
teacher = "tiny-base"
tasks = { countdown-3 = 1.0 }
steps = 3
problems_per_step = 2
group_size = 2
schedule = { peak = 1e-3 }
sampling = { max_tokens = 8 }
"""
PRETRAIN = """
[[stage]]
name = "zero"
kind = "pretrain"
model_type = "qwen2"
model = { hidden_size = 16, intermediate_size = 24, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, max_position_embeddings = 512 }
tokenizer = { vocab_size = 300, sample_documents = 40 }
steps = 3
documents_per_step = 6
tokens_per_batch = 1024
schedule = { peak = 1e-2, warmup_steps = 4 }
"""  # noqa: E501
MORE = "zero.steps=5"
COSINE = 'zero.schedule.decay="cosine"'

pytestmark = pytest.mark.usefixtures("without_charts")

Run = Callable[..., tuple[RunResult, list[str]]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe of an `rl` stage, a home in which its three steps ran, and one with five at once."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "more.toml").write_text(f'name = "more"\n{RL}')
    run_in(folder, "home")
    run_in(folder, "at once", MORE)
    return folder


@pytest.fixture
def recipe(finished: Path, tmp_path: Path) -> Path:
    """The recipe in a folder of the test's own, with both homes."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "more.toml"


@pytest.fixture
def run(recipe: Path) -> Run:
    """`run_in` the test's folder."""
    return partial(run_in, recipe.parent)


def run_in(folder: Path, home: str, *overrides: str, looks: int = 99) -> tuple[RunResult, list[str]]:
    """Runs a folder's recipe with overrides in its home of this name; what it made, and what it said of its steps."""
    left, progress = iter(range(looks)), KeptProgress()
    with Home.open(folder / home) as opened:
        made = run_recipe(
            load_recipe(str(folder / "more.toml"), overrides),
            opened,
            progress,
            until=None,
            backend=BACKEND,
            stop_requested=lambda: next(left, None) is None,
        )
    return made, [note for note in progress.notes if "step" in note]


def made(result: tuple[RunResult, list[str]]) -> str:
    (stage,) = result[0].stages
    return stage.artifact.digest


def record_of(home_path: Path, key: str) -> tuple[list[tuple[int, str | None]], list[dict[str, float]], list[int]]:
    """Steps with the digests of their groups, metrics without times, and the steps that states are of."""
    with Home.open(home_path, write=False) as home:
        metrics = [
            {name: value for name, value in entry.items() if not name.startswith("speed/")}
            for entry in home.ledger.metrics(key)
        ]
        return home.ledger.steps(key), metrics, [step for step, _ in home.ledger.states(key)]


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(RL, id="rl"),
        pytest.param(DISTILL, id="distill", marks=pytest.mark.check),
        pytest.param(PRETRAIN, id="pretrain", marks=pytest.mark.check),
    ],
)
def test_three_steps_and_then_five_are_five_at_once(run: Run, recipe: Path, tmp_path: Path, stage: str) -> None:
    recipe.write_text(f'name = "more"\n{stage}')
    at_once, _ = run("at once", MORE)
    short, _ = run("home")
    with Home.open(tmp_path / "home", write=False) as home:
        (planned,) = plan(load_recipe(str(recipe), [MORE]), home, None)
    assert (planned.status, planned.resumes_at) == ("to run", 3)
    more, (told,) = run("home", MORE)
    assert told == f"zero  resumes after step 3 of its finished result {short.stages[0].artifact.digest[:12]}"
    assert planned.note == told
    assert more.stages[0].artifact == at_once.stages[0].artifact
    key = more.stages[0].key
    assert key == at_once.stages[0].key
    assert record_of(tmp_path / "home", key) == record_of(tmp_path / "at once", key)
    assert record_of(tmp_path / "home", key)[2] == [5]
    assert verify_home(tmp_path / "home").problems == ()
    # The shorter one is still there, and so is the way on from it.
    assert made(run("home")) == short.stages[0].artifact.digest
    assert run("home", "zero.steps=4")[1][0].startswith("zero  resumes after step 3")


def test_a_kill_between_taking_the_steps_over_and_the_first_new_one_costs_nothing(
    run: Run, recipe: Path, tmp_path: Path
) -> None:
    program = (
        "import os, signal, sys\n"
        "from reasonmill.store.ledger import Ledger\n"
        "from reasonmill.cli import main\n"
        "carry_over = Ledger.carry_over\n"
        "def die(*arguments):\n"
        "    carry_over(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Ledger.carry_over = die\n"
        "main(sys.argv[1:])\n"
    )
    command = ["run", recipe, "--home", tmp_path / "home", "--device", "cpu", "--set", MORE]
    killed = fork_server().run(program, *command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Home.open(tmp_path / "home", write=False) as home:
        (planned,) = plan(load_recipe(str(recipe), [MORE]), home, None)
    assert (planned.resumes_at, planned.note) == (3, "")
    again, told = run("home", MORE)
    assert told == []
    assert made((again, told)) == made(run("at once", MORE))


def test_an_interrupted_rest_is_resumed(run: Run) -> None:
    with pytest.raises(Interrupted):
        run("home", MORE, looks=2)  # before the stage, and at its step 3
    assert made(run("home", MORE)) == made(run("at once", MORE))


def obstacle(run: Run, recipe: Path, tmp_path: Path, *overrides: str) -> str:
    """What stands against more steps, as the plan and the run say, which starts anew."""
    with Home.open(tmp_path / "home", write=False) as home:
        (planned,) = plan(load_recipe(str(recipe), [MORE, *overrides]), home, None)
    assert planned.resumes_at is None
    more, (told,) = run("home", MORE, *overrides)
    assert planned.note == told
    assert made((more, [])) == made(run("at once", MORE, *overrides))
    assert told.startswith("zero  starts from its first step, and not after step 3 of its finished result ")
    return told.split(": ")[1]


def test_a_cosine_schedule_stands_against_more_steps(run: Run, recipe: Path, tmp_path: Path) -> None:
    short, _ = run("home", COSINE)
    assert record_of(tmp_path / "home", short.stages[0].key)[2] == []  # no state is kept that nothing can use
    assert obstacle(run, recipe, tmp_path, COSINE) == "its cosine schedule depends on the number of steps"


def test_without_its_last_state_a_stage_starts_anew(run: Run, recipe: Path, tmp_path: Path) -> None:
    assert collect_garbage(tmp_path / "home").states == ()
    assert len(collect_garbage(tmp_path / "home", last_states=True).states) == 1
    assert obstacle(run, recipe, tmp_path) == "the state after its last step was not kept"


def test_another_stage_is_no_shorter_one(run: Run) -> None:
    assert run("home", MORE, "zero.group_size=2")[1] == []
    assert run("home", "zero.steps=2")[1] == []  # fewer steps


def test_what_stands_against_more_steps_is_said_by_the_settings() -> None:
    assert Schedule(peak=1.0, warmup_steps=5).against_more_steps() is None
    assert "cosine" in str(Schedule(peak=1.0, decay="cosine").against_more_steps())
    recipe = load_recipe("r1-tiny")
    reasons = {node.settings.name: node.settings.against_more_steps() for node in recipe.nodes}
    kinds = {node.settings.name: node.settings.kind for node in recipe.nodes}
    assert all(reasons.values())
    shares = [reason for name, reason in reasons.items() if "preference_share" in str(reason)]
    assert shares
    assert {reason for name, reason in reasons.items() if kinds[name] == "gate"} <= {"a stage of kind 'gate' can't"}


def test_taking_steps_over_copies_all_of_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", write=True)
    ledger.begin_stage("short", "here")
    for step in range(3):
        ledger.commit_step("short", step, f"groups {step}")
        ledger.record_metrics("short", step, {"loss": float(step)})
    ledger.commit_state("short", 2, "state 2")
    ledger.commit_state("short", 3, "state 3")
    ledger.begin_stage("long", "there")
    ledger.carry_over("long", "short", 3)
    assert ledger.steps("long") == ledger.steps("short")
    assert ledger.metrics("long") == ledger.metrics("short")
    assert ledger.states("long") == [(3, "state 3")]
    assert ledger.states("short") == [(2, "state 2"), (3, "state 3")]
    assert ledger.begin_stage("long", "there") == ("here", "there")
    assert ledger.damage() == []
    ledger.close()
