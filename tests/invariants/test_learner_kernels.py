"""Kernels of the learner: those that add in one order on a GPU, and that they compute what a CPU does."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import pytest
import torch
import torch._dynamo.config as dynamo_config
from torch import Tensor
from torch.utils import deterministic as fill_setting

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.errors import UnsupportedModel
from reasonmill.learn import local
from reasonmill.learn.deterministic import deterministic
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder, config_from, new_decoder
from reasonmill.randomness import generator
from reasonmill.types import Example
from tiny_models import tiny_config, tiny_decoder
from training import WHOLE, gradients, ragged_examples, train

LONG = (2048, 2000, 1900, 1700, 1500, 1300, 1100, 1024, 900, 800, 700, 500)  # tokens of texts for a GPU


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
