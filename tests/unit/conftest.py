"""Fake stages that write small files, for the tests of recipes, the pipeline and the command line."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import reasonmill.recipe.graph
from command_line import Call, caller
from reasonmill.plugins import catalogue
from reasonmill.types import content_digest

# "train" appends its text to the weights of its input, one step for each time; `interrupt` makes it signal itself.
# No chart shows its loss: to draw one takes longer than all else in a run.
TRAIN = """
import os
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reasonmill.errors import Interrupted
from reasonmill.recipe.reference import ModelRef
from reasonmill.stage import ArtifactKind, Outcome, StageSettings

MAKES: ArtifactKind = "model"
HERE = Path(__file__).parent


class Loss(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: float = 0.2
    form: Literal["k1", "k2"] = "k1"


class Settings(StageSettings):
    kind: Literal["train"]
    from_: ModelRef = Field(alias="from")
    teacher: ModelRef | None = None
    text: str = "x"
    steps: int = 1
    tasks: dict[str, float] = Field(default_factory=dict)
    loss: Loss | None = None

    @model_validator(mode="after")
    def _can_be_done(self):
        if self.teacher is not None and self.steps > 100:
            raise ValueError("a teacher has no patience for more than 100 steps")
        return self


def run(settings, inputs, context):
    with (HERE / "calls").open("a") as calls:
        calls.write(f"{settings.name}\\n")
    ledger = context.home.ledger
    saved = ledger.latest_state(context.key)
    start = saved[0] if saved else 0
    weights = (context.home.objects.path(saved[1]) if saved else inputs["from"].path) / "weights.txt"
    text = weights.read_text()
    context.progress.begin(settings.name, settings.steps, "steps")
    for step in range(start, settings.steps):
        if context.stop_requested():
            raise Interrupted(f"stopped at step {step}")
        with (HERE / "steps").open("a") as steps:
            steps.write(f"{settings.name} {step}\\n")
        text += settings.text
        state = context.home.objects.put(lambda directory: (directory / "weights.txt").write_text(text))
        ledger.record_metrics(context.key, step, {"loss/fake": 1.0})
        ledger.commit_state(context.key, step + 1, state)
        context.progress.advance(step + 1, {})
        interrupt = HERE / "interrupt"
        if interrupt.exists():
            at, pause_s, *numbers = map(float, interrupt.read_text().split())
            if at == step:
                for number in numbers:
                    os.kill(os.getpid(), int(number))
                    time.sleep(pause_s)
    context.progress.end({})

    def write(directory):
        (directory / "config.json").write_text("{}")
        (directory / "weights.txt").write_text(text)

    return Outcome(write, metrics={"length": len(text)}, tokens=10 * settings.steps)
"""

# "measure" makes an evaluation of its input.
MEASURE = """
from pathlib import Path
from typing import Literal

from pydantic import Field

from reasonmill.recipe.reference import ModelRef
from reasonmill.stage import ArtifactKind, Outcome, StageSettings

MAKES: ArtifactKind = "evaluation"


class Settings(StageSettings):
    kind: Literal["measure"]
    from_: ModelRef = Field(alias="from")


def run(settings, inputs, context):
    with (Path(__file__).parent / "calls").open("a") as calls:
        calls.write(f"{settings.name}\\n")
    length = len((inputs["from"].path / "weights.txt").read_text())
    return Outcome(lambda directory: (directory / "length").write_text(str(length)), {"length": length})
"""


@dataclass
class FakeStages:
    """The folder of the fake stages, and what was done with them."""

    folder: Path
    offered: dict[str, str] = field(default_factory=dict)  # the files by the kinds' names

    def offer(self, kind: str, text: str) -> None:
        """Offers a kind of stage."""
        file = self.folder / f"fake_{kind}.py"
        file.write_text(text)
        self.offered[kind] = str(file)
        _forget_what_is_offered()

    def draws_its_loss(self) -> None:
        """Makes "train" report a loss that the report shows."""
        self.offer("train", TRAIN.replace("loss/fake", "loss/ce"))

    @property
    def calls(self) -> list[str]:
        """Names of the stages that were run, in order, since the last look."""
        return self._read("calls")

    @property
    def steps(self) -> list[str]:
        """Steps that were taken as "stage step", in order, since the last look."""
        return self._read("steps")

    def interrupt(self, at: int, *signals: int, pause_s: float = 0.0) -> None:
        """Makes the process send itself signals at the end of a step of a "train" stage, with a pause after each."""
        (self.folder / "interrupt").write_text(" ".join(map(str, (at, pause_s, *signals))))

    def do_not_interrupt(self) -> None:
        (self.folder / "interrupt").unlink()

    def _read(self, name: str) -> list[str]:
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStages]:
    """Two kinds of stages, "train" and "measure", instead of the real ones."""
    folder = tmp_path / "stages"
    folder.mkdir()
    fakes = FakeStages(folder)
    others = [{**offers, "stages": {}} for offers in catalogue._OFFERS]
    monkeypatch.setattr(catalogue, "_OFFERS", [{"stages": fakes.offered}, *others])
    fakes.offer("train", TRAIN)
    fakes.offer("measure", MEASURE)
    yield fakes
    _forget_what_is_offered()


def _forget_what_is_offered() -> None:
    catalogue._offered.cache_clear()
    catalogue.installed.cache_clear()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives all stages other keys, as other code does; the same word gives the same ones."""
    right = reasonmill.recipe.graph.stage_key

    def change(word: str) -> None:
        monkeypatch.setattr("reasonmill.mill.inputs.stage_key", lambda *args: content_digest([word, right(*args)]))

    return change


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model directory whose weights are the text "base"."""
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "weights.txt").write_text("base")
    return directory


@pytest.fixture
def home_path(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def recipe_file(tmp_path: Path, stages: FakeStages, base: Path) -> Path:
    """A recipe of three stages: first -> second -> check."""
    path = tmp_path / "small.toml"
    path.write_text(
        f"""# a small recipe
name = "small"

[[stage]]
name = "first"
kind = "train"
from = "{base}"
text = "a"
steps = 3

[stage.tasks]
countdown = 0.5

[[stage]]
name = "second"
kind = "train"
from = "first"
text = "b"

[[stage]]
name = "check"
kind = "measure"
from = "second"
"""
    )
    return path
