"""Networks with experts learn what a plain forward pass does, and say how evenly routers choose."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder, new_decoder
from tiny_models import ARCHITECTURES, tiny_config
from training import WHOLE, ragged_examples

# On a GPU where there is one.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def decoder_of(architecture: str, dtype: torch.dtype = torch.float32) -> Decoder:
    model_type, settings = ARCHITECTURES[architecture]
    return new_decoder(tiny_config(model_type, **settings), seed=0, device=DEVICE, dtype=dtype)


def plain(decoder: Decoder) -> PreTrainedModel:
    config = copy.deepcopy(decoder.config)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=decoder.dtype)
    network.load_state_dict(decoder.network.state_dict())
    return network.to(DEVICE).eval()


def routers_of(network: PreTrainedModel) -> list[torch.nn.Module]:
    return [module for module in network.modules() if type(module).__name__.endswith("Router")]


def says_what_it_chooses(router: torch.nn.Module) -> bool:
    return isinstance(getattr(router, "top_k", None), int)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "deepseek_v3"])
def test_gradients_and_the_balance_of_routers_are_those_of_a_plain_forward_pass(architecture: str) -> None:
    decoder, examples = decoder_of(architecture), ragged_examples(6, loss="ce")
    network = plain(decoder)
    routers = routers_of(network)
    assert len(routers) == {"qwen3_moe": 2, "deepseek_v3": 1}[architecture]  # DeepSeek's first layer is dense
    chosen: dict[torch.nn.Module, list[torch.Tensor]] = {router: [] for router in routers}
    for router in routers:
        router.register_forward_hook(lambda module, _, outputs: chosen[module].append(outputs[-1].flatten()))
    for example in examples:
        tokens = torch.tensor([list(example.tokens)], device=DEVICE)
        logprobs = torch.log_softmax(network(tokens[:, :-1], use_cache=False).logits[0].float(), -1)
        weights = torch.tensor(list(example.weights[1:]), device=DEVICE)
        (-(logprobs.gather(1, tokens[0, 1:, None])[:, 0] * weights).sum() / 6).backward()
    learner = LocalLearner(decoder, OptimizerSettings())
    (batch,) = pack(examples, WHOLE)
    learner.logprobs(batch)  # which must not count
    learner.forward_backward(batch, LossSettings(), 6.0)
    wanted = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    got = {name: parameter.grad for name, parameter in decoder.network.named_parameters() if parameter.grad is not None}
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-9)
    updated = learner.optim_step(1e-3)
    if not says_what_it_chooses(routers[0]):  # but leaves that to its layer, as DeepSeek-V3's in transformers 5.0
        assert not any(name.startswith("router/") for name in updated)
        return
    counts = []
    for router, numbers in chosen.items():
        together = torch.cat(numbers)
        counts.append(torch.bincount(together, minlength=router.weight.shape[0]).double())  # type: ignore[union-attr]
    busiest = sum(float(count.max() / count.mean()) for count in counts) / len(counts)
    idle = sum(float((count == 0).double().mean()) for count in counts) / len(counts)
    assert (updated["router/busiest"], updated["router/idle"]) == pytest.approx((busiest, idle))
    assert busiest > 1


@pytest.mark.parametrize("architecture", ["qwen3_moe", "deepseek_v3"])
def test_a_few_steps_in_bf16_lower_the_loss_of_what_they_train_on(architecture: str) -> None:
    decoder = decoder_of(architecture, torch.bfloat16)
    learner = LocalLearner(decoder, OptimizerSettings())
    batches = pack(ragged_examples(6, loss="ce"), 64)
    losses: list[float] = []
    rows: list[dict[str, float]] = []
    for _ in range(8):
        losses.append(sum(learner.forward_backward(batch, LossSettings(), 6.0)["loss"] for batch in batches))
        rows.append(learner.optim_step(3e-3))
    assert not any(row["optim/skipped"] for row in rows)
    assert losses[-1] < 0.9 * losses[0]
    experts = decoder.network.get_decoder().layers[-1].mlp.experts
    assert all(bool(parameter.isfinite().all()) for parameter in experts.parameters())
    if says_what_it_chooses(routers_of(decoder.network)[0]):
        assert all(1 <= row["router/busiest"] <= 8 and 0 <= row["router/idle"] < 1 for row in rows)
    else:
        assert not any(name.startswith("router/") for row in rows for name in row)


def test_a_network_without_experts_has_no_balance() -> None:
    learner = LocalLearner(decoder_of("qwen2"), OptimizerSettings())
    (batch,) = pack(ragged_examples(2, loss="ce"), WHOLE)
    learner.forward_backward(batch, LossSettings(), 2.0)
    updated: dict[str, Any] = learner.optim_step(1e-3)
    assert not any(name.startswith("router/") for name in updated)
