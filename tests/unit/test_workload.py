"""Sizes of models and tokens of stages, by hand-computed numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from reasonmill.algo.packing import SHARED_FROM
from reasonmill.learn.settings import LoraSettings
from reasonmill.mill.model_size import ModelSize, size_of, sizes_by_stage
from reasonmill.mill.workload import (
    AT_MOST,
    LIKELY,
    PROMPT_TOKENS,
    WORKLOADS,
    Data,
    Guess,
    Upstream,
    Workload,
    workload,
    workloads,
)
from reasonmill.model.lora import Adapter
from reasonmill.plugins.catalogue import installed
from reasonmill.recipe.graph import Node
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.models import RecipeModel
from reasonmill.recipe.reference import ModelSource, StageSource
from reasonmill.stage import StageSettings
from reasonmill.types import Artifact
from tiny_models import tiny_config, tiny_decoder

SCHEDULE = {"peak": 1e-4}
# A model that is on no disk: 1,000 million parameters, 10 layers of width 100, 10 x 2 x 2 x 25 = 1,000 cached values.
BILLION = RecipeModel(
    hub="nobody/nothing", revision="0" * 40, parameters=1e9, layers=10, hidden_size=100, kv_heads=2, head_dim=25
)


def node(kind: str, sources: dict[str, Any] | None = None, **settings: Any) -> Node:
    """A stage named like its kind that starts from the model of BILLION."""
    found = installed().plugin("stages", kind).made.Settings(**{"name": kind, "kind": kind, **settings})
    sources = {"from": ModelSource("billion", BILLION), **(sources or {})}
    tasks = {name: installed().plugin("tasks", name) for name in getattr(found, "tasks", ())}
    return Node(found, sources, installed().plugin("stages", kind), tasks)


def rl(**settings: Any) -> Node:
    given = {"from": "billion", "tasks": {"arithmetic": 1.0}, "steps": 2, "schedule": SCHEDULE, **settings}
    return node("rl", problems_per_step=3, group_size=4, sampling={"max_tokens": 100, "slots": 8}, **given)


def collected(**settings: Any) -> Node:
    given = {"from": "billion", "tasks": {"arithmetic": 10}, "samples": 4, "sampling": {"max_tokens": 100}, **settings}
    return node("collect", **given)


def work_of(settings: StageSettings, guess: Guess, *read: Data) -> Workload:
    """What a stage does that reads these data."""
    found = workload(settings, Upstream(guess, {f"data[{place}]": data for place, data in enumerate(read)}))
    assert found is not None
    return found


def made_by(settings: StageSettings, guess: Guess, *read: Data) -> Data:
    made = work_of(settings, guess, *read).makes
    assert made is not None
    return made


# Sizes


def test_the_sizes_of_a_model_on_disk_are_read_from_its_config() -> None:
    nodes = load_recipe("r1-zero-tiny").nodes
    # 4 layers x (keys + values) x 1 head x 32; the parameters are those of the shipped weights.
    assert sizes_by_stage(nodes)["zero"] == {
        "from": (size := ModelSize(1_066_112, 1_066_112, 4, 128, 256)),
        "": size,
    }
    assert [read and read.kept_bytes for read in sizes_by_stage(nodes)["zero"].values()] == [4, 4]


def test_an_adapter_is_counted_by_its_layers() -> None:
    size = size_of(tiny_config("qwen2"))
    # Of both layers, with rank 4: queries 32 + 32, keys 32 + 16.
    assert size.adapter_parameters(LoraSettings(rank=4, targets=["q_proj", "self_attn.k_proj"])) == 2 * 4 * (64 + 48)
    decoder = tiny_decoder()
    Adapter(decoder.network, 4, 1.0, [], 0)
    made = sum(p.numel() for p in decoder.network.parameters() if p.requires_grad)
    assert size.adapter_parameters(LoraSettings(rank=4)) == made
    work = work_of(rl(lora={"rank": 4}, loss={"kl_coefficient": 0.1}).settings, LIKELY)
    assert (work.lora, work.copies) == (LoraSettings(rank=4), ())  # its reference is no copy


def test_a_mixture_of_experts_meets_a_part_of_its_parameters() -> None:
    """DeepSeek-V3: 671 billion parameters of which 37 are active, and latent attention that is kept unfolded."""
    size = size_of(AutoConfig.for_model("deepseek_v3"))
    assert size.parameters == pytest.approx(671e9, rel=1e-3)
    assert size.active == pytest.approx(37.5e9, rel=1e-2)
    assert size.cached_values == 61 * 128 * (128 + 64 + 128)


def test_a_recipe_tells_the_sizes_of_a_model_that_is_not_on_disk() -> None:
    assert sizes_by_stage((rl(),))["rl"]["from"] == ModelSize(1e9, 1e9, 10, 100, 1000)
    told = BILLION.model_copy(update={"kv_heads": None, "active_parameters": 1e8})
    unsaid = replace(rl(), sources={"from": ModelSource("billion", told)})
    assert sizes_by_stage((unsaid,))["rl"]["from"] == ModelSize(1e9, 1e8, 10, 100, None)


# Tokens


def test_every_kind_of_stage_has_a_workload() -> None:
    assert WORKLOADS.keys() == set(installed().names("stages"))


@pytest.mark.parametrize(("guess", "response"), [(LIKELY, 25), (AT_MOST, 100)])
def test_rl_samples_trains_and_scores(guess: Guess, response: int) -> None:
    # 2 x 3 x 4 = 24 rollouts of at most 100 tokens, a quarter of that expected, with prompts of 20; 6 prompts are read.
    assert PROMPT_TOKENS == 20
    text = 20 + response
    work = work_of(rl().settings, guess)
    assert (work.sampled, work.trained) == (24 * response, 24 * text)
    assert (work.prompts, work.scored, work.copies) == (120, {}, ())
    assert (work.sequences, work.longest, work.row) == (8, 120, 12 * text)
    assert (work.responses, work.calls, work.updates, work.text) == (24, 2, 2, text)
    with_reference = work_of(rl(loss={"kl_coefficient": 0.1}).settings, guess)
    assert with_reference.scored == {"from": 24 * text}
    assert with_reference.copies == ("from",)


def test_a_long_prompt_is_trained_on_once_for_those_that_share_it() -> None:
    guess = replace(AT_MOST, prompt_tokens=1000)
    settings = {"loss": {"kl_coefficient": 0.1}, "tokens_per_batch": 4096}
    work = work_of(rl(**settings).settings, guess)
    assert work.trained == work.scored["from"] == 6 * (1000 + 4 * 100)
    # Two updates have two of a group's four each; and a row of 1,200 holds no more than two.
    assert work_of(rl(**settings, updates_per_step=2).settings, guess).trained == 12 * (1000 + 2 * 100)
    assert work_of(rl(tokens_per_batch=1200).settings, guess).trained == 6 * (2 * 1000 + 4 * 100)
    assert work_of(rl().settings, replace(guess, prompt_tokens=SHARED_FROM - 1)).trained == 24 * (SHARED_FROM - 1 + 100)


@pytest.mark.parametrize(("guess", "text"), [(LIKELY, 45), (AT_MOST, 120)])
@pytest.mark.parametrize(
    ("changes", "in_fp32", "in_bf16"),
    [
        # of all texts before the first update; fp32 does without it
        ({}, 0, 1),
        ({"old_policy": "sampler"}, 0, 0),
        ({"old_policy": "learner"}, 1, 1),
        ({"loss": {"correction": {"level": "token", "rule": "mask"}}}, 1, 1),
    ],
)
def test_scoring_before_the_first_update_is_a_forward_pass(
    changes: dict[str, Any], in_fp32: int, in_bf16: int, guess: Guess, text: int
) -> None:
    work = work_of(rl(**changes).settings, guess)
    assert work.scored.get("from", 0) == in_fp32 * 24 * text
    assert work.rescored == (in_bf16 - in_fp32) * 24 * text


def test_a_refill_samples_more() -> None:
    """Of 7 problems a step at most, 3 are its own."""
    refilled = rl(flat_groups="refill", refill_limit=2.5).settings
    assert work_of(refilled, AT_MOST).sampled == pytest.approx(2 * 7 * 4 * 100)
    assert work_of(refilled, LIKELY).sampled == pytest.approx(2 * 4 * 4 * 25)


@pytest.mark.parametrize(("guess", "text"), [(LIKELY, 45), (AT_MOST, 120)])
def test_reward_models_score_general_prompts_in_the_last_steps(guess: Guess, text: int) -> None:
    judged = rl(
        tasks={"arithmetic": 3.0, "facts": 1.0},
        rewards={"accuracy": 1.0, "helpfulness": 1.0},
        reward_models={"helpfulness": "rm"},
        preference_share=0.5,
    )
    work = workloads([judged], {}, guess)["rl"]
    assert work is not None
    assert work.scored["reward_models.helpfulness"] == 24 * text / 8


@pytest.mark.parametrize(("guess", "text"), [(LIKELY, 45), (AT_MOST, 120)])
def test_data_flows_from_samples_through_curation_into_training(guess: Guess, text: int) -> None:
    samples = made_by(collected().settings, guess)
    assert samples.texts == 40
    # One of four samples for each of 10 problems at most, half of all samples expected: the bound holds for both.
    curated = node(
        "curate", data=["collect"], keep={"per_problem": 1}, general={"use": "world-talk", "conversations": 10}
    )
    data = made_by(curated.settings, guess, samples)
    assert data.texts == 20
    # 10 of 45 or 120 tokens, and 10 general ones of 30.
    assert data.tokens_each == (10 * text + 300) / 20
    given: dict[str, Any] = {"from": "billion", "data": ["curate"], "epochs": 3, "schedule": SCHEDULE}
    tuned = node("sft", **given)
    assert work_of(tuned.settings, guess, data).trained == 3 * (10 * text + 300)


@pytest.mark.parametrize(("guess", "each"), [(LIKELY, 30), (AT_MOST, 200)])
@pytest.mark.parametrize(("tokens_per_batch", "together"), [(4096, 8), (96, 8), (64, 3)])
def test_a_row_of_given_texts_has_no_more_than_those_of_a_step(
    guess: Guess, each: int, tokens_per_batch: int, together: int
) -> None:
    """A batch of 4,096 was planned for 8 texts of 30 tokens: three times the memory that was used."""
    given: dict[str, Any] = {"from": "billion", "data": ["curate"], "epochs": 1, "schedule": SCHEDULE}
    given |= {"tokens_per_batch": tokens_per_batch, "max_tokens": 200}
    tuned = node("sft", conversations_per_step=together, **given).settings
    # Of 20 texts, or of fewer than a step could have; one that is longer than a row has one of its own.
    whole = min(together, 20) * each
    assert work_of(tuned, guess, Data(20, 30.0)).row == max(min(tokens_per_batch, whole), each)
    assert work_of(tuned, guess, Data(2, 30.0)).row == max(min(tokens_per_batch, 2 * each), each)


@pytest.mark.parametrize(("guess", "kept"), [(LIKELY, 20), (AT_MOST, 40)])
def test_curation_keeps_a_share_of_the_samples_and_as_many_conversations_as_it_may(guess: Guess, kept: int) -> None:
    samples = made_by(collected().settings, guess)
    every = made_by(node("curate", data=["collect"]).settings, guess, samples)
    assert (every.texts, every.tokens_each) == (kept, samples.tokens_each)
    some = made_by(node("curate", data=["collect"], max_conversations=30).settings, guess, samples)
    assert (some.texts, some.tokens_each) == (min(kept, 30), samples.tokens_each)


def test_what_a_finished_stage_counted_is_no_longer_guessed() -> None:
    upstream = Upstream(LIKELY, {"data[0]": made_by(collected().settings, LIKELY)})
    curated = node("curate", data=["collect"]).settings
    made = Artifact("d", "dataset", "curate", (), "c", {"conversations": 7})
    data = workload(curated, upstream, made)
    assert data is not None
    assert data.makes is not None
    assert data.makes.texts == 7


def test_reward_models_train_on_pairs_or_on_responses() -> None:
    samples = made_by(collected(tasks={"facts": 10, "arithmetic": 5}).settings, AT_MOST)
    common: dict[str, Any] = {
        "from": "billion",
        "data": ["collect"],
        "label": "helpful",
        "tasks": ["facts"],
        "schedule": SCHEDULE,
    }
    pairs = node("reward-model", objective="pairwise", held_out=0.2, **common)
    work = work_of(pairs.settings, AT_MOST, samples)
    # Four samples make six pairs of two: 120 texts of 120 tokens, of which four fifths are trained on.
    assert work.trained == pytest.approx(0.8 * 120 * 120)
    assert work.scored["from"] == pytest.approx(0.2 * 120 * 120)
    single = node("reward-model", objective="pointwise", held_out=0.2, **common)
    assert work_of(single.settings, AT_MOST, samples).trained == pytest.approx(0.8 * 40 * 120)


def test_a_judge_reads_each_pair_twice() -> None:
    rollouts = collected(tasks={"facts": 10})
    asked = node(
        "reward-model",
        {"data[0]": StageSource("collect")},
        objective="pairwise",
        judge={"url": "http://127.0.0.1:1/v1", "model": "judge", "max_tokens": 40},
        data=["collect"],
        schedule=SCHEDULE,
        **{"from": "billion"},
    )
    work = work_of(asked.settings, AT_MOST, made_by(rollouts.settings, AT_MOST))
    # 60 pairs in two orders: two texts of 120 tokens and 40 of the judge's own.
    assert work.served == pytest.approx(120 * (240 + 40))


def test_what_a_server_does_is_no_work_of_this_machine() -> None:
    asked = node(
        "collect",
        teacher={"url": "http://127.0.0.1:1/v1", "model": "teacher"},
        tasks={"arithmetic": 10},
        samples=4,
        sampling={"max_tokens": 100},
    )
    for guess, text in ((LIKELY, 45), (AT_MOST, 120)):
        work = work_of(asked.settings, guess)
        assert (work.served, work.tokens) == (40 * text, 40 * text)


def test_a_stage_of_which_more_is_known_is_counted_by_that_and_so_is_what_reads_it() -> None:
    tuned = node(
        "sft",
        {"data[0]": StageSource("collect")},
        data=["collect"],
        epochs=1,
        schedule=SCHEDULE,
        **{"from": "billion"},
    )
    known = Guess(response_share=0.5, kept_share=1.0, refilled_share=1.0, longer_share=0.0, prompt_tokens=7)
    found = workloads((collected(), tuned), {}, LIKELY, {"collect": known})
    made, read = found["collect"], found["sft"]
    assert made is not None
    assert read is not None
    assert (made.prompts, made.sampled, made.longest) == (10 * 7, 40 * 50, 107)
    assert (read.trained, read.text, read.updates) == (40 * 57, 57, 1)


def test_an_evaluation_asks_its_tasks_one_after_the_other() -> None:
    asked = node("evaluate", tasks={"arithmetic": 300, "countdown-3": 10}, samples=1, **{"from": "billion"})
    work = work_of(asked.settings, AT_MOST)
    # In parts of 256 problems: two of the first task, and one of the other.
    assert (work.calls, work.sequences, work.responses) == (3, 256, 310)


def test_a_model_directory_whose_config_says_nothing_has_no_size(recipe_file: Path) -> None:
    assert sizes_by_stage(load_recipe(str(recipe_file)).nodes)["first"]["from"] is None


def test_a_users_own_kind_of_stage_has_no_workload_whatever_its_name_and_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from reasonmill.stage import StageSettings\n"
        "MAKES = 'model'\n"
        "class Settings(StageSettings):\n    tasks: dict[str, str]\n"
        "def run(settings, inputs, context): ...\n"
    )
    (tmp_path / "recipe.toml").write_text(
        'name = "own"\nstages.rl.use = "./mine.py"\n[[stage]]\nname = "a"\nkind = "rl"\ntasks = { sums = "many" }\n'
    )
    assert workloads(load_recipe(str(tmp_path / "recipe.toml")).nodes, {}, LIKELY) == {"a": None}
