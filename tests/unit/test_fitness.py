"""Whether a base is good enough: figures by hand, answers that a model is made to give, the rules, the command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import mean
from typing import Any

import pytest

from command_line import Call
from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.algo.intervals import Estimate
from reasonmill.algo.pass_at_k import pass_at_k
from reasonmill.fitness.command import Asking, fitness_of, print_fitness, rewards_of
from reasonmill.fitness.figures import Figures, figures_of
from reasonmill.fitness.probing import CONTINUED, Probed, probe, said_before
from reasonmill.fitness.verdict import Verdict, judge
from reasonmill.plugins.catalogue import installed
from reasonmill.protocols import Domain
from reasonmill.recipe.reference import shipped_bases
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.stages.sampling import SamplingSettings
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import final_answer
from reasonmill.types import Completion, Finish, Grade, Group, Message, Problem, Request, Rollout, SamplingParams

THOUGHT = "<think>7 and 9</think><answer>16</answer>"
WRONG_THOUGHT = "<think>7 and 9</think><answer>17</answer>"
GUESSED = "<think></think><answer>16</answer>"
WRONG_GUESS = "<think></think><answer>12</answer>"
PROSE = "7 and 9 make\n16 or so"


class Sums:
    """A task in which 16 is always right, and of "?" nobody can tell."""

    domain: Domain = "reasoning"

    def language_share(self, text: str, language: str) -> float | None:
        return None

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem("sums", (Message("user", f"sum {index}"),), "16", {"language": "en"})

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return (self.problem(split, seed, index) for index in range(99))

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        answers = [final_answer(completion.text) for completion in completions]
        return [
            Grade(None, error="no idea: ?")
            if answer == "?"
            else Grade(right := float(answer == "16"), {"accuracy": right})
            for answer in answers
        ]


TASK = NamedTask("sums", Sums())


class Letters:
    """A token is a character, and 0 ends a turn."""

    stop_tokens = frozenset({0})
    stop_strings: tuple[str, ...] = ()

    def __init__(self, opening: str = "") -> None:
        self.opening = opening

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(map(ord, f"{messages[-1].content}{self.opening}"))

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        return [self.render(messages) for messages in conversations]

    def reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        raise NotImplementedError

    def text(self, tokens: Sequence[int]) -> str:
        return self.opening + "".join(chr(token) for token in tokens if token)

    def response(self, text: str) -> tuple[int, ...]:
        return (*map(ord, text.removeprefix(self.opening)), 0)

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


class Answering:
    """A sampler that says 16 to whoever has thought, and 12 at once."""

    version, repeatable, in_fp32 = 0, True, True

    def __init__(self, renderer: Letters) -> None:
        self.asked: list[tuple[str, SamplingParams]] = []
        self._renderer = renderer

    def generate(self, requests: Sequence[Request], follow_up: Any = None) -> Iterator[tuple[int, Completion]]:
        for index, request in reversed(list(enumerate(requests))):
            prompt = "".join(map(chr, request.prompt_tokens))
            self.asked.append((prompt, request.params))
            said = "12" if "<think></think>" in prompt else "16"
            tokens = tuple(map(ord, said))
            text = self._renderer.text(tokens)
            yield index, Completion(tokens, (-0.5,) * len(tokens), (True,) * len(tokens), text, "stop", 0)

    def stream(self, request: Request) -> Iterator[int]:
        raise NotImplementedError

    def take(self, weights: Any, version: int) -> None:
        raise NotImplementedError


def attempts(number: int, *texts: str, finish: Finish = "stop", opening: str = "") -> Group:
    problem = TASK.problem("train", 0, number)
    said = [
        Completion((1,) * (n + 1), (-0.25,) * (n + 1), (True,) * (n + 1), text, finish, 0)
        for n, text in enumerate(texts)
    ]
    grades = ACCURACY_ALONE.grade(TASK, problem, said, noise=())
    prompt = Letters(opening).render(problem.messages)
    return Group(problem, tuple(Rollout(prompt, each, grade) for each, grade in zip(said, grades, strict=True)))


def grades(*right: float) -> tuple[Grade, ...]:
    return tuple(Grade(value, {"accuracy": value}) for value in right)


# Figures


def test_pass_at_k_is_the_mean_over_all_choices_of_k() -> None:
    samples = [1, 0, 0, 1, 0]
    for k in range(1, 6):
        assert pass_at_k(2, 5, k) == pytest.approx(mean(float(any(chosen)) for chosen in combinations(samples, k)))
    for impossible in ((3, 2, 1), (0, 2, 3), (0, 2, 0), (-1, 2, 1)):
        with pytest.raises(ValueError, match="no pass@"):
            pass_at_k(*impossible)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (THOUGHT, "7 and 9"),
        (GUESSED, ""),
        ("<answer>16</answer>", ""),
        ("well <answer>16</answer> then", "well"),
        ("7 and 9</think><answer>16", "7 and 9"),
        ("16", ""),
        ("The sum is 16.\n", ""),
        (PROSE, "7 and 9 make"),
    ],
)
def test_what_is_said_before_an_answer_is_thinking(text: str, said: str) -> None:
    assert said_before(text) == said


def test_figures_by_hand() -> None:
    mixed = Probed(attempts(0, THOUGHT, WRONG_THOUGHT, WRONG_GUESS, GUESSED), grades(0, 0, 1, 0), {})
    wrong = Probed(
        attempts(1, PROSE, WRONG_GUESS, "<answer>?</answer>", WRONG_GUESS), grades(0, 0, 0, 0), {0: grades(1)[0]}
    )
    found = figures_of([mixed, wrong], Letters())
    assert (found.problems, found.samples) == (2, 4)
    # Two of four right; none of the three that were graded.
    assert {k: share.value for k, share in found.pass_at.items()} == pytest.approx({1: 0.25, 2: 5 / 12, 4: 1.0})
    assert found.signal.value == found.reward_signal.value == 0.5
    assert found.reach.value == 1.0
    assert found.format.value == 6 / 8
    assert found.answered.value == 7 / 8
    assert found.thinks.value == 3 / 8
    assert (found.could_not_tell.value, found.reasons) == (1 / 8, {"no idea": 1})
    assert found.truncated.value == 0
    assert found.tokens.value == 2.5
    assert found.thinking_tokens.value == 6 / 8
    assert found.entropy is not None
    assert found.entropy.value == pytest.approx(0.25)
    assert found.with_thinking is not None
    assert found.with_thinking.value == pytest.approx(2 / 3)
    assert found.at_once is not None
    assert found.at_once.value == 1 / 8
    assert found.gain is not None
    assert found.gain.value == pytest.approx(((1 / 2 - 1 / 4) + 1) / 2)
    assert found.gain.low < found.gain.value < found.gain.high
    assert json.loads(json.dumps(found.as_metrics()))["pass_at"]["2"]["value"] == pytest.approx(5 / 12)


def test_where_nothing_could_be_graded_or_thought_there_is_no_figure_of_it() -> None:
    unknown = Probed(attempts(0, "<answer>?</answer>", "<answer>?</answer>"), (), {})
    found = figures_of([unknown], Letters())
    assert (found.pass_at, found.with_thinking, found.at_once, found.gain) == ({}, None, None, None)
    assert judge(found).outcome == "grader"


# Answers that a model is made to give


@pytest.mark.parametrize("opening", ["", "<think>"])
def test_a_model_is_asked_at_once_and_after_what_it_said_without_an_answer(opening: str) -> None:
    renderer = Letters(opening)
    sampler = Answering(renderer)
    group = attempts(0, THOUGHT, PROSE, *["no"] * CONTINUED, opening=opening)
    cut = attempts(1, PROSE, PROSE, finish="length", opening=opening)
    params = SamplingParams(max_tokens=200, stop=("END",))
    first, second = probe(sampler, renderer, TASK, [group, cut], params=params, noise=(0,), progress=KeptProgress())
    assert [grade.reward for grade in first.at_once] == [0.0] * (2 + CONTINUED)
    assert {number: grade.reward for number, grade in first.continued.items()} == dict.fromkeys(
        range(1, 1 + CONTINUED), 1.0
    )
    assert (len(second.at_once), second.continued) == (2, {})
    assert "sum 0<think>7 and 9 make\n16 or so</think><answer>" in [prompt for prompt, _ in sampler.asked]
    assert {params.stop for _, params in sampler.asked} == {("END", "</answer>")}
    assert max(params.max_tokens for _, params in sampler.asked) == 32


def test_where_the_grader_looks_for_answers_elsewhere_none_is_asked_for() -> None:
    class Elsewhere(Sums):
        def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
            return [Grade(float("boxed{16}" in completion.text)) for completion in completions]

    sampler, group = Answering(Letters()), attempts(0, PROSE)
    task = NamedTask("sums", Elsewhere())
    (found,) = probe(sampler, Letters(), task, [group], params=SamplingParams(), noise=(0,), progress=KeptProgress())
    assert (found.at_once, found.continued, sampler.asked) == ((), {}, [])


def test_an_answer_has_no_more_room_than_the_attempt_had() -> None:
    sampler, group = Answering(Letters()), attempts(0, PROSE)
    (found,) = probe(
        sampler, Letters(), TASK, [group], params=SamplingParams(max_tokens=9), noise=(0,), progress=KeptProgress()
    )
    assert (len(found.at_once), found.continued) == (1, {})
    assert [params.max_tokens for _, params in sampler.asked] == [9]


# The rules


def about(value: float, margin: float = 0.05) -> Estimate:
    return Estimate(value, value - margin, value + margin)


GOOD = Figures(
    problems=128,
    samples=16,
    pass_at={1: about(0.2), 16: about(0.8)},
    signal=about(0.8),
    reward_signal=about(0.9),
    reach=about(0.9),
    format=about(0.7),
    answered=about(0.9),
    thinks=about(0.5),
    truncated=about(0.0),
    could_not_tell=about(0.0),
    reasons={},
    tokens=about(20),
    thinking_tokens=about(10),
    entropy=about(0.4),
    with_thinking=about(0.25),
    at_once=about(0.15),
    gain=about(0.1),
)
HARD: dict[str, Any] = {"signal": about(0.05), "pass_at": {1: about(0.01), 16: about(0.1)}}


@pytest.mark.parametrize(
    ("changed", "outcome", "needs"),
    [
        ({}, "signal", ()),
        ({"signal": about(0.26)}, "signal", ()),
        ({"signal": about(0.22)}, "unclear", ()),
        ({"gain": about(0.02)}, "unclear", ()),
        ({"gain": about(-0.01)}, "guesses", ("thinking",)),
        ({"gain": None, "with_thinking": None}, "guesses", ("thinking",)),
        ({"gain": None, "with_thinking": None, "at_once": None}, "signal", ()),
        ({"truncated": about(0.6)}, "limit", ()),
        ({"could_not_tell": about(0.06), "reasons": {"no idea": 3}}, "grader", ()),
        ({"pass_at": {1: about(0.96)}}, "saturated", ()),
        ({"pass_at": {1: about(0.96)}, "truncated": about(0.6)}, "saturated", ()),
        ({"pass_at": {1: about(0.85)}, "signal": about(0.1)}, "saturated", ()),
        (HARD, "cold-start", ("knowledge",)),
        (HARD | {"gain": None, "at_once": None}, "cold-start", ("knowledge",)),
        (HARD | {"reach": about(0.2)}, "cold-start", ("knowledge",)),
        (HARD | {"format": about(0.02)}, "cold-start", ("format",)),
        (HARD | {"gain": about(0.0)}, "cold-start", ("thinking",)),
        (
            HARD | {"format": about(0.02), "reach": about(0.2), "gain": None},
            "cold-start",
            ("format", "knowledge", "thinking"),
        ),
    ],
)
def test_the_first_rule_that_holds_decides(changed: dict[str, Any], outcome: str, needs: tuple[str, ...]) -> None:
    verdict = judge(replace(GOOD, **changed))
    assert (verdict.outcome, verdict.needs) == (outcome, needs)
    assert all(sentence.endswith(".") for sentence in verdict.says)


def test_a_verdict_names_the_figures_that_it_is_from() -> None:
    said = " ".join(judge(replace(GOOD, gain=about(-0.01))).says)
    assert "80% (75% to 85%) of the groups of 16" in said
    assert "25% right with it, 15% at once (-1.0 points, -6.0 to +4.0)" in said
    rewarded = judge(replace(GOOD, **HARD)).says
    assert "rewards differ in 90% (85% to 95%)" in rewarded[1]
    assert not any("rewards differ" in said for said in judge(replace(GOOD, **HARD, reward_signal=about(0.1))).says)


# The command


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--task", "no-such-task"], "unknown task 'no-such-task'"),
        (["--task", "arithmetic", "--reward", "accuracy=much"], "'much' is no weight"),
        (["--task", "arithmetic", "--reward", "formt"], "did you mean 'format'"),
        (["--task", "arithmetic", "--reward", "helpfulness"], "needs a reward model"),
        (["--task", "facts", "--reward", "accuracy"], "task 'facts' has no reward"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_looked_for(call: Call, options: list[str], shown: str) -> None:
    code, out, err = call("fitness", "no-such-model", *options)
    assert (code, out) == (2, "")
    assert shown in err


def test_the_command_measures_a_base_and_says_what_it_is_fit_for(call: Call) -> None:
    asked = ("--task", "arithmetic", "--problems", 6, "--samples", 4, "--max-tokens", 48, "--device", "cpu", "--json")
    code, out, _ = call("fitness", "tiny-base", *asked, "--reward", "accuracy", "--reward", "format=0.5")
    told = json.loads(out)
    found = told["tasks"]["arithmetic"]
    assert (code, told["model"]) == (0, "tiny-base")
    assert (found["problems"], found["samples"], list(found["pass_at"])) == (6, 4, ["1", "2", "4"])
    assert found["verdict"] in ("signal", "unclear", "guesses", "saturated")
    assert found["reward_signal"]["value"] >= found["signal"]["value"] > 0
    assert 0 < found["entropy"]["value"] < 1
    assert 0 < found["thinking_tokens"]["value"] < found["tokens"]["value"] < 48


def test_the_table_shows_what_was_measured_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    print_fitness("base", {"sums": (replace(GOOD, entropy=None), judge(GOOD))}, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["pass@16", "80.0%", "75.0", "to", "85.0"] in lines
    assert ["tokens", "20.0", "19.9", "to", "20.1"] in lines
    assert ["sums:", "reinforcement", "learning", "finds", "a", "signal"] in lines
    assert lines[-1] == ["Zero", "would", "work."]
    assert not any("entropy" in line for line in lines)


def shipped(base: str, task: str) -> Verdict:
    catalogue = installed()
    asked = [catalogue.task(task)]
    rewards = rewards_of(["accuracy", "format"], asked, catalogue)
    asking = Asking(128, 16, SamplingSettings(), "train", 0)
    return fitness_of(shipped_bases()[base], asked, rewards, asking, BACKEND, KeptProgress())[task][1]


@pytest.mark.check
@pytest.mark.parametrize(
    ("base", "task", "outcome", "needs"),
    [
        ("tiny-base", "countdown-3", "signal", ()),
        ("tiny-base", "arithmetic", "signal", ()),
        ("tiny-base-weak", "countdown-3", "guesses", ("thinking",)),
        ("tiny-base-weak", "countdown-4", "cold-start", ("knowledge", "thinking")),
        ("tiny-base-weak", "arithmetic", "signal", ()),
    ],
)
def test_the_shipped_bases_are_fit_for_what_rl_made_of_them(
    base: str, task: str, outcome: str, needs: tuple[str, ...]
) -> None:
    """What it made of them stands in docs/fitness.md."""
    found = shipped(base, task)
    assert (found.outcome, found.needs) == (outcome, needs), found.says
