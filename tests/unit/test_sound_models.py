"""Models that are not whole, not finite or not of their tokenizer are refused by name: loaded and committed."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.errors import ReasonmillError, RecipeError, TrainingDiverged, UnsupportedModel
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import load_decoder, new_decoder
from reasonmill.model.directory import refuse_directory
from reasonmill.model.saving import has_same_weights, refuse_unsound
from reasonmill.recipe.reference import model_directory, shipped_bases
from reasonmill.render import renderer_for
from reasonmill.types import Example, Message, Request, SamplingParams
from tiny_models import NumberRenderer, native_sampler, tiny_config, tiny_decoder

Weights = dict[str, Tensor]
EMBEDDING = "model.embed_tokens.weight"
QUESTION = (Message("user", "q"),)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of a shipped base."""
    shutil.copytree(shipped_bases()["tiny-base-weak"], tmp_path / "model")
    return tmp_path / "model"


def load(model: Path) -> None:
    load_decoder(model, device="cpu", dtype=torch.float32)


def change_weights(model: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(model / "model.safetensors")), model / "model.safetensors", {"format": "pt"})


def change_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def with_number(weights: Weights, number: float) -> Weights:
    weights["model.norm.weight"][3] = number
    return weights


FAULTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "a layer lacks": (
        lambda weights: {name: weight for name, weight in weights.items() if "layers.1." not in name},
        r"lacks model\.layers\.1\.\S+, .* and 4 more",
    ),
    "a prefix": (
        lambda weights: {f"_orig_mod.{name}": weight for name, weight in weights.items()},
        r"lacks lm_head\.weight.*does not know _orig_mod\.",
    ),
    "a weight too many": (lambda weights: {**weights, "model.gate": torch.ones(2)}, r"does not know model\.gate\n"),
    "another shape": (
        lambda weights: {**weights, "model.norm.weight": torch.ones(3)},
        r"has other shapes of model\.norm\.weight",
    ),
    "nan": (
        lambda weights: with_number(weights, math.nan),
        r"1 of \d+ tensors hold NaN or infinity: model\.norm\.weight",
    ),
    "inf": (lambda weights: with_number(weights, -math.inf), r"hold NaN or infinity: model\.norm\.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_not_the_model_s_are_named(model: Path, fault: str) -> None:
    change, named = FAULTS[fault]
    change_weights(model, change)
    with pytest.raises(UnsupportedModel, match=named) as caught:
        load(model)
    assert caught.value.where == str(model)
    with pytest.raises((UnsupportedModel, TrainingDiverged)):
        refuse_unsound(model, "model")


def test_what_is_tied_or_computed_may_be_there_and_may_be_missing(model: Path) -> None:
    """A head that is the embedding, and the buffers of older checkpoints."""
    load(model)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    change_weights(model, lambda weights: {**weights, "lm_head.weight": weights[EMBEDDING].clone(), **extra})
    load(model)
    refuse_unsound(model, "model")


def test_a_config_that_computes_nan_is_refused() -> None:
    config = tiny_config("llama", rope_parameters={"rope_type": "default", "rope_theta": math.nan})
    with pytest.raises(UnsupportedModel, match="inv_freq"):
        new_decoder(config, seed=0, device="cpu", dtype=torch.float32)


def write(name: str, content: Any) -> Callable[[Path], None]:
    return lambda model: (
        (model / name).write_text(content if isinstance(content, str) else json.dumps(content)) and None
    )


def only(*names: str) -> Callable[[Path], None]:
    """Leaves nothing but files of these names in the directory."""

    def leave(model: Path) -> None:
        for file in model.iterdir():
            file.unlink()
        for name in names:
            (model / name).write_text(json.dumps({"base_model_name_or_path": "org/base"}))

    return leave


DIRECTORIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "adapter": (only("adapter_config.json", "adapter_model.safetensors"), "adapter .*changes to org/base"),
    "adapter beside a model": (write("adapter_config.json", {}), "adapter beside a model"),
    "gguf": (only("model-q4.gguf"), r"GGUF \(model-q4\.gguf\)"),
    "empty": (only(), r"holds no config\.json"),
    "gptq": (lambda model: change_config(model, quantization_config={"quant_method": "gptq"}), r"quantised \(gptq\)"),
    "old gptq": (write("quantize_config.json", {"bits": 4}), r"quantised \(gptq\)"),
    "bitsandbytes": (
        lambda model: change_config(model, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"quantised \(bitsandbytes\)",
    ),
    "fp8 of a part": (
        lambda model: change_config(model, text_config={"quantization_config": {"quant_method": "fp8"}}),
        r"quantised \(fp8\)",
    ),
    "integers": (
        lambda model: safetensors.numpy.save_file({EMBEDDING: np.zeros((4, 4), np.int8)}, model / "model.safetensors"),
        "quantised .tensors of I8.",
    ),
    "cut config": (write("config.json", "{"), "not valid JSON"),
    "config without end": (lambda model: (model / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "config of another kind": (write("config.json", []), "holds no table"),
    "missing shard": (
        write("model.safetensors.index.json", {"weight_map": {EMBEDDING: "model-00002-of-00002.safetensors"}}),
        r"files that are not there: model-00002-of-00002\.safetensors",
    ),
}


@pytest.mark.parametrize("fault", DIRECTORIES)
def test_what_is_no_model_is_said_to_be_what_it_is(model: Path, fault: str) -> None:
    """Already where a recipe names it, and without torch."""
    change, named = DIRECTORIES[fault]
    change(model)
    for look in (refuse_directory, load):
        with pytest.raises(UnsupportedModel, match=named) as caught:
            look(model)
        assert caught.value.fix
    with pytest.raises(RecipeError, match=named):
        model_directory(str(model))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "wide"},
        {"model_type": "no-such"},
        {"model_type": ["llama"]},
        {"vocab_size": -3},
    ],
)
def test_a_config_that_transformers_stumbles_over_is_refused(model: Path, changes: dict[str, Any]) -> None:
    change_config(model, **changes)
    with pytest.raises(UnsupportedModel, match="no causal language model can be loaded"):
        load(model)


def test_code_that_comes_with_a_model_runs_only_where_the_recipe_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    change_config(model, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"})
    with pytest.raises(UnsupportedModel, match=r"runs code that comes with it: own\.py") as caught:
        load(model)
    assert "trust_remote_code = true" in caught.value.fix
    (model / "own.py").write_text("raise RuntimeError('it ran')\n")
    with pytest.raises(UnsupportedModel, match="RuntimeError: it ran"):
        load_decoder(model, device="cpu", dtype=torch.float32, trust_remote_code=True)
    write("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["other.Own", None]}})(model)
    with pytest.raises(UnsupportedModel, match=r"runs code that comes with it: other\.py"):
        renderer_for(model)


def test_code_of_a_model_that_transformers_knows_is_not_needed(model: Path) -> None:
    change_config(model, auto_map={"AutoModelForCausalLM": "own.Own"})
    load(model)


# What is drawn and learned


def test_logits_that_are_not_finite_are_no_draw() -> None:
    decoder = tiny_decoder()
    decoder.head_weight.data[7] = 3e38
    sampler = native_sampler(decoder, NumberRenderer())
    with pytest.raises(UnsupportedModel, match=r"not finite for 2 of 2 requests, .*ticket 0 at token 0 .*of 3 tokens"):
        list(sampler.generate([Request((2, 3, 4), SamplingParams(max_tokens=4), place) for place in range(2)]))


def test_a_token_without_a_row_is_refused_before_anything_is_drawn(model: Path) -> None:
    template = (model / "chat_template.jinja").read_text()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(model)
    (model / "chat_template.jinja").write_text("<|im_start|>" + template)
    renderer, decoder = renderer_for(model), load_decoder(model, device="cpu", dtype=torch.float32)
    prompt = renderer.render(QUESTION)
    named = "gives token 896, and the model's embedding has 896 rows"
    with pytest.raises(UnsupportedModel, match=named):
        next(native_sampler(decoder, renderer).generate([Request(prompt, SamplingParams(max_tokens=2), 1)]))
    with pytest.raises(UnsupportedModel, match=named):
        learn(LocalLearner(decoder, OptimizerSettings()), prompt)


def test_a_row_longer_than_the_positions_is_refused() -> None:
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    learn(learner, [2] * 129)
    with pytest.raises(UnsupportedModel, match="129 tokens does not fit into the model's 128 positions"):
        learn(learner, [2] * 130)


def learn(learner: LocalLearner, tokens: Any) -> None:
    (batch,) = pack([Example(tokens, [0.0] + [1.0] * (len(tokens) - 1), "ce")], 1)
    learner.forward_backward(batch, LossSettings(), 1.0)


def test_a_prompt_that_ends_a_text_is_refused() -> None:
    sampler = native_sampler(tiny_decoder(), NumberRenderer())
    (stop,) = NumberRenderer.stop_tokens
    with pytest.raises(UnsupportedModel, match=f"ends in token {stop}"):
        next(sampler.generate([Request((2, stop), SamplingParams(max_tokens=2), 1)]))


# Templates and tokenizers

TEMPLATES = {
    "{{ raise_exception('only tools here') }}": "can't show a conversation of user: it says: only tools here",
    "{{ messages[7].content }}": "can't show a conversation of user",
    "{{ 1 // 0 }}": "can't show a conversation of user",
    "{% for %}": "can't show a conversation of user",
    "{{ strftime_now('%d %b %Y') }}": r"writes the date \(strftime_now\)",
    "{{ ['a', 'b'] |random }}": r"draws by chance \(`random`\)",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_raises_draws_or_looks_at_the_clock_is_refused(model: Path, template: str) -> None:
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(UnsupportedModel, match=TEMPLATES[template]) as caught:
        renderer_for(model).render(QUESTION)
    assert caught.value.where == str(model)


def test_a_template_that_could_look_at_the_clock_and_does_not_is_used(model: Path) -> None:
    (model / "chat_template.jinja").write_text(
        "{% if strftime_now is defined and tools %}{{ strftime_now('%Y') }}{% endif %}{{ messages[0].content }}"
    )
    assert renderer_for(model).render(QUESTION)


@pytest.mark.parametrize(
    ("template", "silent"),
    [
        ("hello", "user"),
        ("{% for part in messages[0].content if part.type == 'text' %}{{ part.text }}{% endfor %}", "user"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "system"),
    ],
    ids=["constant", "contents in parts", "no system"],
)  # fmt: skip
def test_a_template_that_leaves_out_what_is_said_is_refused(model: Path, template: str, silent: str) -> None:
    (model / "chat_template.jinja").write_text(template)
    messages = (Message("system", "be brief"), *QUESTION) if silent == "system" else (Message("user", "3 + 5 ?"),)
    with pytest.raises(UnsupportedModel, match=f"leaves out what is said by: {silent}\\n"):
        renderer_for(model).render(messages)


@pytest.mark.parametrize("stop", ["<|end|>", 1.5, True, -1, 10**6, {"a": 1}, [1, "x"]])
def test_a_stop_that_is_no_token_is_refused(model: Path, stop: Any) -> None:
    write("generation_config.json", {"eos_token_id": stop})(model)
    with pytest.raises(UnsupportedModel, match="eos_token_id names no token"):
        renderer_for(model)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_damaged_file_beside_the_model_is_refused(model: Path, name: str) -> None:
    (model / name).write_text("{")
    with pytest.raises(ReasonmillError):
        renderer_for(model)


# What a stage has written


def test_a_model_has_changed_where_one_number_has(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "other")
    assert has_same_weights(tmp_path / "other", model)
    change_weights(tmp_path / "other", lambda weights: with_number(weights, 7.0))
    assert not has_same_weights(tmp_path / "other", model)


def test_a_written_model_that_is_cut_off_is_not_committed(model: Path) -> None:
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors can't be read"):
        refuse_unsound(model, "model")
