"""The comparison of a model with plain transformers: what it calls the same, and that it sees what is not."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reasonmill.recipe.reference import model_directory
from reasonmill.types import Completion, Grade, Group, Message, Problem, Rollout

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("seeds", "generate_outside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("generate_outside")


def a_model(path: Path, kept: torch.dtype, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2, **config}))
    (path / "tokenizer.json").write_text("{}")
    save_file({"weight": torch.zeros(2, 2, dtype=kept)}, path / "model.safetensors")
    return path


def groups(*accuracies: tuple[float | None, ...], tokens: int = 1) -> list[Group]:
    completion = Completion((1,) * tokens, None, (True,) * tokens, "", "stop", 0)

    def grade(value: float | None) -> Grade:
        return Grade(None, error="too slow") if value is None else Grade(value, {"accuracy": value})

    return [
        Group(
            Problem("sums", (Message("user", f"problem {place}"),), "1"),
            tuple(Rollout((1,), completion, grade(value)) for value in each),
        )
        for place, each in enumerate(accuracies)
    ]


def test_files_and_config_are_compared_by_what_they_hold(outside: Any, tmp_path: Path) -> None:
    base = a_model(tmp_path / "base", torch.bfloat16, transformers_version="5.0.0", torch_dtype="bfloat16")
    model = a_model(tmp_path / "model", torch.bfloat16, transformers_version="5.24.0", dtype="bfloat16")
    assert outside.files_verdict(model, base).met
    assert outside.config_verdict(model, base).met  # another program wrote the same
    (model / "tokenizer.json").write_text("{} ")
    (model / "generation_config.json").write_text("{}")
    (base / "chat_template.jinja").write_text("")
    said = outside.files_verdict(model, base)
    assert not said.met
    assert said.figures == (
        "chat_template.jinja is missing; generation_config.json is new; tokenizer.json has other bytes"
    )
    other = a_model(tmp_path / "other", torch.float32, rope_theta=1e6, dtype="bfloat16")
    said = outside.config_verdict(other, base)
    assert not said.met
    assert "1 weights have another type" in said.figures
    assert "rope" in said.figures


def test_completions_part_where_the_first_token_differs_or_one_ends(outside: Any) -> None:
    prompts, ours = [(7, 8)] * 3, [(1, 2, 3), (1, 2), (1, 2)]
    found = outside.partings(prompts, ours, [[1, 2, 3], [1, 5, 6], [1, 2, 4]])
    assert [(each.prompt, each.place, each.sampler, each.generate) for each in found] == [(1, 1, 2, 5), (2, 2, None, 4)]
    assert [each.prefix for each in found] == [(7, 8, 1), (7, 8, 1, 2)]
    assert not outside.greedy_verdict(3, [outside.replace(found[0], likeliest=((5, -0.5), (2, -0.75)))]).met
    assert outside.greedy_verdict(3, []).met


def test_the_same_pass_at_1_needs_an_interval_that_is_narrow_and_holds_0(outside: Any) -> None:
    half = [(1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    same = outside.Both.of(groups(*half * 100), groups(*half[::-1] * 100))
    assert same.difference.value == 0
    assert outside.same_verdict(same, 0.2).met
    wide = outside.same_verdict(same, same.reach / 2)
    assert not wide.met
    assert "ask 4.0 times as many" in wide.figures
    apart = outside.Both.of(groups(*[(1.0, 0.0)] * 100), groups(*[(0.0, 0.0)] * 100))
    assert not outside.same_verdict(apart, 1.0).met
    # Two-sided: the sampler may be the better one.
    assert apart.p_value == outside.Both.of(groups(*[(0.0, 0.0)] * 100), groups(*[(1.0, 0.0)] * 100)).p_value < 0.001
    assert not outside.each_verdict({"sums": apart.p_value, "other": 1.0}).met
    assert outside.each_verdict({"sums": 0.006, "other": 1.0}).met


def test_other_lengths_are_seen_where_nothing_is_solved(outside: Any) -> None:
    nothing = [(0.0, 0.0)] * 40
    longer = outside.Both.of(groups(*nothing, tokens=3), groups(*nothing, tokens=2))
    assert longer.p_value == 1
    assert longer.p_of_length < 0.001
    assert outside.Both.of(groups(*nothing), groups(*nothing)).p_of_length == 1


def test_what_no_grader_could_tell_is_left_out_and_counted(outside: Any) -> None:
    found = outside.Both.of(groups((1.0, None), (None, None), (1.0, 0.0)), groups((1.0, 1.0), (0.0, 0.0), (1.0, 0.0)))
    assert found.outside.value == pytest.approx(2 / 3)
    assert found.difference.value == 0  # of the first and the last
    assert found.ungraded == (3, 0)


@pytest.mark.check
@pytest.mark.parametrize("stops", [True, False])
def test_a_model_is_the_same_outside_unless_it_stops_elsewhere(
    outside: Any, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_directory("tiny-base"), model)
    settings = json.loads((model / "generation_config.json").read_text())
    # Nothing of this may reach what is compared.
    settings |= {"do_sample": True, "temperature": 0.2, "top_k": 1, "repetition_penalty": 3.0, "min_new_tokens": 9}
    if not stops:
        # The sampler still knows the tokenizer's end token.
        del settings["eos_token_id"]
    (model / "generation_config.json").write_text(json.dumps(settings))
    asked = f"generate_outside.py {model} {model} --task countdown-3 --problems 24 --samples 2 --greedy 12"
    monkeypatch.setattr(sys, "argv", [*asked.split(), "--max-tokens", "96", "--widest", "0.4", "--json"])
    assert outside.main() == (0 if stops else 1)
    found = json.loads(capfd.readouterr().out)
    missed = {verdict["bar"] for verdict in found["verdicts"] if not verdict["met"]}
    assert ("greedy completions in fp32 are the same" in missed) is not stops
    assert 0 < found["tasks"]["countdown-3"]["inside"]["value"] < 1
