"""Checkpoints as others save them: in parts, as pickles of weights, in any type; and what results keep of them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reasonmill.errors import UnsupportedModel
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import load_decoder
from reasonmill.model.directory import kept_in
from reasonmill.model.lora import Adapter
from reasonmill.model.runnable import refuse_unrunnable
from reasonmill.model.saving import has_same_weights, refuse_unsound
from reasonmill.recipe.reference import model_directory, shipped_bases

HEAD = "lm_head.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(shipped_bases()["tiny-base-weak"], tmp_path / "model")
    return tmp_path / "model"


def weights(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def loaded(directory: Path) -> dict[str, Tensor]:
    network = load_decoder(model_directory(str(directory)), device="cpu", dtype=torch.float32).network
    return dict(network.named_parameters())


def in_parts(directory: Path, save: Any, stem: str, ending: str) -> None:
    """Saves the weights as two files and their index, in place of one."""
    state = weights(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(state)
    places = {}
    for number, part in enumerate((names[:3], names[3:]), start=1):
        file = f"{stem}-{number:05}-of-00002.{ending}"
        save({name: state[name] for name in part}, directory / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (directory / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("save", "stem", "ending"), [(save_file, "model", "safetensors"), (torch.save, "pytorch_model", "bin")]
)
def test_weights_in_parts_are_read_and_a_missing_part_is_named(model: Path, save: Any, stem: str, ending: str) -> None:
    whole = loaded(model)
    in_parts(model, save, stem, ending)
    parts = loaded(model)
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    (model / f"{stem}-00002-of-00002.{ending}").unlink()
    with pytest.raises(UnsupportedModel, match=f"files that are not there: {stem}-00002-of-00002.{ending}"):
        load_decoder(model, device="cpu", dtype=torch.float32)


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self._place = str(place)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._place,)


@pytest.mark.parametrize("where", ["beside", "within"])
def test_a_pickle_is_read_for_its_weights_and_runs_nothing(model: Path, tmp_path: Path, where: str) -> None:
    whole, state = loaded(model), weights(model)
    (model / "model.safetensors").unlink()
    torch.save(state, model / "pytorch_model.bin")
    plain = loaded(model)
    assert all(torch.equal(plain[name], tensor) for name, tensor in whole.items())
    trap = tmp_path / "trap"
    evil = {**state, "evil": Evil(trap)} if where == "beside" else {**state, HEAD: Evil(trap)}
    torch.save(evil, model / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"no causal language model can be loaded: .*Weights only load failed"):
        load_decoder(model, device="cpu", dtype=torch.float32)
    assert not trap.exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)  # the trap is one
    assert trap.exists()


@pytest.mark.parametrize("trained", ["weights", "adapter"])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_what_is_trained_keeps_type_and_files_of_what_it_was_made_from(
    model: Path, tmp_path: Path, kind: str, trained: str
) -> None:
    dtype = getattr(torch, kind)
    save_file({name: tensor.to(dtype) for name, tensor in weights(model).items()}, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": kind}))
    kept = {
        "LICENSE": "mine",
        "README.md": "# a model",
        "special_tokens_map.json": '{ "eos_token":"<|end|>" }',
        "generation_config.json": '{"eos_token_id": 887,   "temperature": 0.7, "do_sample": true}',
        "additional_chat_templates/tools.jinja": "{{ messages }}",
    }
    (model / "additional_chat_templates").mkdir()
    for name, held in kept.items():
        (model / name).write_text(held)
    left = ["optimizer.pt", "training_args.bin", "model.onnx", ".gitattributes"]
    for name in left:
        (model / name).write_text("x")
    assert kept_in(model) == kind

    decoder = load_decoder(model, device="cpu", dtype=torch.float32)
    adapter = Adapter(decoder.network, 2, 4.0, (), 0) if trained == "adapter" else None
    learner = LocalLearner(decoder, OptimizerSettings(), companions=model, adapter=adapter)
    made = tmp_path / "made"
    made.mkdir()
    learner.save_model(made)
    assert {tensor.dtype for tensor in weights(made).values()} == {dtype}
    assert json.loads((made / "config.json").read_text())["dtype"] == kind
    beside = [file for file in model.rglob("*") if file.is_file() and file.name not in ("config.json", *left)]
    for file in beside:
        if file.name != "model.safetensors":
            assert (made / file.relative_to(model)).read_bytes() == file.read_bytes()
    assert not any((made / name).exists() for name in left)
    refuse_unsound(made, "model")
    assert has_same_weights(made, model)  # nothing was trained


def test_a_head_that_is_the_embedding_stays_it_in_another_type(model: Path, tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in weights(model).items()}
    state.pop(HEAD, None)
    save_file(state, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    learner = LocalLearner(
        load_decoder(model, device="cpu", dtype=torch.float32), OptimizerSettings(), companions=model
    )
    (tmp_path / "made").mkdir()
    learner.save_model(tmp_path / "made")
    assert weights(tmp_path / "made").keys() == state.keys()
    assert HEAD not in weights(tmp_path / "made")


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("model.safetensors", "the model has no weights: none of model.safetensors, pytorch_model.bin"),
        ("tokenizer*", "the model has no tokenizer"),
    ],
)
def test_what_a_model_lacks_is_said_before_it_is_loaded(model: Path, lost: str, said: str) -> None:
    refuse_unrunnable(model, trust_remote_code=False)
    for file in model.glob(lost):
        file.unlink()
    with pytest.raises(UnsupportedModel, match=said):
        refuse_unrunnable(model, trust_remote_code=False)


def test_a_model_is_looked_at_without_its_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"no weights at all")
    refuse_unrunnable(model, trust_remote_code=False)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_parameters": {"rope_type": "dynamic", "factor": 2}}))
    with pytest.raises(UnsupportedModel, match=r"rotary embedding .dynamic. depends on the other sequences"):
        refuse_unrunnable(model, trust_remote_code=False)
