"""Tables of data: splits by content, what is dropped and counted, and recipes whose tasks and stages name them."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.data.table import Rows
from reasonmill.errors import RecipeError
from reasonmill.mill.pipeline import run_recipe
from reasonmill.mill.workload import LIKELY, workloads
from reasonmill.plugins.catalogue import Catalogue, DataUse
from reasonmill.recipe.graph import Recipe, stage_key
from reasonmill.recipe.load import load_recipe
from reasonmill.store.home import Home

SUMS = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(200)]
COMMIT = "0123456789" * 4


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def prompts(rows: Rows) -> dict[str, set[str]]:
    return {split: {problem.messages[-1].content for problem in each} for split, each in rows.problems().items()}


# Splits


def test_the_content_of_a_prompt_decides_its_split_and_nothing_else(tmp_path: Path) -> None:
    whole = prompts(Rows(file=write(tmp_path / "a.jsonl", SUMS)))
    assert 120 < len(whole["train"]) < 180
    assert min(len(whole["dev"]), len(whole["test"])) > 5
    # In another file, order, spelling and shape, and beside other rows.
    other = [{"prompt": f"  {row['problem'].upper()}\n", "completion": "even"} for row in reversed(SUMS[:60])]
    found = Rows(file=write(tmp_path / "b.jsonl", other)).conversations()
    split_of = {prompt: split for split, each in whole.items() for prompt in each}
    assert {c.messages[0].content.strip().capitalize(): c.split for c in found} == {
        row["problem"].capitalize(): split_of[row["problem"]] for row in SUMS[:60]
    }


def test_shares_are_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", SUMS)
    assert Rows(file=file, shares={"test": 1.0}).counts.splits == {"test": 200}
    half = Rows(file=file, shares={"train": 0.5, "dev": 0.5}).counts.splits
    assert half.keys() == {"train", "dev"}
    assert 70 < half["dev"] < 130
    for wrong in ({"train": 0.5}, {"train": 0.5, "rest": 0.5}, {"train": 1.5, "test": -0.5}):
        with pytest.raises(RecipeError, match="add up to 1"):
            Rows(file=file, shares=wrong)


def test_a_column_may_name_the_split(tmp_path: Path) -> None:
    named = [{"q": "a", "a": "1", "part": "train"}, {"q": "b", "a": "1", "part": "validation"}]
    columns = {"prompt": "q", "answer": "a", "split": "part"}
    rows = Rows(file=write(tmp_path / "a.jsonl", named), columns=columns)
    assert rows.counts.splits == {"train": 1, "dev": 1}
    with pytest.raises(RecipeError, match="'mine' names no split"):
        Rows(file=write(tmp_path / "b.jsonl", [*named, {"q": "c", "a": "1", "part": "mine"}]), columns=columns)


def test_rows_that_are_the_same_count_once_and_all_are_accounted_for(tmp_path: Path) -> None:
    first = {"problem": "What is 1 + 1?", "answer": "2", "index": 0}
    again = {"problem": "What  is 1 + 1?\n", "answer": "2", "index": 1}
    at_odds = [{"problem": "What is 3 + 3?", "answer": answer} for answer in ("6", "7", "6")]
    rows = Rows(train=write(tmp_path / "a.jsonl", [first, again, again, *at_odds, SUMS[9]]))
    assert [problem.meta.get("index") for problem in rows.problems()["train"]] == [0, None]
    counts = rows.counts
    assert (counts.splits, counts.duplicates, counts.contradictory) == ({"train": 2}, 3, 2)
    assert sum(counts.splits.values()) + counts.duplicates + counts.contradictory == 7
    assert [place.rpartition(":")[2] for place, _ in rows.left_out] == ["2", "3", "5", "6", "4"]


def test_what_is_held_out_anywhere_is_not_trained_on(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [*SUMS[:3], {"problem": "what is 4 + 4?", "answer": "8"}, SUMS[5]])
    test = write(tmp_path / "test.jsonl", [SUMS[1], SUMS[4], {**SUMS[5], "answer": "11"}])
    rows = Rows(train=train, test=test)
    assert prompts(rows) == {
        "train": {SUMS[0]["problem"], SUMS[2]["problem"]},
        "test": {SUMS[1]["problem"], SUMS[4]["problem"], SUMS[5]["problem"]},
    }
    # The same row, the same prompt in other capitals, and the same prompt with another answer.
    assert (rows.counts.duplicates, rows.counts.also_held_out) == (1, 2)
    assert next(p.answer for p in rows.problems()["test"] if p.messages[0].content == SUMS[5]["problem"]) == "11"


# Data sets of the hub


def test_a_data_set_of_the_hub_is_read_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, revision: str) -> dict[str, Any]:
        asked.append((name, config, revision))
        return {"train": SUMS[:3], "test": SUMS[3:5]}

    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, disable_progress_bars=lambda: None)
    )
    hub = {"name": "lab/sums", "revision": COMMIT, "config": "main"}
    rows = load("hub", hub)
    assert rows.counts.splits == {"train": 3, "test": 2}
    assert asked == [("lab/sums", "main", COMMIT)]
    assert load("hub", {**hub, "splits": {"dev": "test"}}).counts.splits == {"dev": 2}
    with pytest.raises(RecipeError, match="has the splits train, test"):
        load("hub", {**hub, "splits": {"dev": "validation"}})
    with pytest.raises(RecipeError, match="'main' is no commit of 40 hexadecimal digits"):
        load("hub", {**hub, "revision": "main"})


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RecipeError) as refused:
        load("hub", {"name": "lab/sums", "revision": COMMIT})
    assert "reasonmill[hub]" in refused.value.fix


def load(key: str, value: Any) -> Rows:
    """The rows of a table as a recipe has it."""
    made = Catalogue({"data": {"mine": DataUse.model_validate({key: value})}}).plugin("data", "mine").made
    assert isinstance(made, Rows)
    return made


# Recipes

CODE = """
from reasonmill.grading.verdict import Verdict
from reasonmill.tasks.rows import RowsTask, Splits

class Exact:
    isolation = "none"
    asks = ""
    def judge(self, problem, response):
        return Verdict.right() if response == problem.answer else Verdict.wrong()

def exact(data: Splits | None = None) -> RowsTask:
    return RowsTask(Exact(), data)

def strict(data: Splits) -> RowsTask:
    return RowsTask(Exact(), data)
"""
RECIPE = """name = "own"
seed = 0

[data.sums]
train = "train.jsonl"
test = "test.jsonl"

[data.talk]
file = "talk.jsonl"
shares = { train = 1.0 }

[data.liked]
file = "liked.jsonl"

[tasks.sums]
use = "./code.py:exact"
data = "sums"

[[stage]]
name = "tuned"
kind = "sft"
from = "tiny-base-weak"
data = ["talk"]
schedule = { peak = 1e-4 }

[[stage]]
name = "liking"
kind = "reward-model"
from = "tuned"
data = ["liked"]
objective = "pairwise"
label = "chosen"
schedule = { peak = 1e-4 }

[[stage]]
name = "measured"
kind = "evaluate"
from = "tiny-base-weak"
tasks = { sums = 20 }
"""
TALK = [{"prompt": f"say {n}", "completion": f"{n}"} for n in range(8)]
# Of equal lengths: a reward model drops pairs whose lengths would give away which is chosen.
LIKED = [{"prompt": f"say {n}", "chosen": f"{n} 1", "rejected": f"{n} 2"} for n in range(40)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", SUMS[:50])
    write(tmp_path / "test.jsonl", SUMS[50:70])
    write(tmp_path / "talk.jsonl", TALK)
    write(tmp_path / "liked.jsonl", LIKED)
    (tmp_path / "code.py").write_text(CODE)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def keys(recipe: Recipe) -> dict[str, str]:
    return {node.settings.name: stage_key(node, {}, recipe.seed) for node in recipe.nodes}


def refused(file: Path, old: str, new: str) -> RecipeError:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError) as error:
        load_recipe(str(file))
    return error.value


def test_a_task_asks_the_rows_that_it_names(file: Path) -> None:
    task = load_recipe(str(file)).catalogue.task("sums")
    first = [task.problem("train", 3, index) for index in range(50)]
    assert {problem.messages[0].content for problem in first} == {row["problem"] for row in SUMS[:50]}
    assert (first[0].task, first[0].split) == ("sums", "train")
    assert first == [task.problem("train", 3, index) for index in range(50)] == list(task.problems("train", 3))
    again = [task.problem("train", 3, 50 + index) for index in range(50)]
    other = [task.problem("train", 4, index) for index in range(50)]
    ids = {tuple(problem.id for problem in each) for each in (first, again, other)}
    assert len(ids) == 3  # three orders
    assert len({frozenset(each) for each in ids}) == 1  # of the same problems
    with pytest.raises(RecipeError, match="split 'test' has 20 problems, and one more is asked for"):
        task.problem("test", 0, 20)


def test_a_key_covers_what_the_rows_say_and_not_where_they_are(file: Path, tmp_path: Path) -> None:
    before = keys(load_recipe(str(file)))
    (tmp_path / "talk.jsonl").rename(tmp_path / "talks.jsonl")
    (tmp_path / "test.jsonl").rename(tmp_path / "held-out.jsonl")
    file.write_text(RECIPE.replace("talk.jsonl", "talks.jsonl").replace("test.jsonl", "held-out.jsonl"))
    assert keys(load_recipe(str(file))) == before
    file.write_text(file.read_text().replace("data.talk", "data.chat").replace('["talk"]', '["chat"]'))
    assert keys(load_recipe(str(file))) == before
    write(tmp_path / "talks.jsonl", [*TALK, {"prompt": "say 9", "completion": "9"}])
    changed = {name for name, key in keys(load_recipe(str(file))).items() if key != before[name]}
    assert changed == {"tuned"}
    write(tmp_path / "held-out.jsonl", SUMS[51:71])
    write(tmp_path / "liked.jsonl", LIKED[1:])
    assert {name for name, key in keys(load_recipe(str(file))).items() if key != before[name]} == set(before)


def test_mistakes_are_refused_where_they_are_written(file: Path, tmp_path: Path) -> None:
    error = refused(file, 'data = "sums"', 'data = "sum"')
    assert (error.what, error.fix) == ("tasks.sums: there is no table [data.sum]", "did you mean 'sums'?")
    assert error.where == f"{file}:17"
    file.write_text(RECIPE)
    error = refused(file, 'data = ["talk"]', 'data = ["tlak"]')
    assert "'tlak' is neither an earlier stage nor a table [data.NAME]" in error.what
    assert error.fix == "did you mean 'talk'?"
    file.write_text(RECIPE)
    error = refused(file, 'data = ["talk"]', 'data = ["liked"]')
    assert "the rows hold pairs" in error.what
    assert error.where.startswith(f"{file}:23")
    file.write_text(RECIPE)
    assert "a stage and a table of data are both named 'talk'" in refused(file, '"tuned"', '"talk"').what
    file.write_text(RECIPE)
    assert "has 20 problems" in refused(file, "sums = 20", "sums = 21").what
    file.write_text(RECIPE.replace(":exact", ":strict"))
    load_recipe(str(file))
    assert "'data' is missing" in refused(file, 'data = "sums"\n', "").what
    file.write_text(RECIPE)
    write(tmp_path / "train.jsonl", [*SUMS[:2], {"problem": "?"}])
    error = refused(file, "seed", "seed")
    assert error.what.startswith("data.sums: 1 row is not understood")  # once, and not for the task again
    assert error.where == f"{file}:4, {tmp_path / 'train.jsonl'}:3, column 'answer'"


@pytest.mark.check
def test_stages_learn_from_tables(file: Path, tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        recipe = load_recipe(str(file))
        result = run_recipe(recipe, home, KeptProgress(), until="liking", backend=BACKEND, stop_requested=lambda: False)
    tuned, liking = (stage.artifact.metrics for stage in result.stages)
    assert (tuned["conversations"], tuned["unknown_split"]) == (8, 0)
    held_out = sum(
        count for split, count in Rows(file=tmp_path / "liked.jsonl").counts.splits.items() if split != "train"
    )
    assert (liking["examples/drawn"], liking["examples/dropped_held_out"]) == (40, held_out)


def test_estimates_know_how_much_the_rows_are(file: Path) -> None:
    works = workloads(load_recipe(str(file), ["tuned.epochs=3"]).nodes, {}, LIKELY)
    tuned, liking = works["tuned"], works["liking"]
    assert tuned is not None
    assert liking is not None
    assert tuned.trained == 3 * sum(len(row["prompt"]) + len(row["completion"]) for row in TALK) / 4
    pairs = Rows(file=file.with_name("liked.jsonl")).counts.splits["train"]
    assert liking.trained + liking.scored["from"] == pytest.approx(2 * pairs * (6 + 4) / 4, rel=0.1)


def test_a_directory_is_not_taken_for_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "sums").mkdir(parents=True)
    with pytest.raises(RecipeError, match="there is a directory 'lab/sums' here"):
        load("hub", {"name": "lab/sums", "revision": COMMIT})


def test_users_bring_data_by_code(file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from reasonmill.types import Message, Problem\n"
        "class Mine:\n"
        "    def __init__(self, size: int) -> None:\n"
        "        self.size = size\n"
        "    def problems(self):\n"
        "        return {'train': [Problem('x', (Message('user', str(n)),), str(n)) for n in range(self.size)]}\n"
    )
    old = 'train = "train.jsonl"\ntest = "test.jsonl"\n'
    text = RECIPE.replace(old, 'use = "./mine.py:Mine"\nsize = 3\n').replace('"evaluate"', '"collect"')
    file.write_text(text)
    task = load_recipe(str(file)).catalogue.task("sums")
    assert {task.problem("train", 0, index).answer for index in range(3)} == {"0", "1", "2"}
    error = refused(file, 'data = ["talk"]', 'data = ["sums"]')
    assert "the table of data 'sums' gives no conversations" in error.what
