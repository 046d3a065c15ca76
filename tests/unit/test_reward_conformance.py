"""Reward functions as other projects have them, written for their trainers and run here unedited: each with a row in
that project's shape, responses, and what that project would have made of them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reasonmill.plugins.catalogue import Catalogue, Use
from reasonmill.protocols import Attempt
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Message, Problem

GOOD, BAD = "<think>2 and 2</think><answer>4</answer>", "<answer>5</answer>"
QUESTION = "What is 2 + 2 ?"
CHAT = [{"role": "user", "content": QUESTION}]


@dataclass(frozen=True)
class Case:
    """A function's source, a row's columns, and the rewards of GOOD and BAD."""

    source: str
    columns: dict[str, Any]
    good: float | None
    bad: float | None
    name: str = "reward"
    parts: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()


CASES = {
    "TRL, texts": Case(
        """
def reward(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, ground_truth, **kwargs):
    assert prompts == ["What is 2 + 2 ?"] * len(completions)
    assert completion_ids == [[7, 8]] * len(completions)
    log_extra("length", [len(c) for c in completions])
    log_metric("step", trainer_state.global_step)
    return [1.0 if truth in c.split("<answer>")[1] else 0.0 for c, truth in zip(completions, ground_truth)]
""",
        {"prompt": QUESTION, "ground_truth": "4"},
        1.0,
        0.0,
        parts=("length", "step"),
    ),
    "TRL, conversations, some not applicable": Case(
        """
import re

def reward(completions, answer, kind, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    found = [re.search(r"<answer>(.*?)</answer>", content) for content in contents]
    return [
        None if k != "sum" or "5" in content else float(match.group(1) == a)
        for match, a, k, content in zip(found, answer, kind, contents)
    ]
""",
        {"prompt": CHAT, "answer": "4", "kind": "sum"},
        1.0,
        None,
    ),
    "TRL, async": Case(
        """
import asyncio

async def reward(prompts, completions, answer, **kwargs):
    assert prompts[0][-1]["role"] == "user"

    async def one(completion, gold):
        await asyncio.sleep(0)
        return float(gold in completion[0]["content"])

    return await asyncio.gather(*(one(c, a) for c, a in zip(completions, answer)))
""",
        {"prompt": CHAT, "answer": "4"},
        1.0,
        0.0,
    ),
    "open-r1, format": Case(
        r'''
import re

def reward(completions, **kwargs):
    """Reward function that checks if the reasoning process is enclosed within <think> and </think> tags."""
    pattern = r"^<think>.*?</think>\s*<answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content, re.DOTALL | re.MULTILINE) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]
''',
        {"prompt": CHAT, "problem": QUESTION, "solution": "$4$"},
        1.0,
        0.0,
    ),
    "open-r1, made by a function with settings": Case(
        """
def get_cosine_scaled_reward(max_value_correct: float = 1.0, max_len: int = 1000):
    def cosine_scaled_reward(completions: list[list[dict[str, str]]], solution: list[str], **kwargs) -> list[float]:
        contents = [completion[0]["content"] for completion in completions]
        return [
            max_value_correct * (1 - len(content) / max_len) if sol.strip("$") in content else 0.0
            for content, sol in zip(contents, solution)
        ]

    return cosine_scaled_reward
""",
        {"prompt": CHAT, "solution": "$4$"},
        2.0 * (1 - len(GOOD) / 100),
        0.0,
        name="get_cosine_scaled_reward",
        settings=(("max_value_correct", 2.0), ("max_len", 100)),
    ),
    "verl": Case(
        """
import re

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    assert data_source == "openai/gsm8k"
    assert extra_info["index"] == 3 and extra_info["num_turns"] == 1
    answer = re.findall(r"<answer>(.*?)</answer>", solution_str)[-1]
    return {"score": kwargs["scale"] * (answer == ground_truth), "acc": answer == ground_truth, "pred": answer}
""",
        {
            "data_source": "openai/gsm8k",
            "prompt": CHAT,
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"split": "train", "index": 3},
        },
        2.0,
        0.0,
        name="compute_score",
        parts=("acc",),
        settings=(("scale", 2.0),),
    ),
    "verl, a table as ground truth": Case(
        """
import random

def compute_score(solution_str, ground_truth, method='strict', format_score=0.1, score=1.):
    target = ground_truth['target']
    if random.randint(1, 64) == 1:
        print("Target:", target)
    if "<answer>" not in solution_str:
        return 0
    return score if str(target) in solution_str.split("<answer>")[1] else format_score
""",
        {"reward_model": {"style": "rule", "ground_truth": {"target": 4, "numbers": [2, 2]}}, "score": "of the row"},
        1.0,
        0.1,
        name="compute_score",
    ),
    "verl, async": Case(
        """
async def compute_score(data_source, solution_str, ground_truth, extra_info):
    return float(ground_truth in solution_str)
""",
        {"data_source": "x", "reward_model": {"ground_truth": "4"}},
        1.0,
        0.0,
        name="compute_score",
    ),
    "verl, in batches": Case(
        """
def compute_score(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(truth in said) for said, truth in zip(solution_strs, ground_truths, strict=True)]
""",
        {"data_source": "x", "reward_model": {"ground_truth": "4"}},
        1.0,
        0.0,
        name="compute_score",
    ),
    "SkyRL's rows with verl's function": Case(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return float(ground_truth in solution_str)\n",
        {
            "data_source": "gsm8k",
            "prompt": CHAT,
            "env_class": "gsm8k",
            "reward_spec": {"method": "rule", "ground_truth": "4"},
            "extra_info": {},
        },
        1.0,
        0.0,
        name="compute_score",
    ),
    "OpenRLHF": Case(
        """
import torch

def reward_func(queries, prompts, labels):
    rewards = torch.tensor([float(label in q[len(p):]) for q, p, label in zip(queries, prompts, labels)])
    return {"rewards": rewards, "scores": rewards.clamp(0, 1), "extra_logs": {"dummy_scores": rewards}}
""",
        {"input": QUESTION, "label": "4"},
        1.0,
        0.0,
        name="reward_func",
        parts=("scores", "dummy_scores"),
    ),
    "slime": Case(
        """
async def custom_rm(args, sample, **kwargs):
    if sample.status == "truncated":
        return 0.0
    assert sample.metadata["rm_type"] == args.rm_type and sample.response_length == 2
    return {"mine": 1.0 if sample.label in sample.response else -1.0, "length": len(sample.response)}
""",
        {"prompt": QUESTION, "label": "4", "metadata": {"rm_type": "math"}},
        1.0,
        -1.0,
        name="custom_rm",
        parts=("length",),
        settings=(("rm_type", "math"), ("reward_key", "mine")),
    ),
    "slime, in batches": Case(
        "async def custom_rm(args, samples, **kwargs):\n"
        "    return [float(sample.label in sample.response) for sample in samples]\n",
        {"prompt": QUESTION, "label": "4"},
        1.0,
        0.0,
        name="custom_rm",
    ),
    "verifiers": Case(
        """
def correct_answer_reward_func(parser, completion, answer, state, info, task, **kwargs) -> float:
    response = parser.parse_answer(completion) or ""
    assert completion[0]["role"] == "assistant" and state["completion"] == completion
    assert info == {"level": 1} and task == "gsm8k" and kwargs["prompt"][0]["role"] == "user"
    return 1.0 if response == answer else 0.0
""",
        {"question": QUESTION, "answer": "4", "info": {"level": 1}, "task": "gsm8k"},
        1.0,
        0.0,
        name="correct_answer_reward_func",
    ),
    "AReno": Case(
        """
def reward_fn(record) -> float:
    assert record.messages[-1]["content"] == record.completion and record.tokens == [7, 8]
    return float(record.final_answer == record.answer)
""",
        {"question": QUESTION, "answer": "4"},
        1.0,
        0.0,
        name="reward_fn",
    ),
    "open-instruct": Case(
        """
from dataclasses import dataclass

@dataclass
class VerificationResult:
    score: float
    cost: float = 0.0

class Verifier:
    def __call__(self, tokenized_prediction, prediction, label, query=None) -> VerificationResult:
        return VerificationResult(score=float(prediction.split("<answer>")[-1].startswith(label)))
""",
        {"messages": CHAT, "ground_truth": "4", "dataset": "gsm8k"},
        1.0,
        0.0,
        name="Verifier",
    ),
    "rLLM": Case(
        """
from dataclasses import dataclass, field

@dataclass
class RewardOutput:
    reward: float
    metadata: dict = field(default_factory=dict)
    is_correct: bool | None = None

def math_reward_fn(task_info: dict, action: str) -> RewardOutput:
    correct = task_info["ground_truth"] in action
    return RewardOutput(reward=1.0 if correct else 0.0, is_correct=correct)
""",
        {"question": QUESTION, "ground_truth": "4"},
        1.0,
        0.0,
        name="math_reward_fn",
    ),
    "plain": Case(
        "def reward(problem, text):\n    return problem.answer in text\n",
        {},
        1.0,
        0.0,
    ),
    "plain, by columns": Case(
        "def reward(question, answer, response):\n    return float(answer in response and '2 + 2' in question)\n",
        {"question": QUESTION, "answer": "4"},
        1.0,
        0.0,
    ),
}


def the_problem(case: Case) -> Problem:
    return Problem("sums", (Message("user", QUESTION),), "4", {"columns": case.columns} if case.columns else {})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_runs_unedited(case: Case, tmp_path: Path) -> None:
    (tmp_path / "their.py").write_text(case.source)
    use = Use(use=f"./their.py:{case.name}", **dict(case.settings))
    rule = Catalogue({"rewards": {"mine": use}}, tmp_path).plugin("rewards", "mine").made
    problem = the_problem(case)
    task = NamedTask("sums", None)  # type: ignore[arg-type]  # nobody asks it
    attempts = [
        Attempt(problem, Completion((7, 8), (0.0, 0.0), (True, True), text, "stop", 0), task, (0, "zero", 5, 1, place))
        for place, text in enumerate((GOOD, BAD))
    ]
    good, bad = rule.measure_group(attempts)
    assert (good.why_not, bad.why_not) == ("", "")
    assert good.value == pytest.approx(case.good)
    assert bad.value == (None if case.bad is None else pytest.approx(case.bad))
    assert {name.removeprefix("mine/") for name in good.parts} == set(case.parts)


def test_at_least_eight_projects_are_there() -> None:
    assert len({re.split("[, ']", name)[0] for name in CASES} - {"plain"}) >= 8
