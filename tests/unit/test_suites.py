"""Suites, and the command that puts them to a model: what is asked, what is kept, and what is not drawn again."""

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chat_server import Answer, chat_server, says
from command_line import Call, caller
from contexts import KEY, a_context
from forked import fork_server
from reasonmill.activity import beat
from reasonmill.errors import Interrupted, RecipeError
from reasonmill.kept_samples import KeptSampler
from reasonmill.protocols import FollowUp
from reasonmill.recipe.reference import shipped_bases
from reasonmill.recipe.suite import Asked, put_to, read_suite, suite_of_tasks
from reasonmill.stage import Input
from reasonmill.stages import evaluate
from reasonmill.store.completions import COMPLETIONS_FILE, read_completions, write_completions
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.types import Artifact, Completion, Group, Request, SamplingParams

BASE = shipped_bases()["tiny-base-weak"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


# What is asked


def written(path: Path, stage: str, head: str = 'name = "mine"\n') -> str:
    path.write_text(f'{head}[[stage]]\nname = "eval"\n{stage}\n')
    return str(path)


def settings_of(suite: str, asked: Asked | None = None, /, *overrides: str, **changes: Any) -> evaluate.Settings:
    recipe = put_to(read_suite(suite), asked or Asked("a/b", BASE), "run", changes, overrides)
    (node,) = recipe.nodes
    assert isinstance(node.settings, evaluate.Settings)
    return node.settings


def test_what_a_suite_does_not_say_is_the_papers_protocol(tmp_path: Path) -> None:
    settings = settings_of(written(tmp_path / "s.toml", "tasks = { facts = 7 }\nsampling = { top_p = 0.9 }"))
    sampling = settings.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.6, 0.9, 32768)
    assert (settings.from_, settings.split, settings.resume, settings.up_to_context) == ("a/b", "test", "samples", True)


def test_options_go_before_the_suite_and_overrides_before_options(tmp_path: Path) -> None:
    suite = written(tmp_path / "s.toml", "tasks = { facts = 7 }\nsamples = 3")
    settings = settings_of(suite, None, "eval.samples=9", samples=5, problems=2, max_tokens=40, temperature=1.0)
    assert (settings.samples, settings.tasks) == (9, {"facts": 2})
    assert (settings.sampling.max_tokens, settings.sampling.temperature) == (40, 1.0)
    assert not settings.up_to_context  # a limit that was named is kept to


def test_a_mistake_of_an_option_names_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"sampling\.temperature") as caught:
        settings_of(written(tmp_path / "s.toml", "tasks = { facts = 7 }"), None, temperature=-1.0)
    assert caught.value.where == "--temperature -1.0"


def test_a_model_behind_a_server_is_asked_by_its_name(tmp_path: Path) -> None:
    server = {"url": "http://127.0.0.1:1/v1", "model": "large"}
    settings = settings_of(written(tmp_path / "s.toml", "tasks = { facts = 7 }"), Asked("large", server=server))
    assert settings.from_ is None
    assert settings.server is not None
    assert (settings.server.model, settings.resume) == ("large", "parts")


def test_a_suite_may_bring_its_own_models_and_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    head = 'name = "mine"\n[models.own]\npath = "tiny-base"\n[tasks.sums]\nuse = "gsm8k"\nfile = "rows.jsonl"\n'
    recipe = put_to(read_suite(written(tmp_path / "s.toml", "tasks = { sums = 1 }", head)), Asked("own"), "run", {}, [])
    assert recipe.models["own"].path == "tiny-base"
    assert recipe.catalogue.task("sums").problem("test", 0, 0).answer == "2"


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ('from = "tiny-base"\ntasks = { facts = 1 }', "does not say which model"),
        ('kind = "rl"', "holds evaluations alone"),
        ("tasks = { facts = 1 }\nsample = 3", "unknown key 'sample'"),
        ("tasks = { facs = 1 }", "did you mean 'facts'"),
    ],
)
def test_a_suite_that_can_not_be_is_refused(tmp_path: Path, stage: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        settings_of(written(tmp_path / "s.toml", stage))
    assert said in str(caught.value)
    assert str(tmp_path / "s.toml") in caught.value.where


def test_the_tiny_worlds_suite_can_be_put_to_a_model() -> None:
    assert settings_of("tiny").sampling.max_tokens == 256


def test_tasks_of_a_recipe_are_a_suite(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    stage = '[[stage]]\nname = "z"\nkind = "rl"\n'  # which is not looked at
    recipe.write_text(f'name = "r"\n[tasks.my-facts]\nuse = "facts"\n{stage}')
    suite = suite_of_tasks(["my-facts", "arithmetic"], 3, 2, str(recipe))
    (node,) = put_to(suite, Asked("b", BASE), "run", {}, []).nodes
    assert isinstance(node.settings, evaluate.Settings)
    assert node.settings.tasks == {"my-facts": 3, "arithmetic": 3}


# What is kept


def completion(number: int) -> Completion:
    return Completion((number, 2), (-0.1 * number, -1 / 3), (True, True), f"é{number}", "stop", 0)


def test_completions_are_read_as_they_were_written(tmp_path: Path) -> None:
    kept = {"a": completion(1), "b": Completion((), None, (), "said", "length", 0)}
    write_completions(tmp_path / COMPLETIONS_FILE, kept)
    assert read_completions(tmp_path / COMPLETIONS_FILE) == kept


class Drawing:
    """Draws what a request's noise names, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        for index, request in enumerate(requests):
            beat()
            self.asked.append(request.noise_key)
            yield index, completion(request.noise_key)


REQUESTS = [Request((1,), SamplingParams(), noise) for noise in range(6)]


def test_what_is_kept_is_not_drawn_again(tmp_path: Path) -> None:
    looks = iter([False, False, True])  # before the first, the second and the third
    with Home.open(tmp_path / "home") as home:
        first = Drawing()
        seen = KeptSampler(first, home, KEY, lambda: next(looks)).generate(REQUESTS)
        assert [next(seen)[0], next(seen)[0]] == [0, 1]
        with pytest.raises(Interrupted, match="kept"):
            next(seen)
    with Home.open(tmp_path / "home") as home:
        second = Drawing()
        sampler = KeptSampler(second, home, KEY, lambda: False)
        found = dict(sampler.generate(REQUESTS))
        assert found == {index: completion(index) for index in range(6)}
        assert sorted(first.asked + second.asked) == list(range(6))  # each once
        sampler.drop()
        assert home.ledger.begun_stages() == []
    with Home.open(tmp_path / "home") as home:
        assert not list((home.path / "objects").iterdir())


def test_what_has_ended_is_kept_while_the_next_is_drawn(tmp_path: Path) -> None:
    seen = []

    class Slow(Drawing):
        def generate(
            self, requests: Sequence[Request], follow_up: FollowUp | None = None
        ) -> Iterator[tuple[int, Completion]]:
            yield 0, completion(0)
            other = threading.Thread(target=beat)  # a beat of another thread keeps nothing: the ledger is this one's
            other.start()
            other.join()
            seen.append(len(home.ledger.steps(f"{KEY}/samples")))
            beat()
            seen.append(len(home.ledger.steps(f"{KEY}/samples")))
            yield 1, completion(1)

    with Home.open(tmp_path / "home") as home:
        assert len(dict(KeptSampler(Slow(), home, KEY, lambda: False).generate(REQUESTS[:2]))) == 2
        beat()  # nothing is done at it any more
    assert seen == [0, 1]


def test_other_draws_of_the_same_prompt_are_others(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        drawing = Drawing()
        sampler = KeptSampler(drawing, home, KEY, lambda: False)
        list(sampler.generate(REQUESTS[:1]))
        hotter = Request((1,), SamplingParams(temperature=2.0), 0)
        list(sampler.generate([hotter, Request((2,), SamplingParams(), 0), REQUESTS[0]]))
        assert drawing.asked == [0, 0, 0]


def groups_of(home: Home, *, stop: Callable[[], bool] = lambda: False, target: Path, **changes: Any) -> list[Group]:
    table = {"name": "eval", "kind": "evaluate", "from": "tiny-base-weak", "tasks": {"arithmetic": 4}, "samples": 3}
    settings = evaluate.Settings.model_validate({**table, "sampling": {"max_tokens": 24}, **changes})
    outcome = evaluate.run(settings, {"from": Input(BASE, "digest")}, a_context(home, stop_requested=stop))
    target.mkdir()
    outcome.write(target)
    return read_groups(target / GROUPS_FILE)


def test_an_evaluation_that_is_stopped_amid_a_part_goes_on_with_its_samples(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        with pytest.raises(Interrupted, match="samples that had ended are kept"):
            # As soon as some are kept.
            groups_of(
                home, stop=lambda: bool(home.ledger.steps(f"{KEY}/samples")), target=tmp_path / "none", resume="samples"
            )
        kept = {}
        for _, digest in home.ledger.steps(f"{KEY}/samples"):
            kept |= read_completions(home.objects.path(str(digest)) / COMPLETIONS_FILE)
        assert 0 < len(kept) < 12
        resumed = groups_of(home, target=tmp_path / "resumed", resume="samples")
        assert home.ledger.steps(f"{KEY}/samples") == []
    with Home.open(tmp_path / "other") as other:
        whole = groups_of(other, target=tmp_path / "whole")
    drawn = [rollout.completion for group in resumed for rollout in group.rollouts]
    assert all(completion in drawn for completion in kept.values())  # to the last bit
    assert [c.tokens for c in drawn] == [r.completion.tokens for group in whole for r in group.rollouts]


def test_answers_are_as_long_as_the_context_allows(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        context = a_context(home)
        table = {"name": "eval", "kind": "evaluate", "from": "x", "tasks": {"arithmetic": 1}, "up_to_context": True}
        settings = evaluate.Settings.model_validate({**table, "sampling": {"max_tokens": 32768}, "samples": 1})
        outcome = evaluate.run(settings, {"from": Input(BASE, "digest")}, context)
        asked = context.task("arithmetic").problem("test", 0, 0)
        prompt = context.renderer(BASE).render(asked.messages)
    assert outcome.metrics["tasks"]["arithmetic"]["sampling"]["max_tokens"] == 512 - len(prompt)


def test_a_server_is_evaluated_and_not_asked_twice(tmp_path: Path, call: Call) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        return says("It is \\boxed{2}." if number % 3 else "It is \\boxed{3}.") if number < 5 else Answer({}, 400)

    (tmp_path / "rows.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n{"problem": "2 + 0?", "answer": "2"}\n')
    head = 'name = "two"\n[tasks.sums]\nuse = "math-500"\nfile = "rows.jsonl"\n'
    suite = written(tmp_path / "two.toml", "tasks = { sums = 2 }\nsamples = 4", head)
    arguments = ["eval", "large", "--suite", suite, "--home", tmp_path / "home", "--device", "cpu", "--json"]
    options = ["--set", "eval.server.concurrency=1"]
    with chat_server(answer) as fake:
        code, _, err = call(*arguments, *options, "--server", fake.url)
        assert code == 69, err
        first = [body["seed"] for body in fake.bodies[:5]]
        answered = fake.url
        fake.bodies.clear()
    port = int(answered.rpartition(":")[2].partition("/")[0])
    with chat_server(lambda body, number: says("It is \\boxed{2}."), port=port) as fake:
        code, out, err = call(*arguments, *options, "--server", fake.url)
        assert code == 0, err
        assert not set(first) & {body["seed"] for body in fake.bodies}
        assert len(fake.bodies) == 3
        assert {body["max_tokens"] for body in fake.bodies} == {32768}
        asked = len(fake.bodies)
        assert json.loads(call(*arguments, *options, "--server", fake.url)[1])["evaluations"]["eval"]["cached"]
        assert len(fake.bodies) == asked
    figures = json.loads(out)["evaluations"]["eval"]["tasks"]["sums"]
    assert figures["pass@1"]["value"] == pytest.approx(6 / 8)  # of the first five, two say 3
    assert "response_tokens" not in figures  # which nobody knows


def test_the_model_of_a_run_is_what_its_evaluation_was_made_from(tmp_path: Path, call: Call) -> None:
    with Home.open(tmp_path / "home") as home:
        home.ledger.begin_run("r", {"stage": []}, [("zero", "rl", "k")])
        model = home.objects.put(lambda target: shutil.copytree(BASE, target, dirs_exist_ok=True))
        artifact = Artifact(model, "model", "zero", (), "")
        home.ledger.commit_stage(key="k", run="r", name="zero", kind="rl", artifact=artifact, seconds=1.0, tokens=1)
    options = ["--problems", 1, "--samples", 1, "--max-tokens", 4, "--device", "cpu", "--home", tmp_path / "home"]
    code, out, err = call("eval", "r/zero", "--task", "facts", *options, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["model"], told["run"]) == ("r/zero", "facts-r-zero")
    with Home.open(tmp_path / "home", write=False) as home:
        assert home.ledger.artifact(told["evaluations"]["eval"]["digest"]).parents == (model,)
        assert home.ledger.artifact(model).kind == "model"


def test_nothing_else_is_kept_under_the_name_of_a_run(tmp_path: Path, call: Call) -> None:
    with Home.open(tmp_path / "home") as home:
        home.ledger.begin_run("taken", {"stage": []}, [("zero", "rl", "k")])
    code, _, err = call("eval", BASE, "--task", "facts", "--name", "taken", "--home", tmp_path / "home")
    assert code == 2
    assert "no evaluation" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "name a suite, or tasks"),
        (["--suite", "tiny", "--task", "facts"], "name a suite, or tasks"),
        (["--suite", "tini"], "did you mean 'tiny'?"),
        (["--suite", "tiny", "--recipe", "r1-tiny"], "--recipe has no effect"),
        (["--task", "facts", "--api-key-env", "KEY"], "--api-key-env has no effect"),
        (["--task", "facts", "--server", "http://127.0.0.1:1/v1", "--system", "x"], "--system has no effect"),
        (["--task", "no-such-task"], "unknown task 'no-such-task'"),
        (["--suite", "math-500"], "math500.jsonl"),
    ],
)
def test_what_has_no_meaning_is_refused(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("eval", BASE, *options, "--home", tmp_path / "home")
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "home").exists()


# Kills


def kept_samples(home: Path) -> dict[str, Completion]:
    """What a home has kept of an evaluation that is not finished."""
    with Home.open(home) as opened:
        found: dict[str, Completion] = {}
        for key in opened.ledger.begun_stages():
            for _, digest in opened.ledger.steps(key) if key.endswith("/samples") else ():
                found |= read_completions(opened.objects.path(str(digest)) / COMPLETIONS_FILE)
        return found


@pytest.mark.check
def test_an_evaluation_that_is_killed_again_and_again_loses_nothing_and_draws_nothing_twice(
    tmp_path: Path, call: Call
) -> None:
    def command(home: str) -> list[object]:
        options = ["--problems", 30, "--samples", 8, "--max-tokens", 200, "--device", "cpu", "--json"]
        return ["eval", "tiny-base", "--task", "arithmetic", "--home", tmp_path / home, *options]

    kept: dict[str, Completion] = {}
    kills = 0
    while kills < 3:
        running = fork_server().start(
            "import sys\nfrom reasonmill.cli import main\nmain(sys.argv[1:])", *command("home")
        )
        # Killed as soon as more is kept than before; what was sampled since then is lost.
        while running.is_running() and len(list((tmp_path / "home" / "objects").glob("*"))) <= kills:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(signal.SIGKILL)
        if running.wait() != -signal.SIGKILL:
            break
        kills += 1
        now = kept_samples(tmp_path / "home")
        assert now.items() >= kept.items()
        kept = now
    assert kills >= 2
    assert len(kept) > 0

    def groups(home: str) -> list[Group]:
        code, out, err = call(*command(home))
        assert code == 0, err
        return read_groups(Path(json.loads(out)["evaluations"]["eval"]["transcripts"]))

    resumed, whole = groups("home"), groups("whole")
    drawn = [rollout.completion for group in resumed for rollout in group.rollouts]
    assert [len(group.rollouts) for group in resumed] == [8] * 30
    assert all(completion in drawn for completion in kept.values())
    assert [c.tokens for c in drawn] == [r.completion.tokens for group in whole for r in group.rollouts]
    assert kept_samples(tmp_path / "home") == {}
