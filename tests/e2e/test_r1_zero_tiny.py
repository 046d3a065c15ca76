"""The main job at reduced size, from the command line: it learns, is cached, and survives a kill to the bit."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from forked import fork_server
from reasonmill.cli import main
from reasonmill.store.home import Home
from reasonmill.store.ledger import Ledger

SMALLER = (
    "zero.steps=6",
    "zero.problems_per_step=8",
    "zero.group_size=8",
    "zero.sampling.max_tokens=160",
    "zero.state_every=3",
    *(
        f"{model}-eval.{setting}"
        for model in ("base", "zero")
        for setting in ("tasks={countdown-3=8}", "samples=1", "sampling.max_tokens=64")
    ),
)


def command(home: Path) -> list[str]:
    settings = [argument for setting in SMALLER for argument in ("--set", setting)]
    return ["run", "r1-zero-tiny", "--home", str(home), *settings]


def run(home: Path) -> None:
    """Calls the command line in this process."""
    with pytest.raises(SystemExit) as caught:
        main(command(home))
    assert not caught.value.code


def summary(home: Path) -> dict:
    return json.loads((home / "runs" / "r1-zero-tiny" / "summary.json").read_text())


def steps(home: Path) -> list[dict]:
    with Home.open(home, write=False) as opened:
        keys = {stage.name: stage.key for run in opened.ledger.runs() for stage in run.stages}
        return opened.ledger.metrics(keys["zero"]) if "zero" in keys else []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("finished")
    run(home)
    return home


def test_reward_rises(finished: Path) -> None:
    rewards = [step["reward/mean"] for step in steps(finished)]
    assert len(rewards) == 6
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.15


def test_run_directory_holds_what_the_readme_promises(finished: Path) -> None:
    directory = finished / "runs" / "r1-zero-tiny"
    stages = summary(finished)["stages"]
    assert [(stage["name"], stage["kind"]) for stage in stages] == [
        ("base-eval", "evaluate"),
        ("zero", "rl"),
        ("zero-eval", "evaluate"),
    ]
    figure = stages[2]["metrics"]["tasks"]["countdown-3"]["pass@1"]
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert all(stage["digest"] and stage["seconds"] > 0 and stage["tokens"] > 0 for stage in stages)
    assert "<svg" in (directory / "report.html").read_text()


@pytest.mark.check
def test_model_runs_outside_of_reasonmill(finished: Path) -> None:
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "chat = [{'role': 'user', 'content': 'start at 2 then + 3 - 1 * 2 . result ?'}]\n"
        "text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)\n"
        "tokens = tokenizer(text, return_tensors='pt', add_special_tokens=False)\n"
        "out = model.generate(**tokens, max_new_tokens=120, do_sample=False)\n"
        "print(tokenizer.decode(out[0, tokens['input_ids'].shape[1]:]))\n"
        "assert 'reasonmill' not in sys.modules\n"
    )
    model = finished / "runs" / "r1-zero-tiny" / "model"
    process = fork_server().start(script, model, reads_stdout=True)
    assert process.stdout is not None
    said = process.stdout.read()
    assert process.wait() == 0
    assert "<answer>" in said
    assert "<|end|>" in said


def test_second_run_is_all_cache_hits(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "runs" / "r1-zero-tiny" / "report.html").stat().st_mtime_ns
    capsys.readouterr()
    run(finished)
    assert capsys.readouterr().err.count("cached") == 3
    assert (finished / "runs" / "r1-zero-tiny" / "report.html").stat().st_mtime_ns == before


@pytest.mark.check
def test_killed_run_resumes_to_the_same_bits(finished: Path, tmp_path: Path) -> None:
    home = tmp_path / "killed"
    program = "import os; os.setsid(); from reasonmill.cli import main; main()"
    process = fork_server().start(program, *command(home))
    deadline = time.monotonic() + 100
    # Step 4: past a saved state (before step 3) and past committed groups that have to be replayed.
    while Ledger.is_blank(home / "ledger.sqlite") or len(steps(home)) < 4:
        assert process.is_running(), process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    run(home)
    digests = {stage["name"]: stage["digest"] for stage in summary(finished)["stages"]}
    assert {stage["name"]: stage["digest"] for stage in summary(home)["stages"]} == digests
