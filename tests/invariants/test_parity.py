"""The sampler, the learner and plain transformers give the same log-probs, for every architecture we say we run."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from reasonmill.algo.packing import pack, unpack
from reasonmill.errors import UnsupportedModel
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder, load_decoder, new_decoder
from reasonmill.model.packed import PackedLayout
from reasonmill.randomness import generator, key
from reasonmill.recipe.reference import shipped_bases
from reasonmill.types import Completion, Example, Request, SamplingParams
from tiny_models import (
    ARCHITECTURES,
    STOP_TOKEN,
    VOCABULARY,
    WINDOW,
    NumberRenderer,
    native_sampler,
    plain_network,
    tiny_config,
    tiny_decoder,
)

# In fp32; the networks' logits span tens of units, so that a wrong mask is off by whole units.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    decoder: Decoder
    plain: PreTrainedModel
    requests: list[Request]
    completions: list[Completion]


def ragged_requests() -> list[Request]:
    """Groups of three on prompts of 1 to 14 tokens, with limits of 3 to 20; the first of each group is greedy."""
    numbers = generator("parity")
    requests = []
    for group in range(4):
        prompt = tuple(numbers.randrange(2, VOCABULARY) for _ in range((1, 14, 6, 9)[group]))
        for place in range(3):
            params = SamplingParams(temperature=(0.0, 1.0, 1.0)[place], max_tokens=numbers.randint(3, 20))
            requests.append(Request(prompt, params, key("parity", group, place)))
    return requests


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest) -> Case:
    decoder = tiny_decoder(request.param)
    requests = ragged_requests()
    # Five slots for twelve requests: a group starts in parts, slots are used again and moved.
    drawn = dict(native_sampler(decoder, NumberRenderer(), num_slots=5).generate(requests))
    return Case(decoder, plain_network(decoder), requests, [drawn[index] for index in range(len(requests))])


@torch.no_grad()
def plain_logprobs(network: PreTrainedModel, tokens: tuple[int, ...]) -> Tensor:
    """Log-probs [T - 1] of all tokens but the first, by transformers' own forward pass on this sequence alone."""
    row = torch.tensor([tokens])
    logprobs = torch.log_softmax(network(row).logits[0, :-1].double(), -1)
    return logprobs.gather(1, row[0, 1:, None]).squeeze(1)


def test_the_samplers_log_probs_are_those_of_a_plain_forward(case: Case) -> None:
    lengths = set()
    for request, completion in zip(case.requests, case.completions, strict=True):
        expected = plain_logprobs(case.plain, request.prompt_tokens + completion.tokens)
        expected = expected[len(request.prompt_tokens) - 1 :]
        assert completion.logprobs is not None
        torch.testing.assert_close(
            torch.tensor(completion.logprobs, dtype=torch.float64), expected, rtol=0, atol=TOLERANCE
        )
        lengths.add(len(completion.tokens))
    # The case is worth its name: ragged, and longer than any window.
    assert len(lengths) > 4
    assert max(lengths) > 2 * WINDOW


def test_temperature_zero_is_generate_without_sampling(case: Case) -> None:
    greedy = [pair for pair in zip(case.requests, case.completions, strict=True) if pair[0].params.temperature == 0]
    assert len(greedy) == 4
    for request, completion in greedy:
        row = torch.tensor([request.prompt_tokens])
        generated = case.plain.generate(
            row,
            attention_mask=torch.ones_like(row),
            do_sample=False,
            max_new_tokens=request.params.max_tokens,
            eos_token_id=STOP_TOKEN,
            pad_token_id=0,
        )
        assert completion.tokens == tuple(generated[0, row.shape[1] :].tolist())


@pytest.mark.parametrize("tokens_per_batch", [40, 1000])
def test_the_learners_log_probs_are_those_of_a_plain_forward(case: Case, tokens_per_batch: int) -> None:
    sequences = [r.prompt_tokens + c.tokens for r, c in zip(case.requests, case.completions, strict=True)]
    examples = [Example(tokens=s, weights=[0.0] + [1.0] * (len(s) - 1), loss="ce") for s in sequences]
    batches = pack(examples, tokens_per_batch)
    assert max(len(batch.lengths) for batch in batches) > 1
    learner = LocalLearner(case.decoder, OptimizerSettings())
    rows = unpack(torch.cat([learner.logprobs(batch) for batch in batches]), batches, examples)
    for row, tokens in zip(rows, sequences, strict=True):
        expected = plain_logprobs(case.plain, tokens)
        torch.testing.assert_close(torch.tensor(row[1:], dtype=torch.float64), expected, rtol=0, atol=TOLERANCE)


# Models that the engine can't run


MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("model_type", "settings", "named"),
    [
        ("mamba", {}, "MambaForCausalLM: it"),
        ("t5", {}, "T5Config"),
        ("bloom", {}, "BloomForCausalLM: its attention"),
        ("qwen3_next", {"num_experts": 4, "head_dim": 8, **MIXTURE}, "Qwen3NextForCausalLM: it .* linear_attention"),
        ("granite", {"logits_scaling": 8.0}, "GraniteForCausalLM: .* logits_scaling"),
        ("cohere", {"logit_scale": 0.0625}, "CohereForCausalLM: .* logit_scale"),
        # Its frequencies would follow the longest sequence of the batch, for all of its sequences.
        ("phi3", {"rope_parameters": LONG_ROPE}, "Phi3ForCausalLM: its rotary embedding .longrope."),
    ],
)
def test_a_model_is_refused_by_its_name_and_the_part_at_fault(
    model_type: str, settings: dict[str, Any], named: str
) -> None:
    config = tiny_config(model_type, **settings)
    with pytest.raises(UnsupportedModel, match=named):
        new_decoder(config, seed=0, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("model_type", "settings", "named"),
    [
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, "GptOssAttention uses s_aux"),
        # These two cut their window with a mask and don't tell the attention function, which would see everything.
        (
            "qwen2_moe",
            {"num_experts": 4, "use_sliding_window": True, "max_window_layers": 1, **MIXTURE},
            "Qwen2MoeAttention .* window",
        ),
        ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}, "PhimoeAttention .* window"),
    ],
)
def test_attention_that_asks_for_more_is_refused_at_the_first_token(
    model_type: str, settings: dict[str, Any], named: str
) -> None:
    rotation = {"rope_type": "default", "rope_theta": 1e4}
    config = tiny_config(model_type, sliding_window=WINDOW, rope_parameters=rotation, **settings)
    decoder = new_decoder(config, seed=0, device="cpu", dtype=torch.float32)
    sampler = native_sampler(decoder, NumberRenderer())
    with pytest.raises(UnsupportedModel, match=named):
        next(sampler.generate([Request((2, 3), SamplingParams(max_tokens=4), 0)]))


def test_a_directory_without_a_causal_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no causal language model") as caught:
        load_decoder(tmp_path, device="cpu", dtype=torch.float32)
    assert caught.value.where == str(tmp_path)
    tiny_config("t5").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="T5Config") as caught:
        load_decoder(tmp_path, device="cpu", dtype=torch.float32)
    # Without the list of all the classes that would have done.
    assert len(caught.value.what) < 300


def test_a_directory_whose_weights_are_cut_off_is_refused(tmp_path: Path) -> None:
    shutil.copytree(shipped_bases()["tiny-base-weak"], tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 1000)
    with pytest.raises(UnsupportedModel, match="no causal language model can be loaded") as caught:
        load_decoder(tmp_path / "cut", device="cpu", dtype=torch.float32)
    assert caught.value.where == str(tmp_path / "cut")


def test_a_saved_model_is_loaded_to_the_same_bits(tmp_path: Path) -> None:
    decoder = tiny_decoder("gemma2")
    decoder.network.save_pretrained(tmp_path)
    loaded = load_decoder(tmp_path, device="cpu", dtype=torch.float32)
    weights = dict(loaded.network.named_parameters())
    assert weights.keys() == dict(decoder.network.named_parameters()).keys()
    assert all(torch.equal(weights[name], weight) for name, weight in decoder.network.named_parameters())


def test_dropout_is_off() -> None:
    """Log-probs with noise of their own would not be those that the tokens were drawn with."""
    config = tiny_config("phi3", resid_pdrop=0.5, embd_pdrop=0.5)
    decoder = new_decoder(config, seed=0, device="cpu", dtype=torch.float32)
    tokens, positions = torch.arange(9), torch.arange(9)
    once, again = (decoder.hidden(tokens, positions, PackedLayout((9,), decoder.device)) for _ in range(2))
    assert torch.equal(once, again)
