"""What must hold over turns: the learner scores what the sampler drew, no noise is used twice, and what an environment
wrote teaches nothing."""

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from reasonmill.algo.examples import denominator, pg_examples
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack, unpack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder
from reasonmill.protocols import Domain
from reasonmill.randomness import generator
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.rollouts import collect
from reasonmill.sample import engine
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Episode, Example, Grade, Group, Message, Problem, SamplingParams
from tiny_models import VOCABULARY, NumberRenderer, native_sampler, tiny_decoder

TURNS = 3
TEMPERATURE = 1.3


class Numbers:
    """Endless ragged prompts; what is right is a coin's matter."""

    domain: Domain = "reasoning"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        numbers = generator("prompt", seed, index)
        return Problem("numbers", (Message("user", words(numbers, numbers.randint(1, 9))),), "")

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return iter(())

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [Grade(float(sum(c.tokens) % 2), {"accuracy": float(sum(c.tokens) % 2)}) for c in completions]


class Chatter:
    """Always answers, with some numbers."""

    max_turns = TURNS

    def start(self, problem: Problem) -> Episode:
        return Episode(problem)

    async def reply(self, episode: Episode, completion: Completion) -> Sequence[Message] | None:
        numbers = generator("reply", *completion.tokens)
        return [Message("user", words(numbers, numbers.randint(1, 6)))]


def words(numbers: object, count: int) -> str:
    return " ".join(str(numbers.randrange(4, VOCABULARY)) for _ in range(count))  # type: ignore[attr-defined]


def played(decoder: Decoder, *, slots: int = 5, problems: int = 6) -> list[Group]:
    """Rollouts of up to three turns, some of which end early at the limit; slots are used again."""
    task = NamedTask("numbers", Numbers(), Chatter())
    return collect(
        native_sampler(decoder, NumberRenderer(), num_slots=slots, prefill_tokens=40),
        NumberRenderer(),
        {task.name: task},
        [task.problem("train", 0, index) for index in range(problems)],
        rewards=ACCURACY_ALONE,
        num_samples=4,
        params=SamplingParams(max_tokens=60, temperature=TEMPERATURE),
        noise=(0, "played"),
    )


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return played(tiny_decoder())


def examples_of(groups: Sequence[Group]) -> list[Example]:
    return [e for group in groups for e in pg_examples(group, [1.0, -1.0, 0.5, -0.5], "token", 60)]


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "deepseek_v3"])
def test_the_learner_scores_every_sampled_token_as_the_sampler_drew_it(architecture: str) -> None:
    decoder = tiny_decoder(architecture)
    groups = played(decoder)
    assert {2, 3} <= {len(rollout.texts) for group in groups for rollout in group.rollouts}
    examples = examples_of(groups)
    learner = LocalLearner(decoder, OptimizerSettings(), temperature=TEMPERATURE)
    batches = pack(examples, 256)
    scored = unpack(torch.cat([learner.logprobs(batch) for batch in batches]), batches, examples)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    for rollout, row in zip(rollouts, scored, strict=True):
        assert rollout.completion.logprobs is not None
        drawn = rollout.completion.sampled
        policy = row[len(rollout.prompt_tokens) :]
        assert [p for p, own in zip(policy, drawn, strict=True) if own] == pytest.approx(
            [p for p, own in zip(rollout.completion.logprobs, drawn, strict=True) if own], abs=1e-4
        )
        assert all(p == 0.0 for p, own in zip(rollout.completion.logprobs, drawn, strict=True) if not own)


def test_tokens_stand_where_the_replies_say(groups: list[Group]) -> None:
    renderer = NumberRenderer()
    for group in groups:
        for rollout in group.rollouts:
            tokens, start = rollout.completion.tokens, 0
            for reply in rollout.replies:
                assert renderer.text(tokens[start : reply.start]) == reply.said
                assert tokens[reply.start : reply.stop] == renderer.reply(reply.messages)
                start = reply.stop
            assert renderer.text(tokens[start:]) == rollout.completion.text
            assert len(tokens) <= 60


def test_neither_slots_nor_companions_matter_to_an_episode() -> None:
    decoder = tiny_decoder()
    for one, other in zip(played(decoder, slots=1, problems=2), played(decoder, slots=99, problems=2), strict=True):
        assert [rollout.completion.tokens for rollout in one.rollouts] == [r.completion.tokens for r in other.rollouts]


def test_no_number_of_an_episodes_noise_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int, int]] = []
    uniform = engine.uniform

    def noting(keys: Tensor, positions: Tensor) -> Tensor:
        used.extend(zip(keys.tolist(), positions.tolist(), strict=True))
        return uniform(keys, positions)

    monkeypatch.setattr(engine, "uniform", noting)
    groups = played(tiny_decoder())
    assert sum(rollout.completion.num_sampled for group in groups for rollout in group.rollouts) == len(used)
    assert len(set(used)) == len(used)
    # Each position is the token's own, counted from the beginning of the conversation.
    places = sorted(
        len(rollout.prompt_tokens) + place
        for group in groups
        for rollout in group.rollouts
        for place, own in enumerate(rollout.completion.sampled)
        if own
    )
    assert sorted(position for _, position in used) == places


def gradient(examples: Sequence[Example], loss: LossSettings, divisor: float) -> list[Tensor]:
    decoder = tiny_decoder()
    learner = LocalLearner(decoder, OptimizerSettings(), temperature=TEMPERATURE)
    for batch in pack(examples, 256):
        learner.forward_backward(batch, loss, divisor)
    return [parameter.grad.clone() for parameter in decoder.network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "cispo", "reinforce"])
def test_what_an_environment_wrote_has_no_gradient(groups: list[Group], algorithm: str) -> None:
    correction = {"level": "sequence", "rule": "truncate"}
    loss = LossSettings(algorithm=algorithm, correction=correction, kl_coefficient=0.1)  # type: ignore[arg-type]
    examples = [
        dataclasses.replace(e, ref_logprobs=[-1.0] * len(e.tokens), old_logprobs=[-1.5] * len(e.tokens))
        for e in examples_of(groups)
    ]
    divisor = denominator(examples, "token")

    def spoiled(example: Example) -> Example:
        """The same with figures of every context token that would ruin any sum they had a part in."""
        changed = {}
        figures = {"advantages": 1e30, "sampler_logprobs": -90.0, "old_logprobs": -95.0, "ref_logprobs": 80.0}
        for name, figure in figures.items():
            row = getattr(example, name)
            changed[name] = [v if w else figure for v, w in zip(row, example.weights, strict=True)]
        return dataclasses.replace(example, **changed)

    expected = gradient(examples, loss, divisor)
    found = gradient([spoiled(example) for example in examples], loss, divisor)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert any(bool(grad.abs().sum() > 0) for grad in expected)
    # The control: a reply that had weight would be seen.
    place, example = next((p, e) for p, e in enumerate(examples) if 0.0 in e.weights[list(e.weights).index(1.0) :])
    token = list(example.weights).index(0.0, list(example.weights).index(1.0))
    weighty = dataclasses.replace(example, weights=[1.0 if i == token else w for i, w in enumerate(example.weights)])
    changed = gradient([*examples[:place], weighty, *examples[place + 1 :]], loss, divisor)
    assert not all(torch.equal(one, other) for one, other in zip(changed, expected, strict=True))
