"""Reward models: the numbers of transformers' own forward pass, whatever a text is packed with."""

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reasonmill.algo.packing import pack_texts
from reasonmill.algo.preferences import pairwise_losses
from reasonmill.errors import UnsupportedModel
from reasonmill.learn import scalar
from reasonmill.learn.deterministic import deterministic
from reasonmill.learn.scalar import ScalarLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.learn.state_file import StateFile
from reasonmill.model.decoder import new_decoder
from reasonmill.model.reward import RewardModel, load_reward_model, new_reward_model
from reasonmill.model.saving import save_network
from reasonmill.randomness import generator
from reasonmill.recipe.reference import shipped_bases
from tiny_models import ARCHITECTURES, STOP_TOKEN, learner_state, tiny_config

PAD = 60
WHOLE = 10_000
TOKENIZER = shipped_bases()["tiny-base-weak"]


def a_policy(target: Path, architecture: str = "llama", **settings: Any) -> Path:
    model_type, own = ARCHITECTURES[architecture]
    config = tiny_config(model_type, **{**own, "pad_token_id": PAD, **settings})
    decoder = new_decoder(config, seed=3, device="cpu", dtype=torch.float32)
    target.mkdir()
    save_network(decoder.network, target, companions=TOKENIZER)
    return target


def a_reward_model(policy: Path, stop_token: int = STOP_TOKEN) -> RewardModel:
    """With a random head: the head of a new one is zero."""
    model = new_reward_model(policy, view="response", stop_tokens={stop_token}, device="cpu", dtype=torch.float32)
    head = model.network.score.weight
    assert not head.any()
    head.data.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(1)))
    return model


def a_learner(model: RewardModel) -> ScalarLearner:
    return ScalarLearner(model, OptimizerSettings(), companions=TOKENIZER)


def some_texts(count: int = 9) -> list[tuple[int, ...]]:
    """Texts of 2 to 20 tokens, longer than the tests' sliding windows, that hold no padding and end with a stop."""
    numbers = generator("texts")
    return [(*numbers.choices(range(2, PAD), k=numbers.randint(1, 19)), STOP_TOKEN) for _ in range(count)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_scores_the_same_in_transformers(architecture: str, tmp_path: Path) -> None:
    model = a_reward_model(a_policy(tmp_path / "policy", architecture))
    saved = tmp_path / "saved"
    saved.mkdir()
    save_network(model.network, saved, companions=tmp_path / "policy")
    texts = some_texts()
    ours = torch.tensor(load_reward_model(saved, device="cpu", dtype=torch.float32).score(texts, 50))
    plain = AutoModelForSequenceClassification.from_pretrained(saved, attn_implementation="eager").eval()
    assert type(plain).__module__.startswith("transformers.")
    longest = max(map(len, texts))
    padded = torch.tensor([[*text, *[PAD] * (longest - len(text))] for text in texts])
    with torch.no_grad():
        theirs = plain(padded, attention_mask=(padded != PAD).long()).logits.squeeze(1)
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(saved).vocab_size == AutoTokenizer.from_pretrained(TOKENIZER).vocab_size
    assert load_reward_model(saved, device="cpu", dtype=torch.float32).view == "response"


def test_a_policy_that_pads_with_its_stop_token_scores_one_text_at_a_time_outside(tmp_path: Path) -> None:
    model = a_reward_model(a_policy(tmp_path / "policy", pad_token_id=STOP_TOKEN))
    assert model.network.config.pad_token_id is None
    saved = tmp_path / "saved"
    saved.mkdir()
    save_network(model.network, saved, companions=tmp_path / "policy")
    plain = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    texts = some_texts(3)
    with torch.no_grad():
        theirs = [float(plain(torch.tensor([text])).logits) for text in texts]
    assert model.score(texts, WHOLE) == pytest.approx(theirs, abs=1e-5)
    with pytest.raises(ValueError, match="padding token"):
        plain(torch.zeros(2, 3, dtype=torch.long))


def test_a_policy_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no reward model"):
        load_reward_model(a_policy(tmp_path / "policy"), device="cpu", dtype=torch.float32)
    (tmp_path / "empty").mkdir()
    os.truncate(tmp_path / "policy" / "model.safetensors", 1000)
    for name in ("empty", "policy"):
        with pytest.raises(UnsupportedModel, match="no reward model can be loaded"):
            load_reward_model(tmp_path / name, device="cpu", dtype=torch.float32)


def test_a_classifier_of_several_labels_is_no_reward_model() -> None:
    config = tiny_config("llama", num_labels=2)
    network = AutoModelForSequenceClassification.from_config(config, attn_implementation="reasonmill")
    with pytest.raises(UnsupportedModel, match="scalar head"):
        RewardModel(network)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return a_reward_model(a_policy(tmp_path_factory.mktemp("invariants") / "policy", "mistral"))


def test_what_a_text_is_packed_with_does_not_matter(model: RewardModel) -> None:
    texts = some_texts()
    alone = [model.score([text], WHOLE)[0] for text in texts]
    for tokens_per_batch in (WHOLE, 40, 1):
        assert model.score(texts, tokens_per_batch) == pytest.approx(alone, abs=1e-5)
    assert model.score(texts[::-1], 40) == pytest.approx(alone[::-1], abs=1e-5)
    assert model.score([], 40) == []


def pair_step(model: RewardModel, pairs: list[list[tuple[int, ...]]], tokens_per_batch: int) -> tuple[float, Any]:
    learner = a_learner(model)
    losses = [
        learner.forward_backward(row, lambda rewards: pairwise_losses(rewards[0::2], rewards[1::2]), len(pairs))[0]
        for row in pack_texts(pairs, tokens_per_batch)
    ]
    gradients = [parameter.grad.clone() for parameter in model.network.parameters()]
    model.network.zero_grad()
    return sum(losses), gradients


def test_one_batch_of_pairs_is_many_of_one(model: RewardModel) -> None:
    texts = some_texts(12)
    pairs = [texts[place : place + 2] for place in range(0, 12, 2)]
    expected = sum(
        float(pairwise_losses(*torch.tensor([model.score([text], WHOLE) for text in pair]))) for pair in pairs
    )
    at_once, gradients = pair_step(model, pairs, WHOLE)
    one_by_one, same_gradients = pair_step(model, pairs, 1)
    assert at_once == pytest.approx(expected, rel=1e-5)
    assert one_by_one == pytest.approx(expected, rel=1e-5)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-3
    for one, other in zip(gradients, same_gradients, strict=True):
        # Single entries are small differences of large sums: their rounding goes by the largest one.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_a_resumed_learner_goes_on_to_the_same_bits(model: RewardModel, tmp_path: Path) -> None:
    texts = some_texts(8)
    pairs = [texts[place : place + 2] for place in range(0, 8, 2)]

    def train(learner: ScalarLearner, steps: int) -> None:
        for _ in range(steps):
            for row in pack_texts(pairs, WHOLE):
                learner.forward_backward(row, lambda rewards: pairwise_losses(rewards[0::2], rewards[1::2]), 4)
            learner.optim_step(1e-2)

    whole = a_learner(RewardModel(copy.deepcopy(model.network)))
    train(whole, 2)
    whole.save(tmp_path)
    state = dict(StateFile(tmp_path))
    train(whole, 2)
    resumed = a_learner(RewardModel(copy.deepcopy(model.network)))
    resumed.load(tmp_path)
    train(resumed, 2)
    end, same = learner_state(whole), learner_state(resumed)
    assert end.keys() == same.keys()
    assert all(torch.equal(end[name], same[name]) for name in end)
    assert not torch.equal(end["master/score.weight"], state["master/score.weight"])


def test_gradients_are_made_by_kernels_that_add_in_one_order_on_a_gpu(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[bool] = []
    monkeypatch.setattr(scalar, "deterministic", lambda device: deterministic(torch.device("cuda")))
    head: Any = model.network.score
    hook = head.weight.register_hook(lambda gradient: chosen.append(torch.are_deterministic_algorithms_enabled()))
    pair_step(model, [some_texts(2)], WHOLE)
    hook.remove()
    assert chosen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_skipped_and_leave_no_trace(model: RewardModel, number: float) -> None:
    """Also where the loss of a pair is finite: nothing is left to lose to a score of minus infinity."""
    learner = a_learner(RewardModel(copy.deepcopy(model.network)))
    (row,) = pack_texts([some_texts(2)], WHOLE)
    learner.forward_backward(row, lambda rewards: pairwise_losses(rewards[0::2], rewards[1::2]), 1)
    assert learner.optim_step(1e-2)["optim/skipped"] == 0.0
    before = learner_state(learner)
    learner._model.network.score.weight.data.fill_(number)
    learner.forward_backward(row, lambda rewards: (rewards * 0).nan_to_num(), 1)
    updated = learner.optim_step(1e-2)
    assert (updated["optim/skipped"], updated["skipped/scores"]) == (1.0, 1.0)
    assert len(learner.skipped_batch) == 64
    after = learner_state(learner)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("master/score"))
