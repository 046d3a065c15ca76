"""Groups to Parquet and back, to the last bit."""

import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonmill.errors import StoreError
from reasonmill.store.groups import SCHEMA, read_groups, write_groups
from reasonmill.types import Completion, Grade, Group, Message, Problem, Reply, Role, Rollout

finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
message = st.builds(Message, role=st.sampled_from(get_args(Role)), content=st.text(max_size=10))
problems = st.builds(
    Problem,
    task=st.text(max_size=5),
    messages=st.lists(message, min_size=1, max_size=3).map(tuple),
    answer=st.text(max_size=5),
    meta=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)
token = st.integers(0, 2**31 - 1)


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    length = draw(st.integers(0, 5))
    logprobs = st.lists(st.floats(allow_nan=False), min_size=length, max_size=length).map(tuple)
    return Completion(
        tokens=tuple(draw(st.lists(token, min_size=length, max_size=length))),
        logprobs=draw(st.none() | logprobs),
        sampled=(True,) * length,
        text=draw(st.text(max_size=10)),
        finish=draw(st.sampled_from(["stop", "length", "abort"])),
        policy_version=draw(st.integers(-1, 2**40)),
    )


parts = st.dictionaries(st.text(max_size=5), finite, max_size=3)
grades = st.builds(Grade, reward=finite, parts=parts, error=st.text(max_size=5)) | st.builds(
    Grade, reward=st.none(), parts=parts, error=st.text(min_size=1, max_size=5)
)
prompts = st.lists(token, max_size=4).map(tuple)


@st.composite
def played(draw: st.DrawFn) -> Rollout:
    """A rollout whose tokens belong to the policy and to the environment by turns."""
    lengths = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=3))
    last = draw(st.integers(1, 3))
    replies, sampled = [], ()
    for turn, reply in lengths:
        start = len(sampled) + turn
        messages = tuple(draw(st.lists(message, min_size=1, max_size=2)))
        replies.append(Reply(start, start + reply, draw(st.text(max_size=5)), messages))
        sampled += (True,) * turn + (False,) * reply
    sampled += (True,) * last
    completion = replace(
        draw(completions()), tokens=tuple(range(len(sampled))), logprobs=(-0.5,) * len(sampled), sampled=sampled
    )
    return Rollout(draw(prompts), completion, draw(grades), tuple(replies))


rollouts = played() | st.builds(Rollout, prompt_tokens=prompts, completion=completions(), grade=grades)
groups_strategy = st.lists(st.builds(Group, problem=problems, rollouts=st.lists(rollouts, max_size=3).map(tuple)))


@pytest.mark.check
@settings(max_examples=60, deadline=None)
@given(groups=groups_strategy)
def test_groups_come_back_equal(groups: list[Group], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("groups") / "groups.parquet"
    write_groups(path, groups)
    loaded = read_groups(path)

    assert loaded == groups
    assert [group.problem.id for group in loaded] == [group.problem.id for group in groups]


def group(
    meta: dict[str, object],
    parts: dict[str, float],
    logprobs: tuple[float, ...] | None = (-0.5,),
    split: str | None = None,
) -> Group:
    completion = Completion((7,), logprobs, (True,), "x", "stop", 3)
    problem = Problem("sums", (Message("user", "1 + 1?"),), "2", meta, split)
    return Group(problem, (Rollout((1, 2), completion, Grade(1.0, parts)),) * 2)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_floats_that_compare_oddly_keep_their_bits(tmp_path: Path) -> None:
    for odd in (-0.0, math.nan, -math.inf, 5e-324, 0.1 + 0.2):
        write_groups(tmp_path / "g", [group({}, {"odd": odd}, logprobs=(odd,))])
        rollout = read_groups(tmp_path / "g")[0].rollouts[0]
        assert rollout.completion.logprobs is not None
        assert bits(rollout.completion.logprobs[0]) == bits(odd)
        assert bits(rollout.grade.parts["odd"]) == bits(odd)


def test_equal_groups_give_equal_bytes_whatever_the_order_of_keys(tmp_path: Path) -> None:
    one = [group({"a": 1, "b": {"c": 2, "d": 3}}, {"x": 1.0, "y": 2.0})]
    two = [group({"b": {"d": 3, "c": 2}, "a": 1}, {"y": 2.0, "x": 1.0})]
    assert one == two
    write_groups(tmp_path / "one", one)
    write_groups(tmp_path / "two", two)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_other_tools_see_one_row_per_rollout(tmp_path: Path) -> None:
    write_groups(tmp_path / "g", [group({}, {}), group({}, {}, logprobs=None)])
    rows = pq.read_table(tmp_path / "g").to_pylist()

    assert [row["group"] for row in rows] == [0, 0, 1, 1]
    assert [row["logprobs"] for row in rows] == [[-0.5], [-0.5], None, None]
    assert rows[0]["messages"] == [{"role": "user", "content": "1 + 1?"}]


@pytest.mark.parametrize("meta", [{"numbers": (3, 8, 1)}, {"by_number": {1: "a"}}, {"x": math.nan}])
def test_meta_that_would_come_back_different_is_refused(tmp_path: Path, meta: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_groups(tmp_path / "g", [group(meta, {})])


def test_a_damaged_a_foreign_and_a_missing_file_are_store_errors(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign")
    for name in ("damaged", "foreign", "missing"):
        with pytest.raises(StoreError) as caught:
            read_groups(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


def rewritten(path: Path, version: str | None, *, without: Sequence[str] = ()) -> None:
    """The file as another version of reasonmill would have written it."""
    table = pq.read_table(path).drop_columns(list(without))
    pq.write_table(table.replace_schema_metadata({"reasonmill.groups": version} if version else None), path)


def test_a_file_names_its_format(tmp_path: Path) -> None:
    write_groups(tmp_path / "g", [group({}, {})])
    assert pq.read_schema(tmp_path / "g").metadata == SCHEMA.metadata == {b"reasonmill.groups": b"3"}
    assert pq.read_table(tmp_path / "g").column("replies").null_count == 2


@pytest.mark.parametrize(("version", "without"), [(None, ("replies", "split")), ("2", ("split",))])
def test_files_of_earlier_versions_are_read_and_do_not_know_their_split(
    tmp_path: Path, version: str | None, without: tuple[str, ...]
) -> None:
    """Files without a version are of the first one."""
    groups = [group({}, {"x": 1.0}, split="test"), group({}, {}, logprobs=None)]
    write_groups(tmp_path / "g", groups)
    rewritten(tmp_path / "g", version, without=without)
    read = read_groups(tmp_path / "g")
    assert read == groups
    assert [each.problem.split for each in read] == [None, None]


def test_groups_know_the_split_of_their_problems(tmp_path: Path) -> None:
    write_groups(tmp_path / "g", [group({}, {}, split=split) for split in ("train", "dev", "test", None)])
    read = read_groups(tmp_path / "g")
    assert [each.problem.split for each in read] == ["train", "dev", "test", None]
    assert len({each.problem.id for each in read}) == 1  # it is the same problem wherever it is drawn from


def test_a_version_from_the_future_is_refused(tmp_path: Path) -> None:
    write_groups(tmp_path / "g", [group({}, {})])
    rewritten(tmp_path / "g", "4")
    with pytest.raises(StoreError, match="have format 4, and this reasonmill reads 1 and 2 and 3") as caught:
        read_groups(tmp_path / "g")
    assert caught.value.where == str(tmp_path / "g")


@pytest.mark.parametrize(("version", "without"), [(None, ()), ("2", ()), ("3", ("split",)), ("1", ("error",))])
def test_columns_of_another_version_are_no_groups(
    tmp_path: Path, version: str | None, without: tuple[str, ...]
) -> None:
    write_groups(tmp_path / "g", [group({}, {})])
    rewritten(tmp_path / "g", version, without=without)
    with pytest.raises(StoreError, match="does not hold groups"):
        read_groups(tmp_path / "g")
