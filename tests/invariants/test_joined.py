"""Projections whose weights lie side by side: nobody who trains, saves or loads them sees a difference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder, load_decoder
from reasonmill.model.joined import join_projections, joined, joint_projections
from reasonmill.model.saving import save_network
from reasonmill.types import Example
from tiny_models import learner_state, tiny_decoder

LIKE_LLAMA = ("llama", "qwen2", "qwen3")


def a_joined(architecture: str) -> Decoder:
    decoder = tiny_decoder(architecture)
    join_projections(decoder.network)
    return decoder


def wholes(decoder: Decoder) -> list[Any]:
    """The joined tensors of all layers; None where projections are not joined."""
    layers: Any = decoder.network.get_decoder().layers
    return [joined([one.weight for one in group]) for layer in layers for group in joint_projections(layer)]


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_weights_keep_their_names_shapes_and_bits(architecture: str) -> None:
    plain, decoder = tiny_decoder(architecture), a_joined(architecture)
    assert wholes(plain) == [None] * 4
    assert all(whole is not None for whole in wholes(decoder))
    weights = dict(decoder.network.named_parameters())
    for name, weight in plain.network.named_parameters():
        assert torch.equal(weights[name], weight)
    layer: Any = decoder.network.get_decoder().layers[1]
    (_, gates), (_, whole) = joint_projections(layer), wholes(decoder)[2:]
    assert torch.equal(whole, torch.cat([gates[0].weight, gates[1].weight]))


def test_what_is_not_like_llama_stays_as_it_is() -> None:
    decoder = tiny_decoder("gemma2")
    before = [parameter.data_ptr() for parameter in decoder.network.parameters()]
    join_projections(decoder.network)
    assert [parameter.data_ptr() for parameter in decoder.network.parameters()] == before


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_they_are_saved_as_they_are(architecture: str, tmp_path: Path) -> None:
    decoder = a_joined(architecture)
    save_network(decoder.network, tmp_path, companions=None)
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    for name, weight in decoder.network.named_parameters():
        assert torch.equal(loaded[name], weight)


def test_they_are_trained_to_the_same_bits_and_the_joined_tensor_has_the_new_ones() -> None:
    def trained(decoder: Decoder) -> LocalLearner:
        learner = LocalLearner(decoder, OptimizerSettings())
        example = Example(tokens=tuple(range(2, 12)), weights=[0.0] + [1.0] * 9, loss="ce")
        for batch in pack([example], 100):
            learner.forward_backward(batch, LossSettings(), 9.0)
        learner.optim_step(0.1)
        return learner

    decoder = a_joined("qwen2")
    before = [whole.clone() for whole in wholes(decoder)]
    state, plain = learner_state(trained(decoder)), learner_state(trained(tiny_decoder("qwen2")))
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)
    assert not any(torch.equal(whole, old) for whole, old in zip(wholes(decoder), before, strict=True))


def test_a_large_network_is_loaded_so_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_network(tiny_decoder("llama").network, tmp_path, companions=None)
    assert wholes(load_decoder(tmp_path, device="cpu", dtype=torch.float32)) == [None] * 4
    monkeypatch.setattr("reasonmill.model.joined._LARGE", 1000)
    large = load_decoder(tmp_path, device="cpu", dtype=torch.float32)
    assert all(whole is not None for whole in wholes(large))
