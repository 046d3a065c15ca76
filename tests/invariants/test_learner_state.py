"""What a learner keeps: its state, from which it goes on to the same bits, its model, and its reference."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reasonmill.algo.packing import pack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.learn.state_file import STATE_FILE, StateFile
from reasonmill.model.decoder import load_decoder, new_decoder
from reasonmill.recipe.reference import shipped_bases
from reasonmill.types import Example, Request, SamplingParams
from tiny_models import VOCABULARY, NumberRenderer, learner_state, native_sampler, tiny_config, tiny_decoder
from training import WHOLE, copied, ragged_examples, same_bits, train, weights_of


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
