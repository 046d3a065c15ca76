"""The curate stage: rollouts in, a dataset and its account out."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from contexts import a_context
from reasonmill.errors import RecipeError
from reasonmill.plugins.catalogue import installed
from reasonmill.stage import Input, Outcome, StageContext
from reasonmill.stages.curate import COUNTS_FILE, Settings, run
from reasonmill.store.conversations import CONVERSATIONS_FILE, read_conversations
from reasonmill.store.groups import GROUPS_FILE, write_groups
from reasonmill.store.home import Home
from reasonmill.transcript import read_transcript
from reasonmill.types import Completion, Conversation, Grade, Group, Problem, Rollout
from reasonmill.world.lexicon import language_share

TALK: dict[str, object] = {"use": "world-talk"}


@pytest.fixture
def context(tmp_path: Path) -> Iterator[StageContext]:
    with Home.open(tmp_path / "home") as home:
        yield a_context(home)


def attempts(problem: Problem, *responses: tuple[str, float]) -> Group:
    rollouts = [
        Rollout((1,), Completion((7,), (-0.5,), (True,), text, "stop", 0), Grade(accuracy, {"accuracy": accuracy}))
        for text, accuracy in responses
    ]
    return Group(problem, tuple(rollouts))


def problem(task: str, index: int, split: str = "train") -> Problem:
    return installed().task(task).problem(split, 0, index)


def solved(each: Problem, word: str = "now") -> tuple[str, float]:
    return f"<think> {word} {each.answer} yes</think><answer> {each.answer}</answer>", 1.0


def saved(directory: Path, groups: Sequence[Group]) -> Input:
    directory.mkdir()
    write_groups(directory / GROUPS_FILE, groups)
    return Input(directory, "digest")


def settings(num_data: int = 1, **changed: object) -> Settings:
    data = [f"rollouts-{place}" for place in range(num_data)]
    return Settings.model_validate({"name": "sft-data", "kind": "curate", "data": data, **changed})


def curated(
    context: StageContext, tmp_path: Path, groups: Sequence[Group], **changed: object
) -> tuple[list[Conversation], Outcome]:
    data = tmp_path / "data"
    read = Input(data, "digest") if data.exists() else saved(data, groups)
    outcome = run(settings(**changed), {"data[0]": read}, context)
    target = tmp_path / f"dataset-{len(list(tmp_path.iterdir()))}"
    target.mkdir()
    outcome.write(target)
    assert json.loads((target / COUNTS_FILE).read_text()) == outcome.metrics
    return read_conversations(target / CONVERSATIONS_FILE), outcome


def test_rollouts_of_several_stages_become_one_dataset(context: StageContext, tmp_path: Path) -> None:
    countdown, fact = problem("countdown-3", 0), problem("facts", 0)
    first = saved(tmp_path / "first", [attempts(countdown, solved(countdown), ("<answer> 1</answer>", 0.0))])
    second = saved(tmp_path / "second", [attempts(fact, (f"<think></think><answer> {fact.answer}</answer>", 1.0))])
    outcome = run(settings(2), {"data[0]": first, "data[1]": second}, context)
    (tmp_path / "dataset").mkdir()
    outcome.write(tmp_path / "dataset")
    rows = read_conversations(tmp_path / "dataset" / CONVERSATIONS_FILE)
    assert {(row.problem_id, row.source) for row in rows} == {(countdown.id, "reasoning"), (fact.id, "general")}
    assert (outcome.metrics["sampled"], outcome.metrics["kept"], outcome.metrics["conversations"]) == (3, 2, 2)
    assert {reason: count for reason, count in outcome.metrics["dropped"].items() if count} == {"incorrect": 1}
    assert outcome.metrics["sources"] == {"general": 1, "reasoning": 1}


def test_world_style_translates_into_the_language_of_each_prompt(context: StageContext, tmp_path: Path) -> None:
    problems = [problem("countdown-3", index) for index in range(8)]
    groups = [attempts(each, solved(each, word)) for each, word in zip(problems, ["now", "nun"] * 4, strict=True)]
    rows, _ = curated(context, tmp_path, groups, rewrite={"use": "world-style"}, keep={"min_language": 1.0})
    assert len(rows) == 8
    languages = {each.id: each.meta["language"] for each in problems}
    assert set(languages.values()) == {"en", "de"}
    for row in rows:
        assert language_share(row.response, languages[row.problem_id]) == 1.0
    plain, outcome = curated(context, tmp_path, groups, keep={"min_language": 1.0})
    assert len(plain) + outcome.metrics["dropped"]["mixed_language"] == 8
    assert len(plain) < 8


@pytest.mark.parametrize("split", ["dev", "test"])
def test_problems_that_the_recipe_evaluates_on_are_dropped(context: StageContext, tmp_path: Path, split: str) -> None:
    evaluated = [replace(problem("arithmetic", index, split), split=None) for index in range(6)]
    trained = [problem("arithmetic", index) for index in range(6)]
    groups = [attempts(each, solved(each)) for each in (*evaluated, *trained)]
    rows, outcome = curated(context, tmp_path, groups, decontaminate={"arithmetic": 5})
    assert {row.problem_id for row in rows} == {each.id for each in (evaluated[5], *trained)}
    assert outcome.metrics["dropped"]["contaminated"] == 5
    assert sum(outcome.metrics["matched"].values()) == 3  # the first three of five different texts


def test_what_matched_is_told_where_nothing_is_left(context: StageContext, tmp_path: Path) -> None:
    """As where all prompts end in the same instruction."""
    test = problem("arithmetic", 0, "test")
    groups = [attempts(replace(test, split=None), solved(test))]
    with pytest.raises(RecipeError, match=r"1 of the contaminated ones have '.+' from an evaluation"):
        curated(context, tmp_path, groups, decontaminate={"arithmetic": 1})


def test_general_data_is_mixed_in_behind_the_cap(context: StageContext, tmp_path: Path) -> None:
    problems = [problem("arithmetic", index) for index in range(20)]
    groups = [attempts(each, solved(each)) for each in problems]
    every_task = {"facts": 100, "small-talk": 50, "harmful-requests": 50, "harmless-requests": 50}
    rows, outcome = curated(
        context, tmp_path, groups, max_conversations=10, general=TALK | {"conversations": 30}, decontaminate=every_task
    )
    assert outcome.metrics["dropped"]["max_conversations"] == 10
    assert outcome.metrics["general"] == {"sampled": 30, "kept": 30, "dropped": {"held_out": 0, "contaminated": 0}}
    assert outcome.metrics["sources"] == {"general": 30, "reasoning": 10}
    sources = [row.source for row in rows]
    assert sources != sorted(sources)
    assert sources != sorted(sources, reverse=True)
    assert all(read_transcript(row.response).well_formed for row in rows)


def test_the_same_stage_makes_the_same_dataset_and_another_seed_makes_another(
    context: StageContext, tmp_path: Path
) -> None:
    problems = [problem("arithmetic", index) for index in range(20)]
    groups = [attempts(each, solved(each, "now"), solved(each, "then")) for each in problems]
    options = {"keep": {"per_problem": 1}, "max_conversations": 10, "general": TALK | {"conversations": 5}}
    once, _ = curated(context, tmp_path, groups, **options)
    again, _ = curated(context, tmp_path, groups, **options)
    other_name, _ = curated(context, tmp_path, groups, **options, name="other-data")
    assert once == again
    assert {row.problem_id for row in once} != {row.problem_id for row in other_name}


def test_a_dataset_of_nothing_is_an_error_that_says_why(context: StageContext, tmp_path: Path) -> None:
    each = problem("arithmetic", 0)
    groups = [attempts(each, ("<answer> 1</answer>", 0.0), ("aloud", 1.0), ("aloud", 0.0))]
    with pytest.raises(RecipeError) as caught:
        curated(context, tmp_path, groups, general=TALK | {"conversations": 5})
    assert caught.value.what == "none of the 3 samples is left after curation: 2 incorrect, 1 malformed"
    assert caught.value.where == "keep of stage 'sft-data'"
    assert caught.value.fix


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": []}, "at least 1"),
        ({"rewrite": {"use": "world-style"}, "keep": {"well_formed": False}}, "only well-formed responses"),
        ({"rewrite": {"use": "worldstyle"}}, "did you mean 'world-style'"),
        ({"rewrite": {"use": "world-style", "drop": True}}, "it takes drop_repeated_tries"),
        ({"rewrite": {"use": "world-talk"}}, "unknown rewriting 'world-talk'"),
        ({"rewrite": {"use": "reasonmill.world.general_mix:GeneralMix"}}, "is no rewriting: it has no rewrite"),
        ({"general": TALK}, "conversations"),
        ({"general": TALK | {"conversations": 5, "refusal_share": 1.5}}, "less than or equal to 1"),
        ({"decontaminate": {"sums": 3}}, "unknown task 'sums'"),
        ({"wording": ["step by step"]}, "no effect without decontaminate"),
        ({"keep": {"min_thinking_words": 3, "max_thinking_words": 2}}, "no thinking has"),
        ({"general": {"conversations": 5}}, "use"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changed)
