"""The benchmark of mismatch, on a network of two layers: it runs, and its bars hold there."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mismatch.py"


@pytest.fixture
def mismatch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mismatch", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mismatch"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_sampler_and_learner_are_no_further_from_fp32_than_transformers(
    mismatch: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "mismatch.py --shape tiny --tokens 600 --max-tokens 30 --device cpu --json"
    monkeypatch.setattr(sys, "argv", asked.split())
    assert mismatch.main() == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["tokens"] >= 600
    # Rounding is seen at all, and the learner, scored again, gives the very same.
    assert measured["nats"]["transformers in bf16, from fp32"]["mean"] > 1e-4
    assert measured["gspo_cut"]["against the learner's, scored first"] == 0


def test_a_share_is_of_sequences_and_a_distance_of_tokens(mismatch: Any) -> None:
    scores, old = [[-1.0, -2.0], [-3.0]], [[-1.0, -2.0], [-3.001]]
    assert mismatch._cut(scores, old, 3e-4, 4e-4) == 0.5
    assert mismatch._distance(scores, old)["mean"] == pytest.approx(0.001 / 3)
