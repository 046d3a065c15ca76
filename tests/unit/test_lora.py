"""LoRA: what an adapter computes and what its matrices' gradients are; that nothing else moves; its files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import Batch, pack
from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.adapter_config import ADDED, read_adapter_config
from reasonmill.model.decoder import Decoder, load_decoder
from reasonmill.model.lora import Adapter, LoraLinear, Switch, merge_adapter
from reasonmill.model.packed import PackedLayout
from reasonmill.recipe.models import RecipeModel
from reasonmill.types import Example, Request, SamplingParams
from tiny_models import NumberRenderer, learner_state, native_sampler, plain_network, tiny_decoder

TOKENS = torch.arange(2, 20)


def adapted(
    architecture: str = "qwen2", *, dtype: torch.dtype = torch.float32, targets: tuple[str, ...] = ()
) -> tuple[Decoder, Adapter]:
    """A tiny decoder, and an adapter that changes what it computes."""
    decoder = tiny_decoder(architecture, dtype=dtype)
    adapter = Adapter(decoder.network, 4, 8.0, targets, 3)
    for name, parameter in decoder.network.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return decoder, adapter


def learner_of(decoder: Decoder, adapter: Adapter | None) -> LocalLearner:
    return LocalLearner(decoder, OptimizerSettings(), adapter=adapter)


def hidden(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder.hidden(TOKENS, torch.arange(len(TOKENS)), PackedLayout([len(TOKENS)], "cpu"))


def batch() -> Batch:
    (made,) = pack([Example(TOKENS.tolist(), [0.0] + [1.0] * (len(TOKENS) - 1), "ce")], 64)
    return made


def train(learner: LocalLearner, steps: int = 3) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(learner.forward_backward(batch(), LossSettings(), 17.0)["loss"])
        learner.optim_step(1e-2)
    return losses


def saved(decoder: Decoder, adapter: Adapter, directory: Path) -> Path:
    directory.mkdir()
    learner_of(decoder, adapter).save_model(directory)
    return directory


# What is computed


def test_a_layer_and_its_gradients_are_what_is_computed_by_hand() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 5)
    layer = LoraLinear(plain, 2, 1.5, Switch(), 7)
    assert float(layer.lora_A.detach().abs().max()) <= 6**-0.5
    assert not layer.lora_B.any()
    nn.init.normal_(layer.lora_B)
    states, of_out = torch.randn(4, 6), torch.randn(4, 5)
    out = layer(states)
    a, b = layer.lora_A.detach(), layer.lora_B.detach()
    torch.testing.assert_close(out, plain(states) + 1.5 * states @ a.T @ b.T)
    out.backward(of_out)
    torch.testing.assert_close(layer.lora_A.grad, 1.5 * b.T @ of_out.T @ states)
    torch.testing.assert_close(layer.lora_B.grad, 1.5 * of_out.T @ states @ a.T)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "phi3", "qwen3_moe", "deepseek_v3"])
def test_a_saved_model_has_its_adapter_merged_in(architecture: str, tmp_path: Path) -> None:
    base = hidden(tiny_decoder(architecture))
    decoder, adapter = adapted(architecture)
    assert not torch.allclose(hidden(decoder), base, atol=0.1)
    with adapter.off():
        assert torch.equal(hidden(decoder), base)
    loaded = load_decoder(saved(decoder, adapter, tmp_path / "model"), device="cpu", dtype=torch.float32)
    torch.testing.assert_close(hidden(loaded), hidden(decoder), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_adapter_is_trained_kept_and_published(dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = tiny_decoder(dtype=dtype)
    before = {name: weight.detach().clone() for name, weight in decoder.network.named_parameters()}
    learner = learner_of(decoder, Adapter(decoder.network, 4, 8.0, ["q_proj", "mlp.down_proj"], 3))
    sampler = native_sampler(decoder, NumberRenderer())
    losses = train(learner)
    assert losses[-1] < losses[0]
    now = dict(decoder.network.named_parameters())
    assert all(torch.equal(now[name], weight) and now[name].grad is None for name, weight in before.items())
    own = sorted(now.keys() - before.keys())
    assert len(own) == 2 * 2 * 2  # layers, targets, matrices
    assert all(now[name].dtype == torch.float32 for name in own)
    parts = {name.partition("/")[2] for name in learner_state(learner) if "/" in name}
    assert sorted(parts) == own
    assert learner.num_parameters == sum(now[name].numel() for name in own)

    learner.publish(sampler, 3)
    asked = [Request((2, 3), SamplingParams(max_tokens=12), key) for key in range(4)]
    for _, completion in sampler.generate(asked):
        tokens = [2, 3, *completion.tokens]
        (row,) = pack([Example(tokens, [0.0] * 2 + [1.0] * len(completion.tokens), "ce")], 64)
        scored = learner.logprobs(row)[-len(completion.tokens) :]
        drawn = torch.tensor(completion.logprobs)
        torch.testing.assert_close(scored, drawn, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.3)


def test_a_resumed_adapter_goes_on_to_the_same_bits_over_the_same_base(tmp_path: Path) -> None:
    whole, resumed = (learner_of(decoder, Adapter(decoder.network, 4, 8.0, [], seed))
                      for seed, decoder in enumerate([tiny_decoder(), tiny_decoder()]))  # fmt: skip
    train(whole)
    whole.save(tmp_path)
    train(whole)
    resumed.load(tmp_path)
    train(resumed)
    ended, wanted = learner_state(resumed), learner_state(whole)
    assert ended.keys() == wanted.keys()
    assert all(torch.equal(ended[name], wanted[name]) for name in wanted)


def test_the_reference_is_the_model_without_the_adapter_and_takes_no_copy() -> None:
    of_base = learner_of(tiny_decoder(), None).logprobs(batch())
    learner = learner_of(*adapted())
    train(learner)
    learner.keep_reference()
    assert torch.equal(learner.reference_logprobs([batch()]), of_base)
    assert not torch.allclose(learner.logprobs(batch()), of_base, atol=1e-2)
    assert not any(name.startswith("reference/") for name in learner_state(learner))


def test_an_adapter_begins_as_its_seed_says() -> None:
    def drawn(seed: int) -> list[Tensor]:
        decoder = tiny_decoder()
        Adapter(decoder.network, 4, 8.0, ["q_proj"], seed)
        return [p.detach() for name, p in decoder.network.named_parameters() if name.endswith("lora_A")]

    (one, other), (again, _), (another, _) = drawn(1), drawn(1), drawn(2)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, another)


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (("q_proj", "query"), "no part called query"),
        (("lm_head",), "lm_head, which no adapter"),
        (("embed_tokens",), "model.embed_tokens, which no adapter"),
    ],
)
def test_targets_that_take_no_adapter_are_refused(targets: tuple[str, ...], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named) as caught:
        adapted(targets=targets)
    assert "down_proj" in caught.value.fix


def test_experts_and_what_peft_takes_for_them_have_no_adapter() -> None:
    decoder, _ = adapted("deepseek_v3")
    changed = {name.split(".")[-2] for name, p in decoder.network.named_parameters() if p.requires_grad}
    assert changed == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    with pytest.raises(UnsupportedModel, match=r"mlp\.gate_proj, .*which no adapter is added to"):
        adapted("deepseek_v3", targets=("gate_proj",))


# Files


def test_a_written_adapter_is_merged_into_what_was_saved(tmp_path: Path) -> None:
    decoder, adapter = adapted(targets=("self_attn.q_proj", "up_proj"))
    model = saved(decoder, adapter, tmp_path / "model")
    config = json.loads((model / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    assert config["target_modules"] == ["self_attn.q_proj", "up_proj"]
    tensors = load_file(model / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"].shape == (4, 32)
    assert len(tensors) == 2 * 2 * 2
    fresh = tiny_decoder()
    merge_adapter(fresh.network, model / "adapter")
    merged = load_decoder(model, device="cpu", dtype=torch.float32).network.state_dict()
    assert all(torch.equal(weight, merged[name]) for name, weight in fresh.network.state_dict().items())


def change(**changes: Any) -> Callable[[Path], None]:
    def changed(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return changed


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def changed(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path)

    return changed


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
ADAPTERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "dora": (change(use_dora=True), "use_dora"),
    "whole modules": (change(modules_to_save=["lm_head"]), "modules_to_save"),
    "another kind": (change(peft_type="IA3"), "peft_type 'IA3'"),
    "biases": (change(bias="all"), "bias 'all'"),
    "a changed base": (change(init_lora_weights="pissa"), "init_lora_weights 'pissa'"),
    "no rank": (change(r=None), "settings can't be read"),
    "no weights": (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    "cut weights": (lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"1"), "can't be read"),
    "half a pair": (tensors(lambda held: held.pop(KEY.format("A"))), "no pairs of matrices: model.layers.0"),
    "an embedding": (tensors(lambda held: held.update({"embed.lora_embedding_A": torch.ones(1)})), "embed.lora_embed"),
    "another shape": (tensors(lambda held: held.update({KEY.format("B"): torch.ones(9, 4)})), r"are \[9, 4\] by"),
    "another model": (
        tensors(lambda held: held.update({KEY.format(p).replace(".0.", ".7."): torch.ones(4, 4) for p in "AB"})),
        "'model.layers.7.self_attn.q_proj' is no linear layer",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def of_queries() -> Adapter:
    return adapted(targets=("q_proj",))[1]


@pytest.fixture(scope="module")
def unchanged() -> Decoder:
    """One that nothing is merged into."""
    return tiny_decoder()


@pytest.mark.parametrize("fault", ADAPTERS)
def test_adapters_that_are_not_understood_are_refused_by_name(
    of_queries: Adapter, unchanged: Decoder, fault: str, tmp_path: Path
) -> None:
    spoil, named = ADAPTERS[fault]
    of_queries.write(tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(UnsupportedModel, match=named) as caught:
        merge_adapter(unchanged.network, tmp_path / "adapter")
    assert caught.value.fix


def test_scales_follow_ranks_roots_and_patterns(of_queries: Adapter, tmp_path: Path) -> None:
    of_queries.write(tmp_path / "adapter")
    change(rank_pattern={r"layers\.1\..*q_proj": 16}, alpha_pattern={"k_proj": 4})(tmp_path / "adapter")
    config = read_adapter_config(tmp_path / "adapter")
    modules = ("layers.0.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.0.k_proj")
    assert [config.scale(module) for module in modules] == [2.0, 0.5, 1.0]
    change(use_rslora=True)(tmp_path / "adapter")
    config = read_adapter_config(tmp_path / "adapter")
    assert [config.scale(module) for module in modules] == [4.0, 2.0, 2.0]


# Models of a recipe


def test_a_model_of_a_recipe_may_be_an_adapter(tmp_path: Path) -> None:
    tiny_decoder().network.save_pretrained(tmp_path / "base")
    decoder, adapter = adapted()
    adapter.write(tmp_path / "adapter")
    for named in ({"base": "base"}, {}):
        model = RecipeModel.model_validate({"path": "adapter", **named}, context={"folder": tmp_path})
        if not named:
            with pytest.raises(RecipeError, match="does not say which model"):
                model.directory  # noqa: B018
            change(base_model_name_or_path=str(tmp_path / "base"))(tmp_path / "adapter")
        assert (model.directory, model.is_as_it_lies) == (tmp_path / "base", False)
    digest = model.digest
    model.link_as_meant(tmp_path / "linked", model.directory)
    loaded = load_decoder(tmp_path / "linked", device="cpu", dtype=torch.float32)
    torch.testing.assert_close(hidden(loaded), hidden(decoder), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "linked" / ADDED).is_symlink()
    change(lora_alpha=9)(tmp_path / "adapter")
    assert model.digest != digest
    change(base_model_name_or_path="owner/elsewhere")(tmp_path / "adapter")
    with pytest.raises(RecipeError, match="base of the adapter: missing model: 'owner/elsewhere'") as caught:
        model.directory  # noqa: B018
    assert 'base = "DIR"' in caught.value.fix
    change(use_dora=True)(tmp_path / "adapter")
    with pytest.raises(RecipeError, match=r"unusable adapter: .*use_dora"):
        model.directory  # noqa: B018


def test_a_base_belongs_to_an_adapter(tmp_path: Path) -> None:
    tiny_decoder().network.save_pretrained(tmp_path / "model")
    model = RecipeModel.model_validate({"path": "model", "base": "model"}, context={"folder": tmp_path})
    with pytest.raises(RecipeError, match="'model' is no adapter"):
        model.directory  # noqa: B018


# PEFT itself


@pytest.mark.check
def test_peft_loads_what_is_written(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    for architecture in ("qwen2", "deepseek_v3"):
        decoder, adapter = adapted(architecture)
        adapter.write(tmp_path / architecture)
        wrapped = peft.PeftModel.from_pretrained(plain_network(tiny_decoder(architecture)), tmp_path / architecture)
        assert_same_hidden(wrapped.get_base_model(), decoder)


@pytest.mark.check
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": r".*\.1\..*(k|v)_proj", "use_rslora": True},
        {"target_modules": "all-linear", "rank_pattern": {"mlp.up_proj": 2}, "alpha_pattern": {"o_proj": 1}},
    ],
)
def test_what_peft_writes_is_read(settings: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    wrapped = peft.get_peft_model(plain_network(tiny_decoder()), config)
    wrapped.save_pretrained(tmp_path)
    decoder = tiny_decoder()
    merge_adapter(decoder.network, tmp_path)
    assert not torch.allclose(hidden(decoder), hidden(tiny_decoder()), atol=0.05)
    assert_same_hidden(wrapped.get_base_model(), decoder)


def assert_same_hidden(network: Any, decoder: Decoder) -> None:
    with torch.no_grad():
        states = network.get_decoder()(input_ids=TOKENS[None], use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(states, hidden(decoder), rtol=1e-4, atol=1e-4)
