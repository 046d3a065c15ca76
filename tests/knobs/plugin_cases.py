"""For every argument of everything that ships and that a recipe's tables can name: other values, and what they move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knobs.flips import LEFT_OUT, Flip, With, admits, bounds, computes, decides
from knobs.stage_cases import SERVER

Cases = Mapping[str, Flip]
COMMIT, OTHER_COMMIT = "0123456789" * 4, "9876543210" * 4
_HUB = {"name": "lab/sums", "revision": COMMIT}
# Of a data set of the hub, wherever it is named.
_OF_HUB: Cases = {
    "hub": decides(_HUB).in_place_of("file", "split"),
    "hub.name": decides("lab/others").on(hub=_HUB),
    "hub.revision": decides(OTHER_COMMIT).on(hub=_HUB),
    "hub.config": decides("main").on(hub=_HUB),
    "hub.splits": decides({"dev": "test"}).on(hub=_HUB),
}


def _from_hub(*left_out: str) -> Cases:
    given = dict.fromkeys(left_out, LEFT_OUT)
    return {path: flip if path == "hub" else flip.on(**given) for path, flip in _OF_HUB.items()}


def _published(file: str) -> tuple[Mapping[str, Any], Cases]:
    """A published set, of which there is a file with two rows, and another with one."""
    cases = {"file": decides(f"{file}-1.jsonl"), "split": decides("train", "dev"), **_from_hub("file", "split")}
    return {"file": f"{file}-2.jsonl"}, cases


_PLACES = ("answer", "boxed", "last-line", "last-number")


def _placed(pattern: str = "not (\\w+)") -> Cases:
    """Of graders that look for an answer in some place."""
    by_pattern = {"answer_in": "pattern", "pattern": "it is (\\w+)"}
    return {
        "data": decides("others"),
        "answer_in": decides(*_PLACES, With("pattern", {"pattern": "it is (\\w+)"})),
        "pattern": decides(pattern).on(**by_pattern),
        "ask": decides(True, alike={False: "with auto, prompts ask for no place by themselves"}),
    }


def _judged() -> Cases:
    return {
        **{f"server.{path}": flip for path, flip in SERVER.items() if path != "finish_reasons"},
        "server.finish_reasons": bounds({"whatever": "stop"}, {})
        .at("ends oddly")
        .on(server__finish_reasons={"whatever": "stop"}),
        "server.max_tokens": decides(100),
        "budget": bounds(99, 1),
        "domains": decides(["safety"]),
    }


_SERVER = {"url": "/v1", "model": "large", "concurrency": 1, "retry_delay_s": 1.0, "retries": 2}

PLUGINS: Mapping[tuple[str, str], tuple[Mapping[str, Any], Cases]] = {
    ("data", "rows"): (
        {"file": "sums.jsonl"},
        {
            "file": decides("others.jsonl"),
            "train": decides("others.jsonl").in_place_of("file"),
            "dev": decides("others.jsonl").in_place_of("file"),
            "test": decides("others.jsonl").in_place_of("file"),
            **_from_hub("file"),
            "columns": decides({"prompt": "answer", "answer": "problem"}),
            "answer": decides("hashes", "box").on(
                file="solved.jsonl", columns={"prompt": "question", "answer": "solution"}, answer="column"
            ),
            "shares": decides({"test": 1.0}),
            "ignore": admits([]).on(file="ignored.jsonl", ignore=["tools"]),
            "bad_rows": admits("refuse").on(file="bad.jsonl", bad_rows="drop"),
        },
    ),
    ("data", "worked-solutions"): (
        {"task": "worked", "problems": 3},
        {"task": decides("otherwise"), "problems": decides(2), "seed": decides(1)},
    ),
    ("environments", "second-try"): ({}, {"max_turns": decides(3)}),
    ("rewards", "length"): (
        {"full": 4, "none": 40},
        {"full": decides(1), "none": decides(50), "counts": decides("always")},
    ),
    ("rewards", "pairwise"): ({"server": _SERVER}, {**_judged(), "opponents": decides(1)}),
    ("rewards", "rubric"): (
        {"server": _SERVER, "criteria": ["It is polite."]},
        {**_judged(), "criteria": decides(["It is brief."])},
    ),
    ("tasks", "code"): (
        {"data": "programs"},
        {
            "data": decides("more-programs"),
            "seconds": computes(3.0, seen="allowed"),
            "total_seconds": decides(0.0001),
            "memory_mb": computes(128, seen="allowed"),
        },
    ),
    ("tasks", "math"): (
        {"data": "sums"},
        {**_placed(), "tolerance": decides(0.5), "symbolic": decides(True)},
    ),
    ("tasks", "choice"): ({"data": "choices"}, {**_placed(r"\((\w)\)"), "first": decides(1)}),
    ("tasks", "text"): (
        {"data": "sums"},
        {**_placed(), "match": decides("strict", "fuzzy"), "similarity": decides(0.5).on(match="fuzzy")},
    ),
    ("tasks", "rows"): (
        {"data": "sums", "reward": "brief"},
        {"data": decides("others"), "reward": decides("briefer"), "right_from": decides(0.5)},
    ),
    ("tasks", "manners"): (
        {"data": "sums"},
        {
            "data": decides("others"),
            "domain": decides("reasoning", "safety"),
            "refuse": decides(True),
            "language": decides("de"),
        },
    ),
    ("tasks", "instructions"): ({"data": "instructed"}, {"data": decides("more-instructed"), "by": decides("loose")}),
    ("tasks", "knights-and-knaves"): ({"data": "sums"}, {"data": decides("others")}),
    ("tasks", "twenty-four"): ({"data": "sums"}, {"data": decides("others")}),
    ("tasks", "zebra"): ({"data": "sums"}, {"data": decides("others")}),
    **{
        ("tasks", name): _published(name)
        for name in ("gsm8k", "math-500", "aime", "gpqa", "mmlu", "humaneval", "mbpp", "livecodebench")
    },
    ("tasks", "ifeval"): (
        _published("ifeval")[0],
        {**_published("ifeval")[1], "by": decides("loose")},
    ),
    ("tasks", "reasoning-gym"): (
        {"family": "chain_sum"},
        {
            "family": decides("gcd"),
            "config": decides({"min_terms": 5, "max_terms": 5}),
            "ask": decides(False),
        },
    ),
    ("tasks", "arithmetic"): ({}, {"name": decides("sums")}),
    ("conversations", "world-talk"): (
        {"conversations": 9},
        {"better_share": decides(0.1), "refusal_share": decides(0.1), "over_refusal_share": decides(0.9)},
    ),
    ("rewritings", "world-style"): ({}, {"drop_repeated_tries": decides(True)}),
}
# The packages of extras that an argument needs, or "" for all of a plug-in.
NEEDS: Mapping[tuple[str, str, str], str] = {
    ("tasks", "math", "symbolic"): "math_verify",
    ("tasks", "reasoning-gym", ""): "reasoning_gym",
}
