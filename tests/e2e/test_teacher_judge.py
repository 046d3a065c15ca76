"""Teacher and judge behind servers: one of them a real one, which the tests start and stop."""

import json
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.import_utils import is_serve_available

from chat_server import Answer, chat_server, says
from forked import fork_server
from reasonmill.cli import main
from reasonmill.plugins.catalogue import installed
from reasonmill.recipe.reference import model_directory
from reasonmill.rewards.judge import Claim, Judge, JudgeSettings
from reasonmill.sample.http import ConversationRenderer, HttpSampler
from reasonmill.servers.settings import ServerError, TeacherSettings
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.types import Completion, Request, SamplingParams

SERVE = """
import os, sys
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT)
for stream in (1, 2):
    os.dup2(log, stream)
from transformers.cli.transformers import main
main()
"""
READY_WITHIN_S = 120
PROBLEMS = [installed().task("countdown-3").problem("train", 0, index) for index in range(3)]

pytestmark = pytest.mark.skipif(
    not is_serve_available(), reason="`transformers serve` lacks its packages: install transformers[serving]"
)


@dataclass(frozen=True)
class Served:
    """A running server and the name of its model."""

    url: str
    model: str


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The shipped base behind `transformers serve`, which draws at random only where the model's settings say so."""
    directory = tmp_path_factory.mktemp("served")
    model = directory / "tiny-base"
    shutil.copytree(model_directory("tiny-base"), model)
    generation = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(generation | {"do_sample": True}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = directory / "log"
    options = ("--device", "cpu", "--host", "127.0.0.1", "--port", port)
    process = fork_server().start(SERVE, log, "serve", model, *options, longest_s=600)
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not is_ready(port):
            assert process.is_running(), f"the server ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"the server is not ready: {log.read_text()[-2000:]}"
            time.sleep(0.2)
        yield Served(f"http://127.0.0.1:{port}/v1", str(model))
    finally:
        process.close()


def sampled(served: Served, params: SamplingParams, noise_keys: range, **changed: Any) -> list[Completion]:
    # One request at a time: this server keeps one seed for all of them.
    settings = {"url": served.url, "model": served.model, "concurrency": 1, **changed}
    prompt = ConversationRenderer().render(PROBLEMS[0].messages)
    requests = [Request(prompt, params, noise_key) for noise_key in noise_keys]
    drawn = dict(HttpSampler(TeacherSettings.model_validate(settings)).generate(requests))
    return [drawn[index] for index in range(len(requests))]


def test_a_real_server_draws_what_the_seeds_decide(served: Served) -> None:
    drawn = sampled(served, SamplingParams(max_tokens=24), range(4))
    again = sampled(served, SamplingParams(max_tokens=24), range(2))
    assert [completion.text for completion in again] == [completion.text for completion in drawn[:2]]
    assert len({completion.text for completion in drawn}) > 1
    assert any("<answer>" in completion.text for completion in drawn)
    greedy = sampled(served, SamplingParams(temperature=0.0, max_tokens=8), range(2))
    assert greedy[0] == greedy[1]


def test_a_real_server_tells_a_cut_text_from_a_finished_one(served: Served) -> None:
    assert [c.finish for c in sampled(served, SamplingParams(max_tokens=3), range(2))] == ["length"] * 2
    assert "stop" in {c.finish for c in sampled(served, SamplingParams(max_tokens=128), range(4))}


def test_requests_at_the_same_time_are_all_answered(served: Served) -> None:
    assert len(sampled(served, SamplingParams(max_tokens=8), range(8), concurrency=4)) == 8


def test_what_a_real_server_refuses_is_told_as_it_says_it(served: Served) -> None:
    with pytest.raises(ServerError, match=r"HTTP 400.*Server is pinned to") as caught:
        sampled(served, SamplingParams(max_tokens=8), range(1), model="another")
    assert "model" in caught.value.fix
    with pytest.raises(ServerError, match="HTTP 404"):
        sampled(served, SamplingParams(max_tokens=8), range(1), url=served.url.removesuffix("/v1"))


def test_a_model_that_can_not_judge_gives_no_verdict_rather_than_a_bad_one(served: Served) -> None:
    settings = JudgeSettings(url=served.url, model=served.model, concurrency=1, max_tokens=16)
    assert Judge(settings).correct([Claim(problem, problem.answer) for problem in PROBLEMS[:2]]) == [None, None]


def test_the_recipe_makes_a_student_and_asks_nobody_twice(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_turn(body: dict[str, Any], number: int) -> Answer:
        return says(["CORRECT", "INCORRECT", "Let me think."][number % 3])

    with chat_server(in_turn) as judge:
        command = reasonmill_command(tmp_path / "home", served, judge.url)
        call(command)
        asked = len(judge.bodies)
        capsys.readouterr()
        call(command)
        assert len(judge.bodies) == asked
    assert capsys.readouterr().err.count("cached") == 5

    run = tmp_path / "home" / "runs" / "teacher-judge"
    stages = {stage["name"]: stage for stage in json.loads((run / "summary.json").read_text())["stages"]}
    dropped = stages["judged-data"]["metrics"]["dropped"]
    assert stages["judged-data"]["metrics"]["sampled"] == 16
    assert asked == 16 - dropped["malformed"] >= 3
    assert dropped["judged_wrong"] == (asked + 1) // 3
    assert dropped["not_judged"] == asked // 3
    assert stages["student"]["metrics"]["conversations"] == stages["judged-data"]["metrics"]["kept"] > 0
    assert (run / "model" / "model.safetensors").is_file()
    with Home.open(tmp_path / "home", write=False) as home:
        groups = read_groups(home.objects.path(stages["teacher-rollouts"]["digest"]) / GROUPS_FILE)
    questions = {group.problem.messages[0].content for group in groups}
    assert len(groups) == len(questions) == 8
    assert all(any(question in body["messages"][0]["content"] for question in questions) for body in judge.bodies)


def call(command: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert not caught.value.code


def reasonmill_command(home: Path, served: Served, judge_url: str) -> list[str]:
    """The recipe, much smaller."""
    smaller = {
        "base-eval.tasks": "{countdown-3=4}",
        "base-eval.samples": "1",
        "teacher-rollouts.teacher": f'{{url="{served.url}", model="{served.model}", concurrency=1}}',
        "teacher-rollouts.tasks": "{countdown-3=4, arithmetic=4}",
        "teacher-rollouts.sampling.max_tokens": "64",
        "judged-data.judge": f'{{url="{judge_url}", model="judge", concurrency=1}}',
        "judged-data.keep": "{correct=false}",
        "student-eval.tasks": "{countdown-3=4}",
        "student-eval.samples": "1",
    }
    settings = [argument for key, value in smaller.items() for argument in ("--set", f"{key}={value}")]
    return ["run", "teacher-judge", "--home", str(home), *settings]
