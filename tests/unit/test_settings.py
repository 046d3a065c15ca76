"""Which settings decide what a stage makes, and which only how it is got."""

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from reasonmill.recipe.graph import stage_key
from reasonmill.recipe.load import load_recipe
from reasonmill.settings import INCIDENTAL, decisive
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
