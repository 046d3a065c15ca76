"""Nothing held out is trained on, whatever the road: refused where the recipe shows it, dropped otherwise."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from contexts import a_context
from reasonmill.curation.asked import Asked
from reasonmill.errors import RecipeError
from reasonmill.mill.asked import asked_by
from reasonmill.plugins.catalogue import installed
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.reference import shipped_bases
from reasonmill.render import renderer_for
from reasonmill.stage import Input, StageContext
from reasonmill.stages import collect, curate, reward_model, rl, sft
from reasonmill.store.conversations import CONVERSATIONS_FILE, read_conversations, write_conversations
from reasonmill.store.groups import GROUPS_FILE, write_groups
from reasonmill.store.home import Home
from reasonmill.types import Completion, Conversation, Grade, Group, Message, Problem, Rollout
from small_runs import run_once
from users_code import write

BASE = shipped_bases()["tiny-base-weak"]
TASK = installed().task("arithmetic")
EVALUATE = """
[[stage]]
name = "before"
kind = "evaluate"
from = "tiny-base-weak"
tasks = { arithmetic = 3 }
samples = 1
sampling = { max_tokens = 8 }
"""
CURATE = """
[[stage]]
name = "data"
kind = "curate"
data = ["rollouts"]
keep = { correct = false, well_formed = false }
"""


def collected(split: str = "train", name: str = "rollouts") -> str:
    return f"""
[[stage]]
name = "{name}"
kind = "collect"
from = "tiny-base-weak"
tasks = {{ arithmetic = 3 }}
split = "{split}"
samples = 1
sampling = {{ max_tokens = 8 }}
"""


def recipe_of(folder: Path, *stages: str) -> Path:
    path = folder / "leak.toml"
    path.write_text('name = "leak"\n' + "".join(stages), encoding="utf-8")
    return path


def drawn(split: str, index: int = 0) -> Problem:
    return TASK.problem(split, 0, index)


def solved(problem: Problem) -> Group:
    text = f"<think> so</think><answer> {problem.answer}</answer>"
    tokens = renderer_for(BASE).response(text)
    completion = Completion(tokens, (-1.0,) * len(tokens), (True,) * len(tokens), text, "stop", 0)
    return Group(problem, (Rollout((1,), completion, Grade(1.0, {"accuracy": 1.0})),))


def said(problem: Problem, **changes: object) -> Conversation:
    row = Conversation(problem.messages, f"<think></think><answer> {problem.answer}</answer>", "reasoning", "mine")
    return replace(row, **changes)


def put_groups(folder: Path, groups: Sequence[Group]) -> Input:
    folder.mkdir()
    write_groups(folder / GROUPS_FILE, groups)
    return Input(folder, "d" * 64)


def put_conversations(folder: Path, conversations: Sequence[Conversation]) -> Input:
    folder.mkdir()
    write_conversations(folder / CONVERSATIONS_FILE, conversations)
    return Input(folder, "d" * 64)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[StageContext]:
    with Home.open(tmp_path / "home") as home:
        yield a_context(home)


def asking(context: StageContext, *problems: Problem) -> StageContext:
    """The context of a recipe whose evaluation asks these."""
    return replace(context, asked=lambda: Asked(("after", problem) for problem in problems))


# What the recipe shows


@pytest.mark.parametrize(
    "reader",
    [
        '[[stage]]\nname = "data"\nkind = "curate"\ndata = ["rollouts", "before"]\n',
        '[[stage]]\nname = "judge"\nkind = "reward-model"\nfrom = "tiny-base-weak"\ndata = ["rollouts", "before"]\n'
        'objective = "pairwise"\nlabel = "helpful"\nschedule = { peak = 1e-3 }\n',
    ],
)
def test_evaluations_are_no_training_data(tmp_path: Path, reader: str) -> None:
    path = recipe_of(tmp_path, EVALUATE, collected(), reader)
    with pytest.raises(RecipeError, match=r"data\[1\]: stage 'before' asks held-out problems") as caught:
        load_recipe(str(path))
    assert caught.value.where.startswith(f"{path}:")
    assert "collect samples of the training split" in caught.value.fix


def test_rollouts_of_a_held_out_split_are_no_training_data(tmp_path: Path) -> None:
    assert load_recipe(str(recipe_of(tmp_path, collected(), CURATE)))
    path = recipe_of(tmp_path, collected("dev"), CURATE)
    with pytest.raises(RecipeError, match="stage 'rollouts' draws from the held-out split 'dev'") as caught:
        load_recipe(str(path))
    assert caught.value.where.startswith(f"{path}:")
    with pytest.raises(RecipeError, match="the held-out split 'dev'"):
        load_recipe(str(recipe_of(tmp_path, collected(), CURATE)), ["rollouts.split=dev"])


def test_a_users_stage_that_reads_what_is_trained_on_is_refused_evaluations_too(tmp_path: Path) -> None:
    write(
        tmp_path,
        passing=dedent("""\
        from reasonmill.recipe.reference import RolloutsRef
        from reasonmill.stage import Outcome, StageSettings

        MAKES = "rollouts"


        class Settings(StageSettings):
            read: RolloutsRef


        def run(settings, inputs, context):
            return Outcome(lambda target: None)
        """),
    )
    own = '[stages.passing]\nuse = "./passing.py"\n'
    stage = '[[stage]]\nname = "passed"\nkind = "passing"\nread = "before"\n'
    with pytest.raises(RecipeError, match="stage 'before' asks held-out problems"):
        load_recipe(str(recipe_of(tmp_path, own, EVALUATE, stage)))


# What only the data show


def test_curation_drops_held_out_samples_before_anything_else_and_counts_them(
    context: StageContext, tmp_path: Path
) -> None:
    known = [drawn("train"), drawn("dev"), drawn("test")]
    read = put_groups(tmp_path / "read", [*map(solved, known), solved(replace(drawn("train", 1), split=None))])
    chosen = curate.Settings.model_validate({"name": "data", "kind": "curate", "data": ["rollouts"]})
    outcome = curate.run(chosen, {"data[0]": read}, context)
    assert {reason: n for reason, n in outcome.metrics["dropped"].items() if n} == {"held_out": 2}
    assert (outcome.metrics["kept"], outcome.metrics["unknown_split"]) == (2, 1)
    (tmp_path / "dataset").mkdir()
    outcome.write(tmp_path / "dataset")
    rows = read_conversations(tmp_path / "dataset" / CONVERSATIONS_FILE)
    assert {row.problem_id: row.split for row in rows} == {drawn("train").id: "train", drawn("train", 1).id: None}


def test_a_judge_is_not_asked_about_what_is_held_out(context: StageContext, tmp_path: Path) -> None:
    read = put_groups(tmp_path / "read", [solved(drawn("test"))])
    nobody = {"url": "http://127.0.0.1:9/v1", "model": "judge", "retries": 0}
    chosen = curate.Settings.model_validate({"name": "data", "kind": "curate", "data": ["rollouts"], "judge": nobody})
    with pytest.raises(RecipeError, match="1 held_out"):  # and not that nobody answers
        curate.run(chosen, {"data[0]": read}, context)


def test_fine_tuning_drops_held_out_conversations_and_counts_them(context: StageContext, tmp_path: Path) -> None:
    rows = [said(drawn("train", index), split="train") for index in range(3)]
    rows += [said(drawn("test"), split="test"), said(drawn("dev"), split="dev"), said(drawn("train", 4))]
    chosen = sft.Settings.model_validate(
        {"name": "student", "kind": "sft", "from": "b", "data": ["d"], "epochs": 1, "schedule": {"peak": 1e-3}}
    )
    inputs = {"from": Input(BASE, "b" * 64), "data[0]": put_conversations(tmp_path / "read", rows)}
    metrics = sft.run(chosen, inputs, context).metrics
    assert (metrics["conversations"], metrics["held_out"], metrics["unknown_split"]) == (4, 2, 1)


def test_reward_models_drop_held_out_responses_and_count_them() -> None:
    talk = installed().task("harmful-requests")
    problems = [talk.problem(split, 0, 0) for split in ("train", "test")]
    grade = Grade(1.0, {"safe": 1.0})
    groups = [Group(p, tuple(replace(r, grade=grade) for r in solved(p).rollouts)) for p in problems]
    chosen = reward_model.Settings.model_validate(
        {"name": "judge", "kind": "reward-model", "from": "b", "data": ["d"], "objective": "pointwise"}
        | {"label": "safe", "schedule": {"peak": 1e-3}}
    )
    selection = reward_model.select(chosen, groups, renderer_for(BASE), 0)
    assert {example.problem_id for example in (*selection.train, *selection.held_out)} == {problems[0].id}
    assert selection.dropped["held_out"] == 1
    assert selection.counts()["examples/drawn"] == 2


# What the data do not show


@pytest.mark.parametrize(
    ("row", "is_asked"),
    [
        (said(drawn("test")), True),
        (said(drawn("train")), False),
        (said(drawn("train"), problem_id=drawn("test").id), True),  # it says so itself
        (said(drawn("test"), messages=(Message("system", "be brief"), *drawn("test").messages)), True),
        (said(drawn("test"), messages=(Message("user", f"  {drawn('test').messages[0].content.upper()}"),)), True),
        (said(drawn("test"), messages=(*drawn("test").messages, Message("tool", "14"))), True),
    ],
)
def test_conversations_that_ask_what_an_evaluation_asks_are_refused(row: Conversation, is_asked: bool) -> None:
    asked = Asked([("after", drawn("test")), ("after", drawn("test", 1))])
    others = [said(drawn("train", 5))]
    if not is_asked:
        asked.refuse_conversations("student", [*others, row])
        return
    with pytest.raises(RecipeError, match=r"1 of the 2 .* stage 'student' .* of the evaluation 'after'") as caught:
        asked.refuse_conversations("student", [*others, row])
    assert "decontaminate" in caught.value.fix


def test_a_prompt_that_all_problems_share_does_not_tell_them_apart() -> None:
    play = [Problem("game", (Message("user", "your move ."),), "", {"board": board}) for board in range(3)]
    asked = Asked([("after", play[0]), ("after", play[1])])
    asked.refuse("student", [play[2]])
    asked.refuse_conversations("student", [said(play[2])])
    with pytest.raises(RecipeError, match="evaluation 'after'"):
        asked.refuse("student", [replace(play[1], task="the same game under another name", split="train")])


def test_fine_tuning_reward_models_and_curation_refuse_what_is_asked(context: StageContext, tmp_path: Path) -> None:
    """The data of an earlier version, or a user's own, does not know its split."""
    lost = replace(drawn("test"), split=None)
    groups = put_groups(tmp_path / "groups", [solved(lost)])
    rows = put_conversations(tmp_path / "rows", [said(lost)])
    asks = asking(context, drawn("test"))
    schedule = {"schedule": {"peak": 1e-3}}
    data = curate.Settings.model_validate({"name": "data", "kind": "curate", "data": ["d"]})
    with pytest.raises(RecipeError, match="stage 'data' would be trained on"):
        curate.run(data, {"data[0]": groups}, asks)
    student = sft.Settings.model_validate({"name": "student", "kind": "sft", "from": "b", "data": ["d"], **schedule})
    with pytest.raises(RecipeError, match="stage 'student' would be trained on"):
        sft.run(student, {"from": Input(BASE, "b" * 64), "data[0]": rows}, asks)
    judge = reward_model.Settings.model_validate(
        {"name": "judge", "kind": "reward-model", "from": "b", "data": ["d"], "label": "safe", **schedule}
        | {"objective": "pointwise"}
    )
    with pytest.raises(RecipeError, match="stage 'judge' would be trained on"):
        reward_model.run(judge, {"from": Input(BASE, "b" * 64), "data[0]": groups}, asks)
    assert curate.run(data, {"data[0]": groups}, asking(context, drawn("test", 7))).metrics["kept"] == 1


def test_policies_and_collections_refuse_problems_that_an_evaluation_asks(context: StageContext) -> None:
    """As of a task that has the same problem in two splits."""
    own = collect.Settings.model_validate(
        {"name": "rollouts", "kind": "collect", "from": "b", "tasks": {"arithmetic": 2}, "samples": 1}
    )
    theirs = collect.problems_of(own, {"arithmetic": TASK}, 0)
    with pytest.raises(RecipeError, match=r"1 of the 2 .* evaluation 'after'") as caught:
        collect.run(own, {"from": Input(BASE, "b" * 64)}, asking(context, theirs[1]))
    assert caught.value.fix == "let each split of the task hold problems of its own"
    zero = rl.Settings.model_validate(
        {"name": "rollouts", "kind": "rl", "from": "b", "tasks": {"arithmetic": 1.0}, "steps": 1, "group_size": 2}
        | {"problems_per_step": 2, "schedule": {"peak": 1e-4}}
    )
    with pytest.raises(RecipeError, match="stage 'rollouts' would be trained on"):
        rl.run(zero, {"from": Input(BASE, "b" * 64)}, asking(context, theirs[0]))


def test_a_recipe_asks_what_its_evaluations_ask(tmp_path: Path) -> None:
    more = EVALUATE.replace("before", "more").replace("arithmetic = 3", "arithmetic = 5, facts = 1")
    dev = EVALUATE.replace("before", "on-dev") + 'split = "dev"\n'
    asked = asked_by(load_recipe(str(recipe_of(tmp_path, EVALUATE, more, dev))))
    asked.refuse("student", [drawn("test", 5), drawn("dev", 3), drawn("train")])
    for problem, stage in ((drawn("test", 2), "before"), (drawn("test", 4), "more"), (drawn("dev", 2), "on-dev")):
        with pytest.raises(RecipeError, match=f"evaluation '{stage}'"):
            asked.refuse("student", [problem])


def test_users_conversations_about_test_problems_end_the_run_or_are_dropped(tmp_path: Path) -> None:
    write(
        tmp_path,
        mine=dedent("""\
        from reasonmill.plugins.catalogue import installed
        from reasonmill.types import Conversation


        class Mine:
            def __init__(self, knows: bool = False) -> None:
                self.knows = knows

            def conversation(self, index, *, noise):
                problem = installed().task("arithmetic").problem("test", 0, index)
                split = "test" if self.knows else None
                return Conversation(problem.messages, problem.answer, "general", f"mine-{index}", split)
        """),
    )
    general = 'general = {{ use = "./mine.py:Mine", conversations = 3{} }}\n'
    path = recipe_of(tmp_path, collected(), CURATE, general.format(""), EVALUATE)
    with pytest.raises(RecipeError, match=r"3 of the 6 .* stage 'data' .* evaluation 'before'"):
        run_once(path, tmp_path / "home")
    drops = run_once(path, tmp_path / "home", "data.decontaminate={ arithmetic = 3 }", until="data")
    assert drops.summary["stages"][-1]["metrics"]["general"]["dropped"] == {"held_out": 0, "contaminated": 3}
    path = recipe_of(tmp_path, collected(), CURATE, general.format(", knows = true"), EVALUATE)
    knows = run_once(path, tmp_path / "home", until="data")
    assert knows.summary["stages"][-1]["metrics"]["general"]["dropped"] == {"held_out": 3, "contaminated": 0}
