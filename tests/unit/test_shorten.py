"""A student with fewer layers: those that are left compute what they computed, and everything else stays."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from contexts import a_context
from reasonmill.errors import RecipeError
from reasonmill.model.directory import beside_weights
from reasonmill.recipe.reference import shipped_bases
from reasonmill.stage import Input
from reasonmill.stages.shorten import Settings, layers_left, run
from reasonmill.store.commit import MANIFEST
from reasonmill.store.home import Home

BASE = shipped_bases()["tiny-base"]


def shortened(source: Path, layers: int, folder: Path) -> Path:
    settings = Settings.model_validate({"name": "small", "kind": "shorten", "from": "base", "layers": layers})
    with Home.open(folder / "home") as home:
        outcome = run(settings, {"from": Input(source, "b" * 64)}, a_context(home))
    target = folder / "small"
    target.mkdir()
    outcome.write(target)
    return target


def copy_base(target: Path) -> None:
    shutil.copytree(BASE, target, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("depth", "left", "kept"), [(4, 2, (0, 3)), (30, 4, (0, 10, 19, 29)), (5, 4, (0, 1, 3, 4)), (3, 2, (0, 2))]
)
def test_the_first_and_the_last_stay_and_others_at_even_distances(depth: int, left: int, kept: tuple[int, ...]) -> None:
    assert layers_left(depth, left) == kept


def test_what_is_left_computes_what_it_computed(tmp_path: Path) -> None:
    whole: Any = AutoModelForCausalLM.from_pretrained(BASE)
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[0], whole.model.layers[3]])
    small = AutoModelForCausalLM.from_pretrained(shortened(BASE, 2, tmp_path))
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        for place, layer in enumerate(whole.model.layers):
            layer.self_attn.layer_idx = place
        assert torch.equal(small(tokens, use_cache=False).logits, whole(tokens, use_cache=False).logits)


def test_all_other_files_stay_and_lists_by_layer_are_shortened(tmp_path: Path) -> None:
    source = tmp_path / "base"
    shutil.copytree(BASE, source)
    config = json.loads((source / "config.json").read_text())
    config |= {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}
    (source / "config.json").write_text(json.dumps(config))
    made = shortened(source, 3, tmp_path)
    changed = {"config.json", "model.safetensors"}
    for file in source.iterdir():
        assert file.name in changed or (made / file.name).read_bytes() == file.read_bytes()
    written = json.loads((made / "config.json").read_text())
    assert written["num_hidden_layers"] == 3
    assert written["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]


def test_a_model_of_an_earlier_stage_is_shortened_without_the_list_of_its_files(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        digest = home.objects.put(copy_base)
        earlier = home.objects.path(digest)
    assert (earlier / MANIFEST).exists()
    assert not (shortened(earlier, 2, tmp_path) / MANIFEST).exists()
    assert MANIFEST not in {file.name for file in beside_weights(earlier)}


def test_what_can_not_be_shortened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has 4 layers, and 4 are to be left"):
        shortened(BASE, 4, tmp_path)
    (tmp_path / "bare").mkdir()
    shutil.copyfile(BASE / "config.json", tmp_path / "bare" / "config.json")
    with pytest.raises(RecipeError, match="no weights as safetensors"):
        shortened(tmp_path / "bare", 2, tmp_path)
