"""Every flipped bit, truncated file and swapped content of a home at rest is found, named and mended."""

import multiprocessing
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from chaos import bit_rot
from reasonmill.errors import Interrupted
from reasonmill.store import verification
from reasonmill.store.home import Home
from reasonmill.store.verification import verify_home

NUM_SHORT, NUM_LONG = 60, 500


@dataclass(frozen=True)
class Finished:
    """A finished run: its home, its recipe and the digests of what its stages made."""

    home: Path
    recipe: Path
    digests: Mapping[str, str]


pytestmark = pytest.mark.usefixtures("without_charts")


@pytest.fixture(scope="module")
def finished(without_charts: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("rot")
    recipe = directory / "rot.toml"
    recipe.write_text(bit_rot.RECIPE)
    return Finished(directory / "home", recipe, bit_rot.run(directory / "home", recipe).digests)


def test_a_finished_home_is_clean_and_a_rerun_keeps_it_so(finished: Finished, tmp_path: Path) -> None:
    bit_rot.copy_on_write(finished.home, tmp_path / "home")
    assert verify_home(finished.home).findings == ()
    assert bit_rot.run(tmp_path / "home", finished.recipe).digests == finished.digests
    assert verify_home(tmp_path / "home").findings == ()


def attempt(finished: Finished, scratch: Path) -> Callable[[int], str]:
    """Does the damage of the case with a number; answers with what goes wrong, or nothing."""
    return partial(bit_rot.failure, finished.home, finished.recipe, finished.digests, scratch=scratch)


@pytest.mark.parametrize("number", range(len(bit_rot.FAULTS)))
def test_damage_of_each_kind_is_named_and_mended(finished: Finished, tmp_path: Path, number: int) -> None:
    assert attempt(finished, tmp_path)(number) == ""


@pytest.mark.check
def test_all_damage_is_named_and_mended(finished: Finished, tmp_path: Path, chaos_long: bool, chaos_jobs: int) -> None:
    numbers = range(NUM_LONG if chaos_long else NUM_SHORT)
    if chaos_jobs == 1 or not chaos_long:  # a process more costs as much as a dozen attempts
        failures = list(map(attempt(finished, tmp_path), numbers))
    else:
        with ProcessPoolExecutor(chaos_jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            failures = list(pool.map(attempt(finished, tmp_path), numbers))
    assert [failure for failure in failures if failure] == []


@pytest.mark.parametrize(
    "kinds", [("states",), ("groups",), pytest.param(("states", "groups"), marks=pytest.mark.check)]
)
def test_an_interrupted_run_with_damage_ends_in_the_same_bits(
    finished: Finished, tmp_path: Path, kinds: Sequence[str]
) -> None:
    looks = iter([False] * 3)  # before "zero", and at its steps 0 and 1
    with pytest.raises(Interrupted, match="before step 3"):
        bit_rot.run(tmp_path / "home", finished.recipe, stop_requested=lambda: next(looks, True))
    with Home.open(tmp_path / "home", write=False) as home:
        (key,) = home.ledger.begun_stages()
        kept = {
            "states": [digest for _, digest in home.ledger.states(key)],
            "groups": [digest for _, digest in home.ledger.steps(key)],
        }
        files = [bit_rot.files_in(home.path / "objects" / str(digest))[0] for kind in kinds for digest in kept[kind]]
    assert len(kept["states"]) == 1
    assert len(kept["groups"]) == 2
    for number, file in enumerate(files):
        bit_rot.flip([file], random.Random(number))
    outcome = bit_rot.run(tmp_path / "home", finished.recipe)
    assert outcome.digests == finished.digests
    told = [note.split("; ")[1] for note in outcome.notes if " is damaged and now in quarantine/" in note]
    if "groups" in kinds:  # the state after them is not even looked at
        assert told == [f"the stage goes on from before step {step}, whose groups are sampled again" for step in (0, 1)]
    else:
        assert told == ["the stage goes on from its first step"]
    with Home.open(tmp_path / "home", write=False) as home:
        assert len(home.ledger.incidents()) == len(told)
    assert verify_home(tmp_path / "home").problems == ()


@pytest.mark.parametrize("repair", [False, True])
def test_damaged_groups_of_a_finished_stage_are_one_incident(finished: Finished, tmp_path: Path, repair: bool) -> None:
    """And no reason to run the stage again, unless that is asked for."""
    home_path = tmp_path / "home"
    bit_rot.copy_on_write(finished.home, home_path)
    with Home.open(home_path, write=False) as home:
        (record,) = [stage for stage in home.ledger.stages() if stage.name == "zero"]
        groups = home.ledger.step_groups(record.key, 1)
    (file,) = bit_rot.files_in(home_path / "objects" / str(groups))[:1]
    bit_rot.truncate([file], random.Random(0))
    outcome = bit_rot.run(home_path, finished.recipe, repair=repair)
    assert outcome.digests == finished.digests
    assert outcome.cached == tuple(finished.digests)
    with Home.open(home_path, write=False) as home:
        (incident,) = home.ledger.incidents()
    assert [note for note in outcome.notes if str(groups) in note] == [str(incident)]
    if repair:
        assert incident.done == f"stage {record.name} is run again for the groups of step 1"
        assert verify_home(home_path).problems == ()
    else:
        assert incident.done.startswith(f"stage {record.name} stays finished without the rollouts of step 1")
        assert str(groups) not in "".join(bit_rot.run(home_path, finished.recipe).notes)
        assert [problem.file for problem in verify_home(home_path).problems] == [f"objects/{groups}"]


def test_verify_misses_no_damage(finished: Finished, tmp_path: Path) -> None:
    assert bit_rot.missed(finished.home, range(10), tmp_path) == []


@pytest.mark.parametrize("check", [verification.check_objects, verification.check_views, verification.check_ledger])
def test_a_verify_that_leaves_a_check_out_misses_damage(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: verification.Check
) -> None:
    others = tuple(other for other in verification.CHECKS if other is not check)
    monkeypatch.setattr(verification, "CHECKS", others)
    assert bit_rot.missed(finished.home, range(10), tmp_path) != []
