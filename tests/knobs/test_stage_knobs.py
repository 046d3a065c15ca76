"""No dead knob: every setting of every kind of stage does what it is there for, and an incidental one moves no bit."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
import torch

from knobs.check import faults, misfits
from knobs.flips import Flip, bounds, decides, incidental, measures, refused
from knobs.made import LAB, make_all
from knobs.stage_cases import KINDS, NETWORK
from knobs.tiny_stage import Bench, watched
from knobs.tree import Knob, knobs
from reasonmill.plugins.catalogue import Catalogue, TaskUse, installed
from reasonmill.settings import INCIDENTAL
from reasonmill.stages.gate import Settings as GateSettings
from reasonmill.store.home import Home
from reasonmill.workers.limits import Limits


def knobs_of(kind: str) -> dict[str, Knob]:
    return {knob.path: knob for knob in knobs(installed().plugin("stages", kind).made.Settings)}


def base_of(kind: str) -> dict[str, Any]:
    return {"name": "tried", "kind": kind, **KINDS[kind][0]}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("knobs")
    (folder / "lab.py").write_text(LAB, encoding="utf-8")
    tasks = {name: TaskUse(use=f"./lab.py:{name.title()}", isolation="none") for name in ("unsure", "worded")}
    with Home.open(folder / "home") as home, watched():
        bench = Bench(home, make_all(folder), Catalogue({"tasks": tasks}, folder), folder)
        judge = base_of("reward-model")
        bench.make("safety-rm", judge)
        bench.make("other-safety-rm", {**judge, "schedule": {"peak": 1e-1}})
        bench.make("earlier-eval", {**base_of("evaluate"), "tasks": {"small-talk": 3}, "sampling_seed": 9})
        bench.make("deeper", {**base_of("pretrain"), "model": {**NETWORK, "num_hidden_layers": 5}})
        yield bench


@pytest.mark.parametrize("kind", installed().names("stages"))
def test_every_setting_of_a_stage_has_its_case(kind: str) -> None:
    assert misfits(knobs_of(kind), KINDS[kind][1]) == []


# What takes less than a second is looked at by `make test`, too.
QUICK = ("shorten",)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.check) for kind in KINDS]
)
def test_every_setting_does_what_it_is_there_for(kind: str, bench: Bench) -> None:
    found = {path: faults(base_of(kind), path, flip, bench.see) for path, flip in KINDS[kind][1].items()}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


# Controls


class Grown(GateSettings):
    """Settings with three that nobody knows of."""

    new: int = 0
    table: Limits = Limits()
    alpha: Annotated[float, INCIDENTAL] = 0.01
    way: Literal["a", "b", "c"] = "a"


def test_a_new_setting_needs_a_case() -> None:
    cases = {**KINDS["gate"][1], "way": decides("b"), "old": decides(1)}
    assert misfits({knob.path: knob for knob in knobs(Grown)}, cases) == [
        "alpha: it is marked as incidental",
        "new: it has no case",
        "old: there is no such setting",
        "table.memory_gb: it has no case",
        "table.processes: it has no case",
        "table.seconds: it has no case",
        "way: ['a', 'c'] are never tried",
    ]


@pytest.mark.parametrize(
    ("path", "flip", "wrong"),
    [
        ("layers", decides(2), "2 moves nothing of "),
        ("layers", incidental(3, seen="made"), "3 moves ['figures', 'made'], too"),
        ("layers", measures(3, seen="made"), "3 moves ['made'], too"),
        ("layers", bounds(2, 3), "3 ends nothing"),
        ("layers", decides(9), "9 ends the run: RecipeError"),
        ("layers", refused(3), "3 is taken"),
        ("from", decides("deeper").on(layers=9), "no run goes on: RecipeError"),
    ],
)
def test_a_setting_that_does_something_else_is_noticed(path: str, flip: Flip, wrong: str, bench: Bench) -> None:
    assert faults(base_of("shorten"), path, flip, bench.see)[0].startswith(wrong)
