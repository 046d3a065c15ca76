"""For every setting that stands beside the stages of a recipe: other values, and what has to come of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from knobs.flips import LEFT_OUT, Flip, With, admits, computes, decides, measures
from knobs.recipe_bench import COMMIT, OTHER_COMMIT
from reasonmill.activity import PHASES

Cases = Mapping[str, Flip]
_ASKED = {"name": "asked", "kind": "evaluate", "from": "tiny-base-weak", "samples": 1, "sampling": {"max_tokens": 16}}
_LEARNED = {
    "name": "learned",
    "kind": "rl",
    "from": "tiny-base-weak",
    "steps": 1,
    "problems_per_step": 1,
    "group_size": 4,
    "tasks": {"arithmetic": 1.0},
    "rewards": {"random": 1.0, "mine": 1.0},
    "schedule": {"peak": 1e-2},
    "sampling": {"max_tokens": 16},
}


def _evaluated(**more: Any) -> dict[str, Any]:
    return {"stage": [{**_ASKED, "tasks": {"arithmetic": 2}, **more}]}


def _short(name: str, of: str, layers: int) -> dict[str, Any]:
    return {"name": name, "kind": "shorten", "from": of, "layers": layers}


def _of(model: str, evaluation: str) -> dict[str, Any]:
    return {**_ASKED, "name": evaluation, "from": model, "tasks": {"arithmetic": 1}}


_HUB = {"hub": "lab/weak", "revision": COMMIT, "parameters": 1e6}
_CARRIED = {"package": "carried", "version": "1.0", "file": "one.gguf"}
# A model of the hub that is not here: what the recipe says of it is all that a plan knows.
_NOT_HERE = {"models.policy": {**_HUB, "hub": "lab/elsewhere", "layers": 2, "kv_heads": 1, "head_dim": 8}}
_OF_POLICY = _evaluated(**{"from": "policy"})
_SHOWN = {"models.policy.examples": [{"user": "1 + 1 ?", "assistant": "2 ."}]}
_MODEL: Cases = {
    "path": decides("tiny-base"),
    "base": decides("other").on(models__policy={"path": "adapted", "base": "tiny-base-weak"}),
    "hub": decides("lab/strong").on(models__policy=_HUB),
    "revision": decides(OTHER_COMMIT).on(models__policy=_HUB),
    "package": decides("carrier").on(models__policy=_CARRIED),
    "version": decides("1.1").on(models__policy=_CARRIED),
    "file": decides("two.gguf").on(models__policy=_CARRIED),
    "template": decides("r1-zero"),
    "system": decides("so"),
    "stop": decides([" "]),
    "examples": decides(_SHOWN["models.policy.examples"]),
    "examples.user": decides("2 + 2 ?").on(**_SHOWN),
    "examples.assistant": decides("5 .").on(**_SHOWN),
    **{
        name: Flip((value,), "measures", ("estimate",), _NOT_HERE, scene="load")
        for name, value in {
            "parameters": 2e6,
            "active_parameters": 5e5,
            "layers": 3,
            "hidden_size": 32,
            "kv_heads": 2,
            "head_dim": 16,
        }.items()
    },
}
_MINE = {"use": "arithmetic", "name": "sums"}
_ON_MINE = {"tasks": {"mine": _MINE}, **_evaluated(tasks={"mine": 2}, sampling={"max_tokens": 90})}
_WORDS = {"use": "./rewards.py:Brief"}
_REWARDED = {"rewards": {"mine": _WORDS}, "stage": [_LEARNED]}
_OVER_ROWS = {
    "data": {"mine": {"use": "rows", "train": "sums.jsonl", "test": "others.jsonl"}},
    "tasks": {"mine": {"use": "text", "data": "mine"}, "sums": {"use": "arithmetic"}},
    "stage": [{**_ASKED, "kind": "collect", "tasks": {"mine": 1}}],
}
_PLAYED = {
    **_ON_MINE,
    "tasks": {"mine": {**_MINE, "environment": "mine"}},
    "environments": {"mine": {"use": "second-try"}},
}
_SAID = {"stages": {"mine": {"use": "./one.py"}}, "stage": [{"name": "said", "kind": "mine"}]}
_LIMITS = {"seconds": 10.0}
_CYCLE = {
    "cycle": {"generations": 2, "teacher": "zero", "gate": "gate"},
    "stage": [
        _short("zero", "tiny-base", 3),
        _short("small", "zero", 2),
        _of("zero", "zero-eval"),
        _of("small", "small-eval"),
        {
            "name": "gate",
            "kind": "gate",
            "candidate": "small",
            "candidate_eval": "small-eval",
            "parent": "zero",
            "parent_eval": "zero-eval",
            "better": ["arithmetic"],
        },
        _short("smaller", "small", 2),
        {"name": "gate-2", "kind": "gate", "candidate": "small", "candidate_eval": "small-eval"}
        | {"parent": "zero", "parent_eval": "zero-eval", "better": ["arithmetic"], "alpha": 0.1},
    ],
}


def _isolated(group: str, given: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Flip]:
    """Where verdicts are computed, which is nothing of what they are."""
    path, limited = f"{group}.mine", {f"{group}.mine": {**told, "isolation": "worker", "limits": _LIMITS}}
    return {
        f"{group}.isolation": computes("worker", "jail", seen="workers").on(
            **given, **{path: {**told, "isolation": "none"}}
        ),
        f"{group}.limits": computes(_LIMITS | {"seconds": 3.0}, seen="workers").on(
            **given, **{path: {**told, "isolation": "worker"}}
        ),
        f"{group}.limits.seconds": computes(3.0, seen="workers").on(**given, **limited),
        f"{group}.limits.memory_gb": computes(3.0, seen="workers").on(**given, **limited),
        f"{group}.limits.processes": computes(3, seen="workers").on(**given, **limited),
    }


BASE: Mapping[str, Any] = {"name": "tried", "seed": 0, **_evaluated()}
CASES: Cases = {
    "name": measures("other", seen="called"),
    "seed": decides(1),
    "result": measures("two", seen="result").on(stage=[_short("two", "tiny-base", 2), _short("three", "tiny-base", 3)]),
    "trust_remote_code": admits(False).on(trust_remote_code=True, **_evaluated(**{"from": "own"})),
    "price_per_hour": measures(2.5, seen="price").at("plan"),
    "cycle": measures({"generations": 2, "teacher": "zero", "gate": "gate"}, seen="graph")
    .at("load")
    .on(stage=_CYCLE["stage"]),
    "cycle.generations": measures(3, seen="graph").at("load").on(**_CYCLE),
    "cycle.teacher": measures("small", seen="graph").at("load").on(**_CYCLE),
    "cycle.gate": measures("gate-2", seen="graph").at("load").on(**_CYCLE),
    "models": decides({"tiny-base-weak": {"path": "tiny-base"}}),
    **{
        f"models.{path}": replace(flip, given={"models.policy": {"path": "tiny-base-weak"}, **_OF_POLICY, **flip.given})
        for path, flip in _MODEL.items()
    },
    **{f"watchdog.{name}": measures(50.0, seen="watched") for name in PHASES},
    "data": decides(_OVER_ROWS["data"] | {"mine": {"use": "rows", "train": "others.jsonl"}}).on(**_OVER_ROWS),
    "data.use": decides(
        With("worked-solutions", {"data.mine": {"use": "worked-solutions", "task": "sums", "problems": 2}})
    ).on(**_OVER_ROWS),
    "tasks": decides({"mine": {"use": "countdown-3"}}).on(**_ON_MINE),
    "tasks.use": decides(With("countdown-3", {"tasks.mine.name": LEFT_OUT})).on(**_ON_MINE),
    "tasks.environment": decides("second-try").on(**_ON_MINE),
    **_isolated("tasks", _ON_MINE, _MINE),
    "rewards": decides({"mine": {**_WORDS, "words": 2}}).on(**_REWARDED),
    "rewards.use": decides("format").on(**_REWARDED),
    **_isolated("rewards", _REWARDED, _WORDS),
    "environments": decides({"mine": {"use": "./room.py:Room"}}).on(**_PLAYED),
    "environments.use": decides("./room.py:Room").on(**_PLAYED),
    "stages": decides({"mine": {"use": "./two.py"}}).on(**_SAID),
    "stages.use": decides("./two.py").on(**_SAID),
    "stage": decides(_evaluated(samples=2)["stage"]),
}
# The tables that have names of the user's: a case is about the table of this name.
NAMED: Mapping[str, str] = {
    "models": "policy",
    **dict.fromkeys(("data", "tasks", "rewards", "environments", "stages"), "mine"),
}
