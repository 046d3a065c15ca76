"""Adoption: what other code made is taken over where only the code differs, and is marked for ever."""

import json
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.cli import main
from reasonmill.errors import Interrupted
from reasonmill.mill.adoption import Adoption, adopt, different_settings
from reasonmill.mill.pipeline import RunResult, run_recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.reference import ModelRef
from reasonmill.settings import INCIDENTAL
from reasonmill.store.home import Home
from reasonmill.store.verification import verify_home
from small_runs import run_once, stop_after

Run = Callable[..., RunResult]
Adopt = Callable[..., list[Adoption]]
OtherCode = Callable[[str], None]
DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def run(recipe_file: Path, home_path: Path) -> Run:
    """Runs the small recipe with overrides, each time in a newly opened home."""
    return partial(run_once, recipe_file, home_path)


@pytest.fixture
def adopted(recipe_file: Path, home_path: Path) -> Adopt:
    def adopted(*overrides: str, until: str | None = None) -> list[Adoption]:
        with Home.open(home_path) as home:
            return adopt(load_recipe(str(recipe_file), overrides), home, until)

    return adopted


def statuses(done: list[Adoption]) -> list[str]:
    return [stage.status for stage in done]


def test_what_other_code_made_is_adopted_and_cached_from_then_on(
    run: Run, adopted: Adopt, other_code: OtherCode, stages: Any, home_path: Path
) -> None:
    before = run()
    assert stages.calls == ["first", "second", "check"]
    other_code("new")
    done = adopted()
    assert statuses(done) == ["adopted"] * 3
    assert [stage.digest for stage in done] == [stage.artifact.digest for stage in before.stages]
    after = run()
    assert stages.calls == []
    assert [stage.cached for stage in after.stages] == [True] * 3
    assert [stage.key for stage in after.stages] != [stage.key for stage in before.stages]
    assert [stage.machines for stage in after.stages] == [stage.machines for stage in before.stages]
    assert statuses(adopted()) == ["cached"] * 3
    assert verify_home(home_path).problems == ()


def test_all_that_shows_an_adopted_result_says_so(
    run: Run, adopted: Adopt, other_code: OtherCode, home_path: Path, stages: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.draws_its_loss()
    before = run()
    version = json.loads((before.directory / "summary.json").read_text())["reasonmill"]
    other_code("new")
    adopted(until="first")
    after = run()  # "second" and "check" are made anew, of what was adopted
    summary = json.loads((after.directory / "summary.json").read_text())
    first, second, check = summary["stages"]
    assert first["adopted"]["key"] == before.stages[0].key
    assert first["adopted"]["reasonmill"] == version
    assert first["adopted"]["machines"] == list(before.stages[0].machines)
    assert {"adopted_by", "adopted_at", "run"} <= first["adopted"].keys()
    assert "adopted" not in first["metrics"]
    assert (second["adopted"], check["adopted"]) == (None, None)
    named = [f"first {before.stages[0].artifact.digest[:12]}"]
    assert [stage["made_from_adopted"] for stage in (first, second, check)] == [[], named, named]

    page = (after.directory / "report.html").read_text()
    assert "Adopted results" in page
    assert f"first: made by reasonmill {version} under the key {before.stages[0].key[:12]}" in page
    assert f"check: made from adopted {named[0]}" in page
    assert page.count("<svg") == (before.directory / "report.html").read_text().count("<svg") > 0

    capsys.readouterr()
    for command, line in (("lineage", "first"), ("status", "first")):
        arguments = [command, "small/check"] if command == "lineage" else [command]
        with pytest.raises(SystemExit):
            main([*arguments, "--home", str(home_path)])
        out = capsys.readouterr().out
        assert [text for text in out.splitlines() if "adopted" in text] == [
            text for text in out.splitlines() if line in text
        ]


def test_the_original_is_not_called_adopted(run: Run, adopted: Adopt, other_code: OtherCode, home_path: Path) -> None:
    before = run()
    for word in ("new", "newer"):
        other_code(word)
        adopted()
    with Home.open(home_path, write=False) as home:
        original = home.ledger.stage(before.stages[2].key)
        assert original is not None
        ancestors = home.ledger.parents(original.artifact)
        assert all("adopted" not in made.metrics for made in (original.artifact, *ancestors))
        keys = {record.artifact.metrics["adopted"]["key"] for record in home.ledger.stages()[3:]}
    assert keys == {stage.key for stage in before.stages}  # also of what was adopted twice


@pytest.mark.parametrize(
    ("overrides", "stage", "reason"),
    [
        (("second.text=c",), "second", "was made with other settings: text was 'b', and is 'c' now"),
        (("second.steps=2",), "second", "was made with other settings: steps was 1, and is 2 now"),
        (("seed=3",), "first", "was made with the seed 0, but the seed is now 3"),
        (("first.tasks.countdown=0.25",), "first", "tasks.countdown was 0.5, and is 0.25 now"),
        (("second.name=new", "check.from=new"), "new", "this home has no finished result of it"),
    ],
)
def test_what_differs_in_more_than_the_code_is_not_adopted(
    run: Run,
    adopted: Adopt,
    other_code: OtherCode,
    home_path: Path,
    overrides: tuple[str, ...],
    stage: str,
    reason: str,
) -> None:
    run()
    other_code("new")
    with Home.open(home_path, write=False) as home:
        before = home.ledger.runs()
    last = adopted(*overrides)[-1]
    assert (last.name, last.status) == (stage, "not adopted")
    assert reason in last.reason
    if stage == "first":  # nothing was adopted, so nothing was begun
        with Home.open(home_path, write=False) as home:
            assert home.ledger.runs() == before


def test_another_input_is_named(run: Run, adopted: Adopt, other_code: OtherCode, base: Path) -> None:
    run()
    other_code("new")
    (base / "weights.txt").write_text("esab")
    (last,) = adopted()
    assert "was made from something else: from was " in last.reason


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_adoption_reads_all_of_what_it_adopts(
    run: Run, adopted: Adopt, other_code: OtherCode, home_path: Path, harm: str
) -> None:
    digest = run().stages[1].artifact.digest
    other_code("new")
    file = home_path / "objects" / digest / "weights.txt"
    if harm == "damaged":
        file.write_text("baseaaax")
    else:
        shutil.rmtree(file.parent)
    done = adopted()
    assert statuses(done) == ["adopted", "not adopted"]
    assert f"{digest[:12]} is {harm}" in done[-1].reason


def test_results_are_adopted_after_a_failed_rerun_with_another_recipe(
    run: Run, adopted: Adopt, other_code: OtherCode, stages: Any
) -> None:
    """The run's recipe and stages are other ones by then, and another seed; what was finished is still known."""
    before = run()
    other_code("new")
    with pytest.raises(Interrupted):
        run("seed=5", "second.text=c", stop_requested=stop_after(2))
    assert stages.calls
    assert adopted("seed=5")[0].reason.endswith("was made with the seed 0, but the seed is now 5")
    assert statuses(adopted()) == ["adopted"] * 3
    assert [stage.artifact.digest for stage in run().stages] == [stage.artifact.digest for stage in before.stages]
    assert stages.calls == []


def test_of_several_results_the_last_one_that_fits_is_adopted(
    run: Run, adopted: Adopt, other_code: OtherCode, stages: Any
) -> None:
    first = run()
    run("second.text=c")
    other_code("new")
    assert [stage.digest for stage in adopted()] == [stage.artifact.digest for stage in first.stages]


def test_what_is_made_with_is_unknown_is_not_adopted(
    run: Run, adopted: Adopt, other_code: OtherCode, home_path: Path
) -> None:
    """As in a home of an earlier version, which kept one recipe a run."""
    run()
    with Home.open(home_path) as home:
        home.ledger._db.execute("DELETE FROM run_stages")
    other_code("new")
    assert "with which seed" in adopted()[0].reason


def test_an_adopted_result_that_is_damaged_is_rebuilt_by_the_code_of_now(
    run: Run, adopted: Adopt, other_code: OtherCode, stages: Any, home_path: Path
) -> None:
    digest = run().stages[1].artifact.digest
    other_code("new")
    adopted()
    (home_path / "objects" / digest / "weights.txt").write_text("rotten")
    assert stages.calls
    result = run()
    assert stages.calls == ["second"]
    summary = json.loads((result.directory / "summary.json").read_text())
    assert [bool(stage["adopted"]) for stage in summary["stages"]] == [True, False, True]
    assert verify_home(home_path).problems == ()


# A home of an earlier commit


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    with tarfile.open(DATA / "old_home.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path / "old_home"


def test_results_of_an_earlier_commit_are_adopted_and_shown(old_home: Path, tmp_path: Path) -> None:
    head, *written = (DATA / "old_home.toml").read_text().split("[[stage]]")
    names = ('"base"', '"base-eval"')
    kept = [text for text in written if text.startswith(tuple(f"\nname = {name}" for name in names))]
    recipe = tmp_path / "old.toml"
    recipe.write_text("[[stage]]".join([head.replace('result = "gate"', ""), *kept]))
    loaded = load_recipe(str(recipe))
    with Home.open(old_home) as home:
        done = adopt(loaded, home, None)
        assert [(stage.name, stage.status) for stage in done] == [("base", "adopted"), ("base-eval", "adopted")]
        result = run_recipe(loaded, home, KeptProgress(), until=None, backend=BACKEND, stop_requested=lambda: False)
    assert [stage.cached for stage in result.stages] == [True] * 2
    page = (result.directory / "report.html").read_text()
    assert page.count("made by reasonmill 0.1.0") == 2
    assert "countdown-3" in page
    assert verify_home(old_home).problems == ()


def test_adoption_ends_where_settings_mean_something_else_now(old_home: Path) -> None:
    """Flat groups were left out of every update, whatever the settings said."""
    with Home.open(old_home) as home:
        *before, last = adopt(load_recipe(str(DATA / "old_home.toml")), home, None)
    assert statuses(before) == ["adopted"]
    assert (last.name, last.status) == ("zero", "not adopted")
    assert "loss.correction was 'none', and is None now" in last.reason


# The command


def test_adopt_on_the_command_line(
    run: Run, recipe_file: Path, home_path: Path, other_code: OtherCode, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["adopt", str(recipe_file), "--home", str(home_path), *arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    code, _, err = call()
    assert (code, home_path.exists()) == (3, False)
    assert "there is no home here" in err
    run()
    other_code("new")
    code, out, err = call("--set", "second.text=c")
    assert code == 7
    assert [line.split()[2] for line in out.splitlines()[2:]] == ["adopted", "not"]
    assert "stage 'second' can't be adopted" in err
    assert "text was 'b', and is 'c' now" in err
    code, out, err = call("--until", "second")
    assert (code, err) == (0, "")
    assert [line.split()[2] for line in out.splitlines()[2:]] == ["cached", "adopted"]
    assert call()[0] == 0
    assert call("--until", "nowhere")[0] == 2


# Settings


class Inner(BaseModel):
    clip: float = 0.2
    form: str = "k1"


class Now(BaseModel):
    name: str = "zero"
    from_: ModelRef = "base"
    share: float = 1.0
    late: Annotated[float, INCIDENTAL] = 5.0
    loss: Inner = Inner()
    data: tuple[str, ...] = ()
    weights: dict[str, float] = {}
    limit: int | None = None


def differing(before: dict[str, Any], **now: Any) -> list[str]:
    return list(different_settings({**Now().model_dump(mode="json"), **before}, Now(**now)))


def test_equal_settings_differ_in_nothing() -> None:
    assert differing({}) == []
    assert differing({"from_": "elsewhere", "late": 99.0}) == []  # compared by content, and not at all


def test_settings_that_one_version_lacks_count_by_their_default() -> None:
    assert list(different_settings({"name": "zero", "from_": "x"}, Now())) == []
    assert list(different_settings({"name": "zero"}, Now(share=0.5))) == [
        "share is 0.5 now, and there was no such setting"
    ]
    assert differing({"gone": None, "loss": {"clip": 0.2, "form": "k1", "old": []}}) == []
    assert differing({"gone": 3}) == ["gone was 3, and there is no such setting any more"]


def test_differences_are_named_where_they_are() -> None:
    assert differing({}, loss=Inner(clip=0.3)) == ["loss.clip was 0.2, and is 0.3 now"]
    assert differing({"data": ["a", "b"]}, data=("a", "c")) == ["data[1] was 'b', and is 'c' now"]
    assert differing({"data": ["a"]}, data=()) == ["data was ['a'], and is [] now"]
    assert differing({"weights": {"a": 1.0}}, weights={"a": 2.0}) == ["weights.a was 1.0, and is 2.0 now"]
    assert differing({"weights": {"a": 1.0}}, weights={"b": 1.0}) == ["weights was {'a': 1.0}, and is {'b': 1.0} now"]
    assert differing({"limit": 3}) == ["limit was 3, and is None now"]
