"""On-policy distillation: the divergence against a plain softmax, what a step does, and exact resume."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contexts import a_context
from kept_progress import KeptProgress, Killed
from reasonmill.algo import logprobs
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.algo.reverse_kl import Head, reverse_kl
from reasonmill.errors import Interrupted, RecipeError, UnsupportedModel
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.recipe.reference import shipped_bases
from reasonmill.stage import Input
from reasonmill.stages.distill import Settings, kl_examples, kl_update, require_same_tokenizer, run
from reasonmill.store.commit import MANIFEST
from reasonmill.store.home import Home
from reasonmill.types import Completion, Example, Grade, Group, Message, Problem, Reply, Rollout
from tiny_models import tiny_decoder

POSITIONS, WIDTH, TEACHER_WIDTH, VOCABULARY = 7, 5, 4, 11


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and head of policy and teacher, and the gradient that comes from above."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((POSITIONS, WIDTH), (VOCABULARY, WIDTH), (POSITIONS, TEACHER_WIDTH), (VOCABULARY, TEACHER_WIDTH))
    hidden, weight, teacher_hidden, teacher_weight = (torch.randn(shape, generator=generator) for shape in shapes)
    return hidden, weight, teacher_hidden, teacher_weight, torch.randn(POSITIONS, generator=generator)


def plain_logprobs(hidden: Tensor, weight: Tensor, temperature: float, softcap: float | None) -> Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits / temperature, -1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("softcap", "teacher_softcap"), [(None, None), (2.5, None), (None, 1.5)])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_divergence_is_that_of_plain_softmaxes(
    case: tuple[Tensor, ...],
    temperature: float,
    softcap: float | None,
    teacher_softcap: float | None,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "_CPU_LOGITS", chunk * VOCABULARY)
    monkeypatch.setattr(logprobs, "_CPU_POSITIONS", 1)
    hidden, weight, teacher_hidden, teacher_weight, above = case
    doubles = hidden.double().requires_grad_(), weight.double().requires_grad_()
    policy = plain_logprobs(*doubles, temperature, softcap)
    teacher = plain_logprobs(teacher_hidden.double(), teacher_weight.double(), temperature, teacher_softcap)
    expected = (policy.exp() * (policy - teacher)).sum(-1)
    expected_grads = torch.autograd.grad(expected, doubles, above.double())
    hidden.requires_grad_()
    weight.requires_grad_()
    found = reverse_kl(
        hidden,
        Head(weight, softcap),
        teacher_hidden,
        Head(teacher_weight, teacher_softcap),
        temperature=temperature,
    )
    grads = torch.autograd.grad(found, (hidden, weight), above)
    for got, wanted in zip((found, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=3e-6)


def test_its_gradient_is_the_mean_of_the_per_token_reward_over_all_draws(case: tuple[Tensor, ...]) -> None:
    hidden, weight, teacher_hidden, teacher_weight, _ = case
    hidden.requires_grad_()
    policy = plain_logprobs(hidden, weight, 1.0, None)
    reward = (plain_logprobs(teacher_hidden, teacher_weight, 1.0, None) - policy).detach()
    # Each token is drawn as often as the policy says, and its log-prob is pushed by its reward.
    (wanted,) = torch.autograd.grad(-(policy.exp().detach() * reward * policy).sum(), hidden)
    divergence = reverse_kl(hidden, Head(weight), teacher_hidden, Head(teacher_weight)).sum()
    torch.testing.assert_close(torch.autograd.grad(divergence, hidden)[0], wanted, rtol=1e-4, atol=1e-5)


def test_rows_that_pad_one_of_the_heads_do_not_count(case: tuple[Tensor, ...]) -> None:
    hidden, weight, teacher_hidden, teacher_weight, _ = case
    expected = reverse_kl(hidden, Head(weight), teacher_hidden, Head(teacher_weight))
    padded = torch.cat([teacher_weight, torch.full((3, TEACHER_WIDTH), 9.0)])
    assert torch.equal(reverse_kl(hidden, Head(weight), teacher_hidden, Head(padded)), expected)
    padded = torch.cat([weight, torch.full((3, WIDTH), 9.0)]).requires_grad_()
    found = reverse_kl(hidden, Head(padded), teacher_hidden, Head(teacher_weight))
    assert torch.equal(found, expected)
    found.sum().backward()
    assert padded.grad is not None
    assert padded.grad.shape == padded.shape
    assert not padded.grad[VOCABULARY:].any()


# The learner


def an_example(tokens: tuple[int, ...], context: int) -> Example:
    return Example(tokens, [0.0] * context + [1.0] * (len(tokens) - context), "kl")


EXAMPLES = [an_example((3, 14, 15, 9, 26, 5), 2), an_example((35, 8, 9), 1), an_example((7, 9, 3, 2, 38), 3)]


def update(learner: LocalLearner, learning_rate: float) -> dict[str, float]:
    """One step on the examples; its metrics."""
    taken = kl_update(EXAMPLES, 64, learning_rate)
    sums = [learner.forward_backward(batch, taken.loss, taken.divisor)["loss/kl"] for batch in taken.batches]
    return {"loss/kl": sum(sums) / taken.divisor, **learner.optim_step(taken.learning_rate)}


def test_a_policy_does_not_diverge_from_itself() -> None:
    learner = LocalLearner(tiny_decoder(), OptimizerSettings(), teacher=tiny_decoder())
    updated = update(learner, 1e-3)
    assert updated["loss/kl"] == pytest.approx(0, abs=1e-6)
    assert updated["optim/grad_norm"] == pytest.approx(0, abs=1e-5)


def test_updates_bring_the_student_to_a_teacher_of_another_architecture() -> None:
    teacher = tiny_decoder("gemma2", seed=5)
    before = {name: weight.clone() for name, weight in teacher.network.named_parameters()}
    learner = LocalLearner(tiny_decoder(seed=1), OptimizerSettings(), teacher=teacher)
    course = [update(learner, 3e-3)["loss/kl"] for _ in range(40)]
    assert course[-1] < 0.2 * course[0]
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.network.named_parameters())
    assert all(weight.grad is None for weight in teacher.network.parameters())


def test_only_what_the_student_sampled_counts() -> None:
    learner = LocalLearner(tiny_decoder(seed=1), OptimizerSettings(), teacher=tiny_decoder(seed=5))
    (batch,) = pack([an_example((3, 14, 15, 9), 2)], 64)
    whole = learner.forward_backward(batch, LossSettings(), 1.0)["loss/kl"]
    parts = []
    for place in (2, 3):
        weights = [float(place == token) for token in range(4)]
        (batch,) = pack([Example((3, 14, 15, 9), weights, "kl")], 64)
        parts.append(learner.forward_backward(batch, LossSettings(), 1.0)["loss/kl"])
    assert whole == pytest.approx(sum(parts), rel=1e-5)
    assert min(parts) > 0.01


def test_tokens_that_an_environment_wrote_are_context() -> None:
    def rollout(sampled: tuple[bool, ...], *replies: Reply) -> Rollout:
        tokens = (4, 5, 6)[: len(sampled)]
        completion = Completion(tokens, None, sampled, "", "stop", 0)
        return Rollout((1, 2), completion, Grade(None, error="not graded"), replies)

    problem = Problem("countdown-3", (Message("user", "1 2"),), "")
    reply = Reply(1, 2, "4", (Message("tool", "5"),))
    group = Group(problem, (rollout((True, False, True), reply), rollout(())))
    (example,) = kl_examples([group])
    assert example.tokens == (1, 2, 4, 5, 6)
    assert example.weights == [0, 0, 1, 0, 1]


# The stage


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as opened:
        yield opened


def settings(**changes: Any) -> Settings:
    content = {
        "name": "distilled",
        "kind": "distill",
        "from": "tiny-base-weak",
        "teacher": "tiny-base",
        "tasks": {"countdown-3": 1.0},
        "steps": 3,
        "problems_per_step": 4,
        "group_size": 2,
        "updates_per_step": 2,
        "sampling": {"max_tokens": 32},
        "schedule": {"peak": 1e-3},
        "tokens_per_batch": 512,
    }
    return Settings.model_validate({**content, **changes})


def distilled(home: Home, key: str, recorder: KeptProgress, looks: int = 99, **changes: Any) -> str:
    """Runs the stage, which is asked to stop after so many looks; the digest of the model."""
    answers = iter([False] * looks)
    context = a_context(home, recorder, lambda: next(answers, True), key=key)
    bases = shipped_bases()
    inputs = {"from": Input(bases["tiny-base-weak"], "s"), "teacher": Input(bases["tiny-base"], "t")}
    return home.objects.put(run(settings(**changes), inputs, context).write)


def test_a_run_reports_its_divergence_and_leaves_a_model(home: Home) -> None:
    recorder = KeptProgress()
    digest = distilled(home, "whole", recorder)
    assert [set(metrics) >= {"loss/kl", "reward/accuracy", "length/response"} for metrics in recorder.metrics] == [
        True
    ] * 3
    assert all(metrics["loss/kl"] > 0.01 for metrics in recorder.metrics)
    saved = {path.name for path in home.objects.path(digest).iterdir()} - {MANIFEST}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= saved


def test_an_interrupted_run_ends_in_the_same_weights(home: Home) -> None:
    whole = distilled(home, "whole", KeptProgress())
    # Once asked to stop, which saves a state, then broken off in the middle, which replays committed groups.
    with pytest.raises(Interrupted):
        distilled(home, "stopped", KeptProgress(), looks=1)
    with pytest.raises(Killed):
        distilled(home, "stopped", KeptProgress(kill_at=3))
    committed = [home.ledger.step_groups("stopped", step) for step in range(3)]
    resumed = KeptProgress()
    assert distilled(home, "stopped", resumed) == whole
    assert [home.ledger.step_groups("stopped", step) for step in range(3)] == committed
    assert None not in committed
    assert home.ledger.latest_state("stopped")[0] == 1  # type: ignore[index]


def test_committed_groups_are_what_is_trained_on(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distilled(home, "key", KeptProgress())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to sample")

    monkeypatch.setattr("reasonmill.stages.on_policy.collect", refuse)
    assert distilled(home, "key", KeptProgress()) == whole


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    base, other = shipped_bases()["tiny-base"], tmp_path / "other"
    shutil.copytree(base, other)
    content = json.loads((other / "tokenizer.json").read_text())
    # How it is written down, and how it pads, is no difference.
    (other / "tokenizer.json").write_text(json.dumps({**content, "padding": None}, indent=4))
    require_same_tokenizer(base, other, "here")
    content["model"]["vocab"]["made up"] = len(content["model"]["vocab"])
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match="different tokenizers") as caught:
        require_same_tokenizer(base, other, "here")
    assert caught.value.where == "here"
    (other / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match="has no tokenizer"):
        require_same_tokenizer(base, other, "here")
