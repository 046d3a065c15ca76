"""The learner: the same step however batches are cut, and an optimizer that loses nothing in bf16."""

from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from reasonmill.algo import logprobs
from reasonmill.algo.examples import denominator
from reasonmill.algo.losses import Algorithm, LossSettings
from reasonmill.algo.packing import pack
from reasonmill.learn.adamw import AdamW
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder, new_decoder
from reasonmill.randomness import generator
from tiny_models import learner_state, plain_network, tiny_config, tiny_decoder
from training import WHOLE, copied, gradients, ragged_examples, weights_of

# Batches


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder("mistral")


def assert_gradients_close(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-9)


ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_batch_of_eight_is_eight_of_one(decoder: Decoder, algorithm: Algorithm) -> None:
    loss = LossSettings(algorithm=algorithm, kl_coefficient=0.1, entropy_coefficient=0.1)
    wide = {"clip_low": 0.9, "clip_high": 5.0}
    if wide.keys() <= loss.constants.keys():
        loss = loss.model_copy(update=wide)
    examples = ragged_examples(8)
    assert (len(pack(examples, WHOLE)), len(pack(examples, 1))) == (1, 8)
    at_once = gradients(decoder, examples, WHOLE, loss)
    assert max(float(grad.abs().max()) for grad in at_once) > 1e-3
    assert_gradients_close(gradients(decoder, examples, 1, loss), at_once)
    assert_gradients_close(gradients(decoder, examples, 35, loss), at_once)


def test_the_order_of_groups_does_not_matter(decoder: Decoder) -> None:
    examples = ragged_examples(8)
    shuffled = generator("shuffle").sample(examples, len(examples))
    loss = LossSettings(kl_coefficient=0.1)
    assert shuffled != examples
    assert_gradients_close(gradients(decoder, shuffled, 35, loss), gradients(decoder, examples, 35, loss))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_packed_row_is_padded_rows_of_a_plain_network(decoder: Decoder, temperature: float) -> None:
    """Cross-entropy by transformers' own forward pass on a padded batch, with a plain softmax."""
    examples = ragged_examples(6, loss="ce")
    plain = plain_network(decoder)
    longest = max(len(example.tokens) for example in examples)
    tokens = torch.tensor([[*example.tokens, *[0] * (longest - len(example.tokens))] for example in examples])
    inside = torch.arange(longest) < torch.tensor([len(example.tokens) for example in examples])[:, None]
    weights = torch.tensor([[*example.weights, *[0.0] * (longest - len(example.weights))] for example in examples])
    logits = plain(tokens, attention_mask=inside.long()).logits[:, :-1]
    logprobs = torch.log_softmax(logits / temperature, -1).gather(2, tokens[:, 1:, None]).squeeze(2)
    expected = -(logprobs * weights[:, 1:]).sum()
    (expected / 6).backward()
    learner = LocalLearner(decoder, OptimizerSettings(), temperature=temperature)
    (batch,) = pack(examples, WHOLE)
    sums = learner.forward_backward(batch, LossSettings(), 6.0)
    assert sums == pytest.approx({"loss": expected.item(), "loss/ce": expected.item()}, rel=1e-5)
    wanted = [parameter.grad for parameter in plain.parameters() if parameter.grad is not None]
    got = [parameter.grad for parameter in decoder.network.parameters() if parameter.grad is not None]
    assert_gradients_close(got, wanted)
    decoder.network.zero_grad()


def test_layers_run_without_the_gradients_that_are_gathered(decoder: Decoder) -> None:
    """torch compiles in pieces what reads a bf16 weight with an fp32 gradient."""
    learner = LocalLearner(decoder, OptimizerSettings())
    (batch,) = pack(ragged_examples(4, loss="ce"), WHOLE)
    learner.forward_backward(batch, LossSettings(), 1.0)
    parameters = list(decoder.network.parameters())
    once = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    seen: list[bool] = []
    layer = decoder.network.get_decoder().layers[-1]
    hook = layer.register_forward_hook(lambda *_: seen.append(any(one.grad is not None for one in parameters)))
    learner.logprobs(batch)
    learner.forward_backward(batch, LossSettings(), 1.0)
    hook.remove()
    assert seen == [False, False]
    for parameter, gradient in zip(parameters, once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient, rtol=1e-4, atol=1e-7)
    decoder.network.zero_grad()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles layers on a GPU")
def test_layers_are_compiled_whole_for_lengths_of_all_kinds() -> None:
    config = tiny_config("llama", num_hidden_layers=2, hidden_size=576, num_attention_heads=9, num_key_value_heads=3)
    decoder = new_decoder(config, seed=0, device="cuda", dtype=torch.bfloat16)
    learner = LocalLearner(decoder, OptimizerSettings())
    counters.clear()
    for count in (1200, 300, 1200, 30, 90):  # rows of some 13,000, 3,000 and fewer positions, all in one update
        (batch,) = pack(ragged_examples(count, loss="ce"), 100_000)
        learner.forward_backward(batch, LossSettings(), 1.0)
    assert not counters["graph_break"]


# Optimizer


def test_context_goes_through_no_head_of_a_large_vocabulary(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = ragged_examples(6)
    (batch,) = pack(examples, WHOLE)
    weighed = batch.weights != 0
    learner = LocalLearner(decoder, OptimizerSettings())

    def passes() -> list[Tensor]:
        return [learner.logprobs(batch)[weighed], *gradients(decoder, examples, WHOLE, LossSettings())]

    expected = passes()
    monkeypatch.setattr(logprobs, "_LARGE_VOCABULARY", 1)
    torch.testing.assert_close(passes(), expected)
    assert learner.logprobs(batch).count_nonzero() == weighed.count_nonzero() < batch.num_tokens


def test_embeddings_tied_to_a_large_head_have_the_gradient_that_they_have_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """In several micro-batches, too, the later of which add to a gradient that is there."""
    examples = ragged_examples(6)
    expected = gradients(tiny_decoder("gemma2"), examples, 16, LossSettings())
    monkeypatch.setattr(logprobs, "_LARGE_VOCABULARY", 1)
    tied = tiny_decoder("gemma2")
    assert tied.network.get_input_embeddings().weight is tied.head_weight
    found = gradients(tied, examples, 16, LossSettings())
    assert not any(gradient.is_sparse for gradient in found)
    torch.testing.assert_close(found, expected)


def test_the_optimizer_is_adamw_with_clipping() -> None:
    """Against torch's own, with decay on matrices only."""
    settings = OptimizerSettings(beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3, clip_norm=0.05)
    ours, theirs = tiny_decoder("qwen2"), tiny_decoder("qwen2")
    learner = LocalLearner(ours, settings)
    other = LocalLearner(theirs, settings)
    parameters = list(theirs.network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.3},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-6)
    for step, learning_rate in enumerate([1e-2, 3e-3, 1e-3]):
        (batch,) = pack(ragged_examples(3, seed=step), WHOLE)
        learner.forward_backward(batch, LossSettings(), 3.0)
        other.forward_backward(batch, LossSettings(), 3.0)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, 0.05))
        assert norm > 0.05
        for group in adamw.param_groups:
            group["lr"] = learning_rate
        adamw.step()
        adamw.zero_grad()
        updated = learner.optim_step(learning_rate)
        assert updated == pytest.approx(
            {"optim/grad_norm": norm, "optim/skipped": 0.0, "optim/learning_rate": learning_rate}, rel=1e-5
        )
    for name, weight in ours.network.named_parameters():
        torch.testing.assert_close(weight, theirs.network.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_recomputed_layers_give_the_same_bits() -> None:
    kept = gradients(tiny_decoder(), ragged_examples(), WHOLE, LossSettings())
    learner = LocalLearner(tiny_decoder(), OptimizerSettings(), recompute=True)
    layer = learner.decoder.network.get_decoder().layers[0]
    runs: list[int] = []
    layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    for batch in pack(ragged_examples(), WHOLE):
        learner.forward_backward(batch, LossSettings(), denominator(ragged_examples(), "sequence"))
    assert len(runs) == 2
    found = [parameter.grad for parameter in learner.decoder.network.parameters() if parameter.grad is not None]
    assert all(map(torch.equal, found, kept))


def test_steps_too_small_for_bf16_add_up_in_the_masters() -> None:
    learner = LocalLearner(tiny_decoder(dtype=torch.bfloat16), OptimizerSettings())
    start = copied(weights_of(learner))
    (batch,) = pack(ragged_examples(4, loss="ce"), WHOLE)

    def moved() -> float:
        changed = sum(int((weight != start[name]).sum()) for name, weight in weights_of(learner).items())
        return changed / sum(weight.numel() for weight in start.values())

    shares = []
    for _ in range(40):
        learner.forward_backward(batch, LossSettings(), 4.0)
        learner.optim_step(1e-4)
        shares.append(moved())
    # A step of 1e-4 is a third of bf16's spacing at 0.1: most weights stand still at first, and move in the end.
    assert shares[0] < 0.4
    assert shares[-1] > 0.6
    assert shares[-1] > 2 * shares[0]
    state = learner_state(learner)
    assert state["master/model.norm.weight"].dtype == torch.float32
    for name, weight in weights_of(learner).items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, state[f"master/{name}"].bfloat16())


def test_the_gradients_of_many_micro_batches_are_added_up_in_fp32() -> None:
    """In bf16 a sum stops growing when what is added is less than half of its spacing."""
    weight = torch.ones(16, dtype=torch.bfloat16, requires_grad=True)
    optimizer = AdamW({"weight": weight}, OptimizerSettings())
    for _ in range(1024):
        (weight * 0.1).sum().backward()
    once = float(torch.tensor(0.1).bfloat16()) * 4
    assert optimizer.step(0.0)["optim/grad_norm"] == pytest.approx(1024 * once, rel=1e-3)


def test_a_learner_in_bf16_gathers_what_its_micro_batches_come_to() -> None:
    learner = LocalLearner(tiny_decoder(dtype=torch.bfloat16), OptimizerSettings())
    (batch,) = pack(ragged_examples(2, loss="ce"), WHOLE)
    learner.forward_backward(batch, LossSettings(), 1.0)
    once = [p.grad.clone() for p in learner.decoder.network.parameters() if p.grad is not None]
    for _ in range(149):
        learner.forward_backward(batch, LossSettings(), 1.0)
    for parameter, grad in zip(learner.decoder.network.parameters(), once, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 150 * grad, rtol=1e-4, atol=0)


def test_a_learner_leaves_dropout_off() -> None:
    """Log-probs with noise of their own would not be those that the tokens were drawn with."""
    config = tiny_config("phi3", resid_pdrop=0.5)
    learner = LocalLearner(new_decoder(config, seed=0, device="cpu", dtype=torch.float32), OptimizerSettings())
    (batch,) = pack(ragged_examples(2), WHOLE)
    assert torch.equal(learner.logprobs(batch), learner.logprobs(batch))
