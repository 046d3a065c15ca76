"""The learner: the same step however batches are cut, the same bits after a resume, and no step that isn't finite."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch._dynamo.config as dynamo_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils import deterministic as fill_setting

from reasonmill.algo.examples import denominator
from reasonmill.algo.losses import Algorithm, LossSettings
from reasonmill.algo.packing import pack
from reasonmill.errors import TrainingDiverged, UnsupportedModel
from reasonmill.learn import local
from reasonmill.learn.adamw import AdamW
from reasonmill.learn.deterministic import deterministic
from reasonmill.learn.divergence import DivergenceGuard, total
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.learn.state_file import STATE_FILE, StateFile
from reasonmill.model.decoder import Decoder, config_from, load_decoder, new_decoder
from reasonmill.randomness import generator
from reasonmill.recipe.reference import shipped_bases
from reasonmill.types import Example, Request, SamplingParams
from tiny_models import (
    VOCABULARY,
    NumberRenderer,
    learner_state,
    native_sampler,
    plain_network,
    tiny_config,
    tiny_decoder,
)

WHOLE = 10_000  # tokens of a batch that holds all examples
LONG = (2048, 2000, 1900, 1700, 1500, 1300, 1100, 1024, 900, 800, 700, 500)  # tokens of texts for a GPU


def ragged_examples(count: int = 8, *, loss: Any = "pg", seed: int = 0) -> list[Example]:
    """Examples of 4 to 20 tokens with a prompt, as a sampler with somewhat other weights might have drawn them."""
    numbers = generator("learner", seed)
    examples = []
    for _ in range(count):
        length, prompt = numbers.randint(4, 20), numbers.randint(1, 3)
        advantage = numbers.choice([-1.3, 0.4, 1.1])
        examples.append(
            Example(
                tokens=[numbers.randrange(VOCABULARY) for _ in range(length)],
                weights=[0.0] * prompt + [1 / (length - prompt)] * (length - prompt),
                loss=loss,
                advantages=[advantage] * length,
                sampler_logprobs=[numbers.uniform(-6, -2) for _ in range(length)],
                ref_logprobs=[numbers.uniform(-6, -2) for _ in range(length)],
            )
        )
    return examples


def gradients(decoder: Decoder, examples: Sequence[Example], tokens_per_batch: int, loss: LossSettings) -> list[Tensor]:
    learner = LocalLearner(decoder, OptimizerSettings())
    total = denominator(examples, "sequence")
    for batch in pack(examples, tokens_per_batch):
        learner.forward_backward(batch, loss, total)
    grads = [parameter.grad.clone() for parameter in decoder.network.parameters() if parameter.grad is not None]
    decoder.network.zero_grad()
    return grads


def assert_gradients_close(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-9)


def train(learner: LocalLearner, steps: range, learning_rate: float = 1e-2) -> None:
    for step in steps:
        examples = ragged_examples(4, seed=step)
        for batch in pack(examples, WHOLE):
            learner.forward_backward(batch, LossSettings(), denominator(examples, "sequence"))
        learner.optim_step(learning_rate)


def weights_of(learner: LocalLearner) -> dict[str, Tensor]:
    """The learner's weights by name, not copied."""
    return {name: weight.detach() for name, weight in learner.decoder.network.named_parameters()}


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in weights.items()}


def skips(updated: Mapping[str, float]) -> dict[str, float]:
    """The causes for which an update was skipped; none if it was taken."""
    found = {name.removeprefix("skipped/"): value for name, value in updated.items() if name.startswith("skipped/")}
    assert updated["optim/skipped"] == float(bool(found))
    return found


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Batches


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder("mistral")


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


# Optimizer


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


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["advantages", "sampler_logprobs", "ref_logprobs"])
def test_what_is_not_finite_is_skipped_under_its_cause_and_leaves_no_trace(field: str, number: float) -> None:
    learner, spared = (
        LocalLearner(tiny_decoder(), OptimizerSettings()),
        LocalLearner(tiny_decoder(), OptimizerSettings()),
    )
    train(learner, range(2))
    train(spared, range(2))
    before = learner_state(learner)
    good, bad = ragged_examples(2)
    bad = dataclasses.replace(bad, **{field: np.full(len(bad.tokens), number)})
    # In batches of their own, so that one is as it should be.
    for batch in pack([good, bad], 1):
        learner.forward_backward(batch, LossSettings(kl_coefficient=0.1), 2.0)
    updated = learner.optim_step(1e-2)
    assert skips(updated) == {field: 1.0}
    assert same_bits(learner_state(learner), before)
    train(learner, range(2, 4))
    train(spared, range(2, 4))
    assert same_bits(learner_state(learner), learner_state(spared))


@pytest.mark.parametrize("number", [math.inf, -math.inf])
def test_a_logprob_of_a_token_that_does_not_count_is_looked_at(number: float) -> None:
    """A ratio of 0 or a clipped one would hide it from the loss, and from the gradient."""
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    before = learner_state(learner)
    good, bad = ragged_examples(2)
    bad = dataclasses.replace(bad, sampler_logprobs=[*bad.sampler_logprobs[:-1], number])  # type: ignore[index]
    (batch,) = pack([good, bad], WHOLE)
    learner.forward_backward(batch, LossSettings(clip_low=0.2, clip_high=0.2), 2.0)
    assert skips(learner.optim_step(1e-2)) == {"sampler_logprobs": 1.0}
    assert same_bits(learner_state(learner), before)


def test_a_policy_that_is_not_finite_is_told_from_a_loss_and_a_gradient() -> None:
    (batch,) = pack(ragged_examples(2, loss="ce"), WHOLE)
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    learner.forward_backward(batch, LossSettings(), 2.0)
    next(iter(weights_of(learner).values())).fill_(math.nan)
    learner.forward_backward(batch, LossSettings(), 2.0)
    assert skips(learner.optim_step(1e-2)) == {"policy_logprobs": 1.0}

    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    learner.forward_backward(dataclasses.replace(batch, weights=batch.weights * math.inf), LossSettings(), 2.0)
    assert skips(learner.optim_step(1e-2)) == {"loss": 1.0}

    learner.forward_backward(batch, LossSettings(), 2.0)
    parameter = next(p for p in learner._parameters.values() if p.grad is not None)
    parameter.grad[0] = math.inf  # type: ignore[index]
    assert skips(learner.optim_step(1e-2)) == {"gradient": 1.0}
    learner.forward_backward(batch, LossSettings(), 2.0)
    assert skips(learner.optim_step(1e-2)) == {}  # what was gathered before is forgotten


def test_a_skipped_update_has_the_digest_of_its_batches() -> None:
    def skipped(*seeds: int) -> str:
        learner = LocalLearner(tiny_decoder(), OptimizerSettings())
        for seed in seeds:
            (batch,) = pack(ragged_examples(2, seed=seed), WHOLE)
            assert batch.advantages is not None
            learner.forward_backward(
                dataclasses.replace(batch, advantages=batch.advantages * math.inf), LossSettings(), 2.0
            )
        learner.optim_step(1e-2)
        return learner.skipped_batch

    assert len(skipped(0)) == 64
    assert skipped(0) == skipped(0)
    assert len({skipped(0), skipped(1), skipped(0, 1), skipped(1, 0)}) == 4
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    train(learner, range(1))
    assert learner.skipped_batch == ""


def test_both_passes_choose_kernels_that_add_in_one_order_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder()
    chosen: list[bool] = []

    def note(tensor: Tensor) -> Tensor:
        chosen.append(torch.are_deterministic_algorithms_enabled())
        return tensor

    def hidden(self: Decoder, *arguments: Any) -> Tensor:
        return note(run_hidden(self, *arguments))

    def as_on_a_gpu(device: torch.device) -> AbstractContextManager[None]:
        assert device == decoder.device
        return deterministic(torch.device("cuda"))

    run_hidden = Decoder.hidden
    monkeypatch.setattr(Decoder, "hidden", hidden)
    monkeypatch.setattr(local, "deterministic", as_on_a_gpu)
    decoder.head_weight.register_hook(note)
    learner = LocalLearner(decoder, OptimizerSettings())
    train(learner, range(1))
    assert chosen == [True, True]
    learner.logprobs(pack(ragged_examples(), WHOLE)[0])
    assert chosen == [True, True, True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("keeps_order", [True, False])
def test_gradients_on_a_gpu_are_the_same_each_time(keeps_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without the kernels that are chosen for this they are not: the texts are long enough for many blocks."""
    if not keeps_order:
        monkeypatch.setattr(local, "deterministic", lambda device: nullcontext())
    shape = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    config = config_from("qwen2", {**shape, "num_hidden_layers": 8, "vocab_size": 2000, "tie_word_embeddings": True})
    decoder = new_decoder(config, seed=0, device="cuda", dtype=torch.bfloat16)
    numbers = generator("long", 0)
    texts = [[numbers.randrange(2000) for _ in range(length)] for length in LONG]
    examples = [Example(text, [0.0, *[1.0] * (len(text) - 1)], "ce") for text in texts]
    first, *others = [gradients(decoder, examples, sum(LONG), LossSettings()) for _ in range(5)]
    same = [all(torch.equal(*pair) for pair in zip(first, other, strict=True)) for other in others]
    assert all(same) == keeps_order


# Flash attention; a window; a soft cap and narrow heads, which are padded.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", ["qwen2", "mistral", "gemma2"])
def test_a_gpu_scores_and_trains_as_a_cpu_does_in_fp32(architecture: str) -> None:
    exact = tiny_decoder(architecture)
    rounded = tiny_decoder(architecture, dtype=torch.bfloat16)
    exact.network.load_state_dict(rounded.network.state_dict())
    rounded.network.to("cuda")
    for count in (8, 5):  # rows of other lengths go through the same compiled layers
        examples = ragged_examples(count)
        batch = pack(examples, WHOLE)[0]
        trained = batch.weights > 0
        wanted, found = (LocalLearner(d, OptimizerSettings()).logprobs(batch).cpu()[trained] for d in (exact, rounded))
        assert float((wanted - found).abs().mean()) < 0.05
        expected, got = (gradients(d, examples, WHOLE, LossSettings()) for d in (exact, rounded))
        assert norm_of([a.cpu() - b for a, b in zip(got, expected, strict=True)]) < 0.1 * norm_of(expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_one_layer_is_compiled_for_all_of_them_and_for_rows_of_any_length() -> None:
    config = tiny_config("qwen2", num_hidden_layers=6, hidden_size=64)
    decoder = new_decoder(config, seed=0, device="cuda", dtype=torch.bfloat16)
    gradients(decoder, ragged_examples(8), WHOLE, LossSettings())
    with dynamo_config.patch(error_on_recompile=True):
        gradients(decoder, ragged_examples(5, seed=1), WHOLE, LossSettings())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_update_of_a_gpu_is_that_of_a_cpu() -> None:
    learners = []
    for device in ("cpu", "cuda"):
        decoder = tiny_decoder()
        decoder.network.to(device)
        learners.append(LocalLearner(decoder, OptimizerSettings(weight_decay=0.1, clip_norm=0.5)))
    for step in range(3):
        for learner in learners:
            for index, parameter in enumerate(learner.decoder.network.parameters()):
                noise = torch.Generator().manual_seed(100 * step + index)
                parameter.grad = torch.randn(parameter.shape, generator=noise).to(parameter.device)
        norms = [learner.optim_step(1e-2)["optim/grad_norm"] for learner in learners]
        assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    for one, other in zip(*(learner.decoder.network.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-5, atol=1e-6)


def norm_of(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


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


def test_what_torch_was_set_to_comes_back_after_an_error() -> None:
    with suppress(ZeroDivisionError), deterministic(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not fill_setting.fill_uninitialized_memory  # type: ignore[attr-defined]
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    assert fill_setting.fill_uninitialized_memory  # type: ignore[attr-defined]
    with deterministic(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()


def test_what_has_no_kernel_that_keeps_an_order_is_named() -> None:
    with (
        pytest.raises(UnsupportedModel, match="would differ each time: put_ does not have a deterministic"),
        deterministic(torch.device("cuda")),
    ):
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_learner_goes_on_to_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    uninterrupted = LocalLearner(tiny_decoder(dtype=dtype), OptimizerSettings(weight_decay=0.1))
    train(uninterrupted, range(2))
    uninterrupted.save(tmp_path)
    train(uninterrupted, range(2, 5))
    resumed = LocalLearner(tiny_decoder(seed=9, dtype=dtype), OptimizerSettings(weight_decay=0.1))
    resumed.load(tmp_path)
    train(resumed, range(2, 5))
    assert same_bits(learner_state(resumed), learner_state(uninterrupted))
    assert same_bits(weights_of(resumed), weights_of(uninterrupted))


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


def test_the_guard_ends_a_run_after_too_many_skips_in_a_row() -> None:
    notes: list[str] = []
    guard = DivergenceGuard(notes.append)
    for step, updated in enumerate([SKIPPED, SKIPPED, FINE, SKIPPED, SKIPPED]):
        guard.check(step, updated, "b" * 64)
    assert notes == [f"an update of step {step} was skipped: loss not finite" for step in (0, 1, 3, 4)]
    with pytest.raises(TrainingDiverged, match="3 times in a row, last at step 5: loss") as caught:
        guard.check(5, SKIPPED, "b" * 64, "a" * 64)
    assert caught.value.where == f"batch {'b' * 64}, groups {'a' * 64}"


SKIPPED, FINE = {"optim/skipped": 1.0, "skipped/loss": 1.0}, {"optim/skipped": 0.0}


@pytest.mark.parametrize("cut", range(5))
def test_a_guard_that_is_resumed_stops_at_the_same_step(cut: int) -> None:
    """Its count comes from the metrics of the steps before; steps without an update leave it as it is."""
    course = [[SKIPPED], [FINE, SKIPPED], [], [SKIPPED], [SKIPPED]]
    entries: list[dict[str, float]] = []
    guard = DivergenceGuard(lambda text: None)
    for step in range(cut):
        for updated in course[step]:
            guard.check(step, updated, "")
        entries.append({"step": step, **guard.metrics()})
    # A replayed step has its entry from before, too.
    entries.append({"step": cut, "skipped/in_a_row": 2.0})
    resumed = DivergenceGuard.resumed(lambda text: None, entries, cut)
    rest = [(step, updated) for step in range(cut, 5) for updated in course[step]]
    for step, updated in rest[:-1]:
        resumed.check(step, updated, "")
    with pytest.raises(TrainingDiverged, match="last at step 4"):
        resumed.check(*rest[-1], "")


def test_a_sum_without_a_value_is_no_crash() -> None:
    assert total([0.1] * 10) == 1.0
    assert math.isnan(total([math.inf, -math.inf]))
    assert math.isnan(total([1e308, 1e308]))


# State


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_is_a_file_of_the_safetensors_format(dtype: torch.dtype, tmp_path: Path) -> None:
    learner = LocalLearner(tiny_decoder(dtype=dtype), OptimizerSettings())
    train(learner, range(1))
    learner.keep_reference()
    learner.save(tmp_path)
    written = tmp_path / STATE_FILE
    state = load_file(written)
    assert state["updates"] == 1
    assert {name.partition("/")[0] for name in state} == {"updates", "master", "first", "second", "reference"}
    save_file(state, tmp_path / "theirs")
    assert written.read_bytes() == (tmp_path / "theirs").read_bytes()
    assert same_bits(dict(StateFile(tmp_path)), state)
    with pytest.raises(KeyError, match="no such"):
        StateFile(tmp_path)["no such"]


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    LocalLearner(tiny_decoder(), OptimizerSettings()).save(tmp_path)
    deeper = new_decoder(tiny_config("qwen2", num_hidden_layers=3), seed=0, device="cpu", dtype=torch.float32)
    with pytest.raises(KeyError, match=r"layers\.2"):
        LocalLearner(deeper, OptimizerSettings()).load(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_state_is_written_without_a_second_copy_on_the_gpu(tmp_path: Path) -> None:
    config = tiny_config("qwen2", hidden_size=256, intermediate_size=1024, num_hidden_layers=8)
    decoder = new_decoder(config, seed=0, device="cuda", dtype=torch.bfloat16)
    learner = LocalLearner(decoder, OptimizerSettings())
    learner.keep_reference()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    learner.save(tmp_path)
    size = (tmp_path / STATE_FILE).stat().st_size
    assert size > 10 * 1024**2
    assert torch.cuda.max_memory_allocated() - before < size / 10


def test_a_saved_model_is_one_that_transformers_loads(tmp_path: Path) -> None:
    learner = LocalLearner(tiny_decoder(), OptimizerSettings(), companions=shipped_bases()["tiny-base-weak"])
    train(learner, range(1))
    learner.save_model(tmp_path)
    loaded = dict(load_decoder(tmp_path, device="cpu", dtype=torch.float32).network.named_parameters())
    assert same_bits(loaded, weights_of(learner))
    assert (tmp_path / "tokenizer.json").is_file()


def test_a_sampler_of_its_own_network_follows_the_learner_without_a_copy() -> None:
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    shared = native_sampler(learner.decoder, NumberRenderer())
    apart = native_sampler(tiny_decoder(seed=9), NumberRenderer())
    train(learner, range(2))
    places = [weight.data_ptr() for weight in weights_of(learner).values()]
    asked = [Request((2, 3), SamplingParams(max_tokens=20), key) for key in range(5)]
    for sampler in (shared, apart):
        learner.publish(sampler, 7)
        assert sampler.version == 7
    assert [weight.data_ptr() for weight in weights_of(learner).values()] == places
    drawn = [[c.tokens for _, c in sorted(s.generate(asked), key=lambda pair: pair[0])] for s in (shared, apart)]
    assert drawn[0] == drawn[1]


# Reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reference_scores_as_the_policy_once_did_and_gives_the_weights_back(dtype: torch.dtype) -> None:
    learner = LocalLearner(tiny_decoder(dtype=dtype), OptimizerSettings())
    batches = pack(ragged_examples(6), 40)
    of_start = torch.empty(0)
    for step in range(4):
        if step % 2 == 0:
            learner.keep_reference()
            of_start = torch.cat([learner.logprobs(batch) for batch in batches])
        state = learner_state(learner)
        weights = copied(weights_of(learner))
        assert torch.equal(learner.reference_logprobs(batches), of_start), step
        assert same_bits(weights_of(learner), weights)
        assert same_bits(learner_state(learner), state)
        train(learner, range(step, step + 1))
        assert not torch.equal(torch.cat([learner.logprobs(batch) for batch in batches]), of_start)


def test_a_reference_gives_the_weights_back_when_scoring_fails() -> None:
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    learner.keep_reference()
    train(learner, range(1))
    weights = copied(weights_of(learner))
    unknown = Example(tokens=[2, VOCABULARY + 5, 3], weights=[0.0, 1.0, 1.0], loss="ce")
    with pytest.raises((IndexError, RuntimeError)):
        learner.reference_logprobs(pack([unknown], WHOLE))
    assert same_bits(weights_of(learner), weights)


def test_a_reference_comes_back_with_the_state(tmp_path: Path) -> None:
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    batches = pack(ragged_examples(3), WHOLE)
    with pytest.raises(RuntimeError, match="no reference was kept"):
        learner.reference_logprobs(batches)
    without = learner_state(learner).keys()
    learner.keep_reference()
    expected = learner.reference_logprobs(batches)
    train(learner, range(2))
    learner.save(tmp_path)
    resumed = LocalLearner(tiny_decoder(seed=9), OptimizerSettings())
    resumed.load(tmp_path)
    assert torch.equal(resumed.reference_logprobs(batches), expected)
    assert same_bits(learner_state(resumed), learner_state(learner))
    assert all(name.startswith("reference/") for name in learner_state(learner).keys() - without)
