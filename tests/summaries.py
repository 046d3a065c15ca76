"""Summaries of runs, as summary.json has them."""

from collections.abc import Mapping
from typing import Any


def stage(name: str, kind: str, **more: Any) -> dict[str, Any]:
    made = {"digest": "0123456789abcdef" * 4, "cached": False, "seconds": 30.0, "tokens": 1500, "repeatable": True}
    adopted: dict[str, Any] = {"adopted": None, "made_from_adopted": []}
    return {"name": name, "kind": kind, "key": f"key-{name}", **made, **adopted, "metrics": {}, **more}


def figure(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def evaluation(pass_at_1: Mapping[str, float | None], task: str = "countdown-3", **more: Any) -> dict[str, Any]:
    told = {"domain": "reasoning", "problems": 500, "samples": 4, "seed": 0, "measures": {}, **more}
    return {"tasks": {task: {"pass@1": pass_at_1, **told}}, "measures": {}}


def evaluating(name: str, model: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A stage that evaluates a model."""
    return stage(name, "evaluate", reads={"from": model}, metrics=metrics)


def summary(*stages: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "tiny-zero", "seed": 17, "reasonmill": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0",
        "threads": 2, "machine": "a <small> machine", "stages": list(stages),
    }  # fmt: skip


def before_and_after() -> dict[str, Any]:
    """A run that trains with RL, and evaluates before and after."""
    before = evaluation(
        figure(0.135, 0.114, 0.156), format=figure(0.71, 0.7, 0.72), thinking_tokens=figure(11.25, 8.1, 14.3)
    )
    after = evaluation(figure(0.631, 0.61, 0.652), thinking_tokens=figure(118.4, 115.2, 121.6))
    return summary(
        stage("base", "pretrain", cached=True, tokens=114_000_000, digest="feedc0ffee00" + "0" * 52),
        evaluating("eval-base", "base", before),
        stage("zero", "rl", seconds=42.0),
        evaluating("eval-zero", "zero", after),
    )
