"""Comparisons of evaluations: statistics by hand, logs of other programs, and what the command says."""

import importlib
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from command_line import Call, caller
from reasonmill.algo.differences import Difference, difference_of, holm
from reasonmill.errors import RecipeError
from reasonmill.evaluation.comparing import POOLED, Compared, compare_sources
from reasonmill.evaluation.foreign import Answered, read_foreign
from reasonmill.evaluation.sources import Source, read_source
from reasonmill.store.groups import GROUPS_FILE, write_groups
from reasonmill.store.home import Home
from reasonmill.types import Artifact, Completion, Grade, Group, Message, Problem, Rollout


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


def difference(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], permutations: int = 4000
) -> Difference:
    names = [str(place) for place in range(len(first))]
    return difference_of(first, second, names=names, clusters=names, noise=("test",), permutations=permutations)


# Statistics


def test_mcnemar_and_the_sign_flips_by_hand() -> None:
    # Seven problems that only the second model solves, one that only the first does, twelve alike.
    first = [[0.0]] * 7 + [[1.0]] + [[1.0]] * 6 + [[0.0]] * 6
    second = [[1.0]] * 7 + [[0.0]] + [[1.0]] * 6 + [[0.0]] * 6
    found = difference(first, second)
    assert found.mcnemar is not None
    assert (found.mcnemar.gained, found.mcnemar.lost) == (7, 1)
    exact = 2 * (1 + 8) / 2**8  # at most one of eight coins falls the other way
    assert found.mcnemar.p_value == pytest.approx(exact)
    # With one attempt each, the signs of eight problems are these coins.
    assert found.p_value == pytest.approx(exact, abs=0.02)
    assert found.found.difference.value == pytest.approx(6 / 20)
    assert found.bootstrap.low == pytest.approx(0.05, abs=0.06)
    assert found.bootstrap.high == pytest.approx(0.55, abs=0.06)


def test_which_model_is_which_makes_no_difference_to_the_test() -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 2, (40, 3)).astype(float).tolist() for _ in range(2))
    there, back = difference(first, second), difference(second, first)
    assert there.p_value == pytest.approx(back.p_value, abs=0.02)
    assert there.found.difference.value == -back.found.difference.value
    assert there.power(0.1, 0.05) == pytest.approx(back.power(-0.1, 0.05), abs=0.05)


def test_several_answers_or_wordings_have_no_table() -> None:
    assert difference([[1.0, 0.0]], [[0.0, 0.0]]).mcnemar is None
    assert difference([[0.5]], [[1.0]]).mcnemar is None
    alike = difference_of(
        [[1.0], [0.0]], [[0.0], [0.0]], names=["a", "b"], clusters=["x", "x"], noise=(), permutations=10
    )
    assert alike.mcnemar is None


def test_holm_raises_by_how_many_tests_are_left() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_power_is_that_of_comparisons_like_these() -> None:
    generator = np.random.default_rng(1)
    chance = generator.beta(0.8, 0.8, 150)

    def answers(chances: Any) -> list[list[float]]:
        drawn: list[list[float]] = (generator.random((150, 4)) < chances[:, None]).astype(float).tolist()
        return drawn

    powers = [difference(answers(chance), answers(chance), 10).power(0.06, 0.05) for _ in range(20)]
    better = chance + 0.06 / float((1 - chance).mean()) * (1 - chance)
    seen = np.mean([difference(answers(chance), answers(better), 400).p_value < 0.05 for _ in range(100)])
    assert 0.4 < seen < 0.95
    assert np.mean([power for power in powers if power is not None]) == pytest.approx(seen, abs=0.12)


def test_so_many_problems_are_needed_as_have_the_power() -> None:
    generator = np.random.default_rng(2)
    first, second = (generator.integers(0, 2, (60, 2)).astype(float).tolist() for _ in range(2))
    found = difference(first, second)
    power = found.power(0.05, 0.05)
    needed = found.problems_needed(0.05, 0.05)
    assert power is not None
    assert needed is not None
    assert power < 0.8
    again = -(-needed // 60)
    assert (difference(first * again, second * again).power(0.05, 0.05) or 0) >= 0.8
    assert (difference(first * (again - 1), second * (again - 1)).power(0.05, 0.05) or 0) < 0.8


def test_where_nothing_differs_nothing_is_known_of_the_power() -> None:
    same = [[1.0], [0.0], [1.0]]
    found = difference(same, same)
    assert (found.p_value, found.power(0.1, 0.05), found.problems_needed(0.1, 0.05)) == (1.0, None, None)
    assert found.found.difference.low < 0 < found.found.difference.high
    assert difference([[1.0], [0.0]], [[1.0], [1.0]]).power(0.9, 0.05) is None  # no room for as much


@pytest.mark.check
def test_equal_models_are_said_to_differ_no_more_often_than_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form of benchmarks/compare_error_rates.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    for name in ("seeds", "compare_error_rates"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    benchmark = importlib.import_module("compare_error_rates")
    for setup in (benchmark.Setup(60, 4, (0.8, 0.8)), benchmark.Setup(150, 1, (2.0, 0.7))):
        found = benchmark.equals(setup, 400, 500, np.random.default_rng(0))
        assert 0.01 < np.mean([one.p_value < 0.05 for one in found]) <= 0.08


# What is compared


def of_values(title: str, **tasks: dict[str, tuple[float, ...]]) -> Source:
    return Source(
        title,
        {
            task: {
                problem: Answered((task, problem), f"prompt {problem}", values) for problem, values in answers.items()
            }
            for task, answers in tasks.items()
        },
    )


def compared(*sources: Source, **options: Any) -> list[Compared]:
    return compare_sources(sources, alpha=0.05, seed=0, **options)


def test_problems_are_compared_that_both_were_asked_and_that_were_graded() -> None:
    (found,) = compared(
        of_values("a", t={"1": (1.0,), "2": (0.0, 1.0), "3": (), "4": (1.0,)}, other={"1": (1.0,)}),
        of_values("b", t={"1": (1.0,), "2": (1.0,), "3": (1.0,), "5": (0.0,)}),
    )
    assert (found.task, found.difference.found.problems, found.alone, found.samples) == ("t", 2, 3, (1, 2))
    assert [(one.problem, one.prompt, one.first, one.second) for one in found.changed] == [("2", "prompt 2", 0.5, 1.0)]


def test_all_are_compared_with_the_first_or_with_each_other_and_the_tests_are_counted() -> None:
    few = {str(place): (float(place % 2),) for place in range(20)}
    none = {str(place): (0.0,) for place in range(20)}
    sources = [of_values("a", t=few, u=few), of_values("b", t=none, u=few), of_values("c", t=few, u=few)]
    found = compared(*sources)
    assert [(one.first, one.second, one.task) for one in found] == [
        (first, second, task) for first, second in (("a", "b"), ("a", "c")) for task in ("t", "u", POOLED)
    ]
    worse = found[0]
    assert worse.says(0.05) == "worse"
    assert 5 * worse.difference.p_value <= worse.p_holm <= 6 * worse.difference.p_value + 1e-12
    assert found[3].says(0.05) == "no difference shown"
    assert len(compared(*sources, every_pair=True)) == 9


def test_evaluations_without_a_problem_in_common_are_refused() -> None:
    with pytest.raises(RecipeError, match="no problem in common"):
        compared(of_values("a", t={"1": (1.0,)}), of_values("b", t={"2": (1.0,)}))


# Our own


def groups(*rewards: float | None, samples: int = 2) -> list[Group]:
    """A problem for each reward, half of whose answers have it; of None, nobody could tell."""
    found = []
    for place, reward in enumerate(rewards):
        problem = Problem("sums", (Message("user", f"{place} + 1?"),), str(place + 1))
        completion = Completion((1,), (0.0,), (True,), "x", "stop", 0)
        grades = [Grade(1.0, {"accuracy": 1.0})] * (samples - 1)
        grades.append(Grade(None, error="?") if reward is None else Grade(reward, {"accuracy": reward}))
        found.append(Group(problem, tuple(Rollout((1,), completion, grade) for grade in grades)))
    return found


def test_files_of_groups_are_read(tmp_path: Path) -> None:
    write_groups(tmp_path / "groups.parquet", groups(1.0, 0.0, None))
    for named in (tmp_path / "groups.parquet", tmp_path):
        source = read_source(str(named), tmp_path / "no-home", None, print)
        (answers,) = source.tasks.values()
        assert [(one.prompt, one.values, one.ungraded) for one in answers.values()] == [
            ("0 + 1?", (1.0, 1.0), 0),
            ("1 + 1?", (1.0, 0.0), 0),
            ("2 + 1?", (1.0,), 1),
        ]


def test_a_home_has_evaluations_by_their_names(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        stages = [("eval", "evaluate", "k0"), ("other", "evaluate", "k1"), ("model", "sft", "k2")]
        home.ledger.begin_run("both", {"stage": []}, stages)
        home.ledger.begin_run("one", {"stage": []}, stages[:1])
        home.ledger.begin_run("open", {"stage": []}, [("eval", "evaluate", "k9")])
        for number, (name, kind, key) in enumerate(stages):
            base = home.objects.put(partial(written, text=f"base {number}"))
            home.ledger.register(Artifact(base, "base", "b", (), ""))
            made = home.objects.put(partial(put_groups, reward=float(number)))
            artifact = Artifact(made, "evaluation" if kind == "evaluate" else "model", name, (base,), "")
            home.ledger.commit_stage(
                key=key, run="both", name=name, kind=kind, artifact=artifact, seconds=1.0, tokens=1
            )

    def values(named: str) -> list[tuple[float, ...]]:
        return [one.values for one in read_source(named, tmp_path / "home", None, print).tasks["sums"].values()]

    assert values("one") == values("both/eval") == [(1.0, 0.0)]
    assert values("both/other") == [(1.0, 1.0)]
    for named, said in (
        ("both", "several models"),
        ("open", "no finished evaluation"),
        ("both/model", "no evaluation"),
    ):
        with pytest.raises(RecipeError, match=said):
            values(named)


def written(target: Path, text: str) -> None:
    (target / "text").write_text(text)


def put_groups(target: Path, reward: float) -> None:
    write_groups(target / GROUPS_FILE, groups(min(1.0, reward)))


def test_what_is_no_evaluation_is_told(tmp_path: Path, call: Call) -> None:
    (tmp_path / "x.json").write_text('{"some": "thing"}')
    code, _, err = call("compare", tmp_path / "x.json", tmp_path / "y", "--home", tmp_path / "home")
    assert code == 2
    assert "no log that can be read" in err
    code, _, err = call("compare", "r", "s", "--home", tmp_path / "home")
    assert (code, "missing evaluation: 'r'" in err) == (2, True)
    assert call("compare", "r", "r", "--home", tmp_path / "home")[0] == 2
    assert call("compare", "r", "--home", tmp_path / "home")[0] == 2


def test_the_command_says_who_is_better_and_which_problems_changed(tmp_path: Path, call: Call) -> None:
    for name, rewards in (("a", [0.0] * 12), ("b", [1.0] * 9 + [0.0] * 3)):
        write_groups(tmp_path / f"{name}.parquet", groups(*rewards, samples=1))
    arguments = ["compare", tmp_path / "a.parquet", tmp_path / "b.parquet", "--show", 2]
    code, out, _ = call(*arguments)
    assert code == 0
    said = " ".join(out.split())
    assert "+75.0" in said
    assert "McNemar +9 -0, p = 0.0039" in said
    assert "better on 9, worse on 0, the same on 3" in said
    assert said.count("0% -> 100%") == 2
    found = json.loads(call(*arguments, "--json")[1])["comparisons"]
    assert [one["says"] for one in found] == ["better"]
    assert found[0]["shares"] == [0.0, 0.75]
    assert len(found[0]["changed"]) == 9


# Logs of lm-evaluation-harness, with the keys of version 0.4.13


def harness_row(place: int, name: str, value: Any, **more: Any) -> str:
    row = {
        "doc_id": place,
        "doc": {"question": f"{place} + 1?", "answer": "#### 2"},
        "target": "2",
        "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": {"until": ["\n"]}}},
        "resps": [["2"]],
        "filtered_resps": ["2"],
        "filter": name,
        "metrics": [*(key for key in more), "exact_match"],
        "doc_hash": f"{place:064x}",
        "prompt_hash": "0",
        "target_hash": "0",
        "exact_match": value,
        **more,
    }
    return json.dumps(row) + "\n"


def test_samples_of_the_harness_are_read_filter_by_filter(tmp_path: Path) -> None:
    file = tmp_path / "samples_gsm8k_2026-11-01T10-00-00.123456.jsonl"
    file.write_text(
        "".join(
            harness_row(place, name, float(place)) for name in ("strict-match", "flexible-extract") for place in (0, 1)
        )
    )
    found = read_foreign(file, None)
    assert list(found) == ["gsm8k (strict-match)", "gsm8k (flexible-extract)"]
    answers = found["gsm8k (strict-match)"]
    assert [(key, one.prompt, one.values) for key, one in answers.items()] == [
        (f"{place:064x}", f"{place} + 1?", (float(place),)) for place in (0, 1)
    ]


def test_the_last_samples_of_each_task_in_a_directory_count(tmp_path: Path) -> None:
    for date, value in (("2026-11-02T10-00-00.000000", 1.0), ("2026-11-01T10-00-00.000000", 0.0)):
        (tmp_path / f"samples_arc_easy_{date}.jsonl").write_text(harness_row(0, "none", value))
    (tmp_path / "samples_gsm8k_2026-11-01T10-00-00.000000.jsonl").write_text(harness_row(0, "none", 0.5, f1=0.25))
    found = read_foreign(tmp_path, None)
    assert {task: [one.values for one in answers.values()] for task, answers in found.items()} == {
        "arc_easy": [(1.0,)],
        "gsm8k": [(0.25,)],
    }
    with pytest.raises(RecipeError, match="no metric 'acc'"):
        read_foreign(tmp_path, "acc")
    named = read_foreign(tmp_path / "samples_gsm8k_2026-11-01T10-00-00.000000.jsonl", "exact_match")
    assert [one.values for one in named["gsm8k"].values()] == [(0.5,)]


def test_what_is_no_share_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "samples_wiki_2026-11-01T10-00-00.000000.jsonl"
    file.write_text(harness_row(0, "none", 12.5))
    with pytest.raises(RecipeError, match=r"score of 12\.5"):
        read_foreign(file, None)


# Logs of inspect_ai, with the keys of version 0.3.285


def inspect_sample(problem: str | int, epoch: int, value: Any, question: Any = "How many?") -> dict[str, Any]:
    score = {"value": value, "answer": "2", "explanation": "", "metadata": {}}
    return {
        "id": problem,
        "epoch": epoch,
        "input": question,
        "target": "2",
        "scores": {"match": score, "other": {**score, "value": 0.25}},
        "output": {"model": "m", "choices": []},
    }


SAMPLES = [
    inspect_sample(1, 1, "C"),
    inspect_sample(1, 2, "I"),
    inspect_sample("two", 1, "P", [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}]),
    inspect_sample("two", 2, float("nan")),
    {**inspect_sample("three", 1, "C"), "scores": None, "error": {"message": "broke"}},
]
HEADER = {"version": 2, "status": "success", "eval": {"task": "theory", "model": "m", "dataset": {}}}
EXPECTED = {"1": ("How many?", (1.0, 0.0), 0), "two": ("Why?", (0.5,), 1), "three": ("How many?", (), 1)}


def told(found: dict[str, dict[str, Answered]]) -> dict[str, Any]:
    (answers,) = found.values()
    return {problem: (one.prompt, one.values, one.ungraded) for problem, one in answers.items()}


def test_a_json_log_of_inspect_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps({**HEADER, "samples": SAMPLES}))
    found = read_foreign(tmp_path / "log.json", None)
    assert list(found) == ["theory"]
    assert told(found) == EXPECTED
    assert told(read_foreign(tmp_path / "log.json", "other"))["1"][1] == (0.25, 0.25)


def add(packed: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Adds a member that is compressed by zstd in two frames, which Python's own module can't."""
    whole = pa.Codec("zstd")
    half = len(content) // 2
    data = b"".join(whole.compress(part, asbytes=True) for part in (content[:half], content[half:]))
    info = zipfile.ZipInfo(name)
    info.file_size, info.compress_size, info.CRC = len(content), len(data), zlib.crc32(content)
    info.compress_type, info.header_offset = 93, packed.fp.tell()  # type: ignore[union-attr]
    encoded = name.encode()
    head = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 93, 0, 33, info.CRC, len(data), len(content), len(encoded), 4)
    packed.fp.write(head + encoded + b"\x01\x00\x00\x00" + data)  # type: ignore[union-attr]
    packed.start_dir = packed.fp.tell()  # type: ignore[union-attr]
    packed.filelist.append(info)
    packed.NameToInfo[name] = info
    packed._didModify = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_zstd", [True, False])
def test_a_packed_log_of_inspect_is_read(tmp_path: Path, is_zstd: bool) -> None:
    log = tmp_path / "log.eval"
    with zipfile.ZipFile(log, "w", compression=zipfile.ZIP_DEFLATED) as packed:
        for name, content in (
            ("_journal/start.json", {"version": 2, "eval": {"task": "old"}}),
            *((f"samples/{s['id']}_epoch_{s['epoch']}.json", s) for s in SAMPLES),
            ("header.json", HEADER),
        ):
            encoded = json.dumps(content).encode()
            if is_zstd:
                add(packed, name, encoded)
            else:
                packed.writestr(name, encoded)
    found = read_foreign(log, None)
    assert list(found) == ["theory"]
    assert told(found) == EXPECTED
    if is_zstd:
        data = bytearray(log.read_bytes())
        data[60] ^= 0xFF
        log.write_bytes(bytes(data))
        with pytest.raises(RecipeError, match="no log that can be read"):
            read_foreign(log, None)
