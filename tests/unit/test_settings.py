"""Which settings decide what a stage makes, and which only how it is got."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from reasonmill.plugins.catalogue import installed
from reasonmill.recipe.graph import stage_key
from reasonmill.recipe.load import load_recipe
from reasonmill.settings import BY_CONTENT, INCIDENTAL, ByContent, Naming, decisive, marks
from reasonmill.stage import Input


class Server(BaseModel):
    url: str = "http://host"
    patience_s: Annotated[float, INCIDENTAL] = Field(default=3.0, gt=0)


class Tables(BaseModel):
    from_: str = Field(default="base", alias="from")
    one: Server | None = None
    listed: list[Server] = []
    named: dict[str, Server] = {}
    haste: Annotated[int, INCIDENTAL] = Field(default=1, alias="hurry")


def test_incidental_settings_are_left_out_wherever_they_stand() -> None:
    tables = Tables(one=Server(), listed=[Server(url="a"), Server(url="b")], named={"x": Server()})
    assert decisive(tables) == {
        "from": "base",
        "one": {"url": "http://host"},
        "listed": [{"url": "a"}, {"url": "b"}],
        "named": {"x": {"url": "http://host"}},
    }
    assert decisive(Tables()) == {"from": "base", "one": None, "listed": [], "named": {}}


@dataclass(frozen=True)
class Kind(ByContent):
    """A mark of the test's."""

    name: str


class Inner(BaseModel):
    model: Annotated[str, Kind("model")] = "m"
    strength: int = 1


class Used(BaseModel):
    """A table that names a plug-in."""

    model_config = ConfigDict(extra="allow")

    use: Annotated[str, BY_CONTENT] = "code"
    count: int = 3


class Marked(BaseModel):
    plain: str = "p"
    from_: Annotated[str, Kind("model")] = Field(default="base", alias="from")
    data: list[Annotated[str, Kind("data")]] = ["one", "two"]
    pair: tuple[Annotated[str, Kind("left")], int] | None = None
    judges: dict[str, Annotated[str, Kind("judge")]] = {"safety": "j"}
    tasks: dict[Annotated[str, Naming("tasks")], float] = {"sums": 0.5}
    talk: Annotated[Used, Naming("conversations")] | None = Used.model_validate({"argument": 1})
    inner: Inner | None = Inner()
    either: Server | Inner = Inner()
    several: list[Inner] = [Inner(), Inner()]
    shares: dict[Annotated[str, Kind("model")], float] = {"one": 0.5}
    haste: Annotated[int, INCIDENTAL] = 1
    unset: Annotated[str, Kind("model")] | None = None


def test_marks_are_found_wherever_they_stand() -> None:
    found = [(mark.key, mark.value, mark.mark) for mark in marks(Marked(pair=("x", 3)), object)]
    assert found == [
        ("from", "base", Kind("model")),
        ("data[0]", "one", Kind("data")),
        ("data[1]", "two", Kind("data")),
        ("pair[0]", "x", Kind("left")),
        ("judges.safety", "j", Kind("judge")),
        ("tasks.sums", "sums", Naming("tasks")),
        ("talk", Marked().talk, Naming("conversations")),
        ("talk.use", "code", BY_CONTENT),
        ("inner.model", "m", Kind("model")),
        ("either.model", "m", Kind("model")),
        ("several[0].model", "m", Kind("model")),
        ("several[1].model", "m", Kind("model")),
        ("shares.one", "one", Kind("model")),
        ("haste", 1, INCIDENTAL),
    ]


def test_what_counts_by_its_content_does_not_count_by_its_name() -> None:
    """The names of plug-ins do: problems bear them, and draws may depend on them."""
    assert decisive(Marked(pair=("x", 3))) == {
        "plain": "p",
        "data": [],
        "pair": [3],
        "judges": {},
        "tasks": {"sums": 0.5},
        "talk": {"count": 3},
        "inner": {"strength": 1},
        "either": {"strength": 1},
        "several": [{"strength": 1}, {"strength": 1}],
        "shares": {"one": 0.5},
        "unset": None,
    }


def test_what_is_incidental_is_so_where_it_may_be_unset() -> None:
    class Patient(BaseModel):
        patience_s: Annotated[float, INCIDENTAL] | None = None

    assert decisive(Patient()) == decisive(Patient(patience_s=3.0)) == {}


def key_of(stage: str, override: str | None = None) -> str:
    recipe = load_recipe("teacher-judge", [override] if override else [])
    (node,) = (node for node in recipe.nodes if node.settings.name == stage)
    inputs: dict[str, Any] = {name: Input(None, "digest") for name in node.sources}  # type: ignore[arg-type]
    return stage_key(node, inputs, recipe.seed)


@pytest.mark.parametrize(("stage", "server"), [("teacher-rollouts", "teacher"), ("judged-data", "judge")])
def test_patience_with_a_server_makes_no_data_anew_and_another_model_does(stage: str, server: str) -> None:
    before = key_of(stage)
    for incidental in ("concurrency=1", "timeout_s=7.5", "retries=0", "retry_delay_s=0.5", 'api_key_env="OTHER_KEY"'):
        assert key_of(stage, f"{stage}.{server}.{incidental}") == before
    for telling in ('model="another"', 'url="http://127.0.0.1:9999/v1"'):
        assert key_of(stage, f"{stage}.{server}.{telling}") != before


def real_numbers(kind: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and types of all settings that are real numbers, in tables, lists and what may be unset too."""
    inner = get_args(kind)
    plain = inner[0] if get_origin(kind) is Annotated else kind
    if plain is float:
        yield key, kind
    elif isinstance(plain, type) and issubclass(plain, BaseModel):
        for name, field in plain.model_fields.items():
            # What a field is annotated with stands beside its type.
            whole = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            yield from real_numbers(whole, f"{key}.{name}".removeprefix("."))
    else:
        for part in get_args(plain):
            yield from real_numbers(part, key)


@pytest.mark.parametrize("stage", installed().names("stages"))
def test_no_stage_takes_a_number_that_can_not_be_computed_with(stage: str) -> None:
    settings = installed().plugin("stages", stage).made.Settings
    for _, kind in real_numbers(settings):
        for number in (math.inf, -math.inf, math.nan, 1e308):
            with pytest.raises(ValidationError):
                TypeAdapter(kind).validate_python(number)
    found = dict(real_numbers(settings))
    assert ("optimizer.epsilon" in found) == ("optimizer" in settings.model_fields)
