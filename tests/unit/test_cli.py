"""The command line: exit codes, messages without tracebacks, and what is printed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import Call
from forked import Ended, Running, fork_server

PROGRAM = """
import sys
from reasonmill.plugins import catalogue
folder = sys.argv.pop(1)
fakes = {"stages": {kind: f"{folder}/fake_{kind}.py" for kind in ("train", "measure")}}
catalogue._OFFERS = [fakes, *({**offers, "stages": {}} for offers in catalogue._OFFERS)]
from reasonmill.cli import main
from reasonmill.mill import space
space.RETRY_S = 0.2
main()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def in_a_process(stages: Any, *arguments: object) -> Ended:
    """Calls the command line with the fake stages in a process of its own, which may be sent signals."""
    return fork_server().run(PROGRAM, stages.folder, *arguments)


def started(stages: Any, *arguments: object, **options: Any) -> Running:
    """As `in_a_process`, and does not wait for its end."""
    return fork_server().start(PROGRAM, stages.folder, *arguments, **options)


def written(home: Path) -> dict[Path, int]:
    """When each file was written; SQLite's own files, which readers of the ledger also need, do not count."""
    return {
        path: path.stat().st_mtime_ns
        for path in home.rglob("*")
        if path.is_file() and not path.name.startswith("ledger.sqlite-")
    }


def test_a_run_and_what_is_shown_of_it(call: Call, recipe_file: Path, home: Path, stages: Any) -> None:
    code, out, err = call("run", recipe_file, "--home", home, "--set", "second.text=c", "--device", "cpu")
    assert code == 0
    assert f"run: {home / 'runs' / 'small'}" in out
    assert "first" in err  # the progress
    assert (home / "runs" / "small" / "model" / "weights.txt").read_text() == "baseaaac"
    assert stages.calls == ["first", "second", "check"]

    code, out, _ = call("status", "--home", home)
    assert code == 0
    assert out.count("finished in") == 3

    code, out, _ = call("lineage", "small/check", "--home", home)
    assert code == 0
    assert [line.split()[-3:-1] for line in out.splitlines()] == [
        ["check", "evaluation"], ["second", "model"], ["first", "model"], ["base", "base"],
    ]  # fmt: skip

    code, _, err = call("run", recipe_file, "--home", home, "--set", "second.text=c", "--device", "cpu")
    assert code == 0
    assert err.count("cached") == 3
    assert stages.calls == []


def test_until_leaves_stages_open(call: Call, recipe_file: Path, home: Path) -> None:
    assert call("run", recipe_file, "--home", home, "--until", "first", "--device", "cpu")[0] == 0
    states = [line.split()[2] for line in call("status", "--home", home)[1].splitlines() if "train" in line]
    assert states == ["finished", "open"]


def test_a_dry_run_writes_nothing(call: Call, recipe_file: Path, home: Path, stages: Any) -> None:
    code, out, _ = call("run", recipe_file, "--home", home, "--dry-run")
    assert code == 0
    assert "unknown until first exists" in out
    assert not home.exists()

    call("run", recipe_file, "--home", home, "--until", "first", "--device", "cpu")
    assert stages.calls == ["first"]
    before = written(home)
    code, out, _ = call("run", recipe_file, "--home", home, "--dry-run")
    assert "cached" in out
    assert "to run" in out
    assert written(home) == before
    assert stages.calls == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["run", "no-such-recipe"], "missing recipe: 'no-such-recipe'"),
        (["run", "RECIPE", "--set", "first.stepz=3"], "did you mean 'steps'?"),
        (["run", "RECIPE", "--set", "first.steps"], "write it as stage.key=value"),
        (["run", "RECIPE", "--until", "frist"], "did you mean 'first'?"),
        (["run", "RECIPE", "--until", "frist", "--dry-run"], "did you mean 'first'?"),
        (["problems", "no-such-task"], "unknown task 'no-such-task'"),
        (["problems", "countdown", "--split", "exam"], "unknown split 'exam'"),
        (["eval", "no-such-model", "--task", "countdown"], "missing model: 'no-such-model'"),
        (["chat", "no-such-model"], "missing model: 'no-such-model'"),
    ],
)
def test_a_mistake_of_the_user_is_told_without_a_traceback(
    call: Call, recipe_file: Path, base: Path, home: Path, arguments: list[str], shown: str
) -> None:
    real = {"RECIPE": str(recipe_file), "MODEL": str(base)}
    given = [real.get(argument, argument) for argument in arguments]
    code, out, err = call(*given, *([] if arguments[0] == "problems" else ["--home", home]))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert shown in err
    assert not home.exists()


def test_a_home_that_is_not_there_can_not_be_looked_at(call: Call, home: Path) -> None:
    code, _, err = call("status", "--home", home)
    assert code == 3
    assert "there is no home here" in err


@pytest.mark.parametrize("command", [("status",), ("run", "RECIPE"), ("verify",), ("gc",)])
def test_a_home_without_a_name_is_not_the_current_directory(
    call: Call, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    arguments = [str(recipe_file) if argument == "RECIPE" else argument for argument in command]
    code, _, err = call(*arguments, "--home", "")
    assert code == 2
    assert err.startswith("error: the home has no name")
    assert list((tmp_path / "here").iterdir()) == []
    assert call("status", "--home", ".")[2].startswith("error: there is no home here")


def test_a_full_disk_is_told_with_its_own_exit_code(call: Call, recipe_file: Path, home: Path, stages: Any) -> None:
    source = stages.folder / "fake_train.py"
    failing = "raise OSError(28, 'No space left on device', 'file')"
    source.write_text(source.read_text().replace("    ledger = context.home.ledger\n", f"    {failing}\n"))
    code, _, err = call("run", recipe_file, "--home", home, "--device", "cpu")
    assert code == 75
    assert err.splitlines()[-3].startswith("error: no space is left on the disk")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_the_run_and_the_same_command_resumes_it(
    recipe_file: Path, home: Path, stages: Any, call: Call, number: int, code: int
) -> None:
    stages.interrupt(1, number)
    command = ("run", recipe_file, "--home", home, "--device", "cpu")
    stopped = in_a_process(stages, *command)
    assert stopped.returncode == code
    assert "the same command resumes this run" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert stages.steps == ["first 0", "first 1"]
    assert "at step 2 of 3" in call("status", "--home", home)[1]

    stages.do_not_interrupt()
    assert call(*command)[0] == 0
    assert stages.steps == ["first 2", "second 0"]


def test_a_hangup_that_is_ignored_does_not_stop_a_run(recipe_file: Path, home: Path, stages: Any) -> None:
    stages.interrupt(0, signal.SIGHUP)
    process = started(stages, "run", recipe_file, "--home", home, "--device", "cpu", ignores=[signal.SIGHUP])
    assert process.wait() == 0
    assert stages.steps == ["first 0", "first 1", "first 2", "second 0"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_goes_on_when_nobody_reads_it_any_more(
    recipe_file: Path, home: Path, stages: Any, interrupted: bool
) -> None:
    """As with `2>&1 | head -1`."""
    place = "    context.progress.begin(settings.name"
    change(stages, place, f"    while not (HERE / 'go').exists():\n        time.sleep(0.01)\n{place}")
    if interrupted:
        stages.interrupt(1, signal.SIGTERM)
    command = ("run", recipe_file, "--home", home, "--device", "cpu")
    process = started(stages, *command, reads_stdout=True)
    assert process.stdout is not None
    process.stdout.close()
    process.stderr.close()
    (stages.folder / "go").touch()
    assert process.wait() == (143 if interrupted else 0)
    assert stages.steps == ["first 0", "first 1", *([] if interrupted else ["first 2", "second 0"])]


def test_one_ctrl_c_that_arrives_twice_is_one_request(recipe_file: Path, home: Path, stages: Any) -> None:
    stages.interrupt(0, signal.SIGINT, signal.SIGINT)
    stopped = in_a_process(stages, "run", recipe_file, "--home", home, "--device", "cpu")
    assert stopped.returncode == 130
    assert "the same command resumes this run" in stopped.stderr


def test_a_later_sigint_aborts_at_once(recipe_file: Path, home: Path, stages: Any, call: Call) -> None:
    stages.interrupt(0, signal.SIGINT, signal.SIGINT, pause_s=1.2)
    command = ("run", recipe_file, "--home", home, "--device", "cpu")
    aborted = in_a_process(stages, *command)
    assert aborted.returncode == 130
    assert "stopped at once" in aborted.stderr
    assert "the same command resumes this run" in aborted.stderr
    assert "Traceback" not in aborted.stderr

    assert stages.steps == ["first 0"]

    stages.do_not_interrupt()
    assert call(*command)[0] == 0
    assert stages.steps == ["first 1", "first 2", "second 0"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_pause_of_a_run_whose_disk_is_full(
    recipe_file: Path, home: Path, stages: Any, call: Call, number: int, code: int
) -> None:
    change(stages, "        text += settings.text\n", "        text += settings.text\n" + FILL_THE_DISK)
    (stages.folder / "full").touch()
    command = ("run", recipe_file, "--home", home, "--device", "cpu")
    process = started(stages, *command)
    said = next(line for line in process.stderr if line.startswith("paused"))
    assert "no space is left on the disk" in said
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait() == code
    assert "free some space, then run the same command again" in rest
    assert "Traceback" not in rest
    assert stages.steps == ["first 0"]

    (stages.folder / "full").unlink()
    assert call(*command)[0] == 0
    assert stages.steps == ["first 0", "first 1", "first 2", "second 0"]
    assert (home / "runs" / "small" / "model" / "weights.txt").read_text() == "baseaaab"


def test_a_run_goes_on_when_there_is_room_again(recipe_file: Path, home: Path, stages: Any) -> None:
    change(stages, "        text += settings.text\n", "        text += settings.text\n" + FILL_THE_DISK)
    (stages.folder / "full").touch()
    process = started(stages, "run", recipe_file, "--home", home, "--device", "cpu")
    assert any(line.startswith("paused") for line in process.stderr)
    (stages.folder / "full").unlink()
    rest = process.stderr.read()
    assert process.wait() == 0
    assert "the run resumes" in rest
    assert stages.steps == ["first 0", "first 1", "first 2", "second 0"]


def test_a_stage_that_hangs_is_shown_and_ended(recipe_file: Path, home: Path, stages: Any, call: Call) -> None:
    place = "    context.progress.begin(settings.name"
    change(stages, place, f"    if (HERE / 'hang').exists():\n        time.sleep(600)\n{place}")
    (stages.folder / "hang").touch()
    command = ("run", recipe_file, "--home", home, "--device", "cpu")
    ended = in_a_process(stages, *command, "--set", "watchdog.reading=0.5")
    assert ended.returncode == 75
    assert "stage 'first', phase reading: no sign of progress for" in ended.stderr
    assert "fake_train.py" in ended.stderr  # where it hangs
    assert "watchdog.reading" in ended.stderr

    (stages.folder / "hang").unlink()
    assert call(*command)[0] == 0


# Makes a "train" stage of the fake ones write its next state to a full disk.
FILL_THE_DISK = """
        def write_state(directory, text=text):
            (directory / "weights.txt").write_text(text)
            if (HERE / "full").exists():
                raise OSError(28, "No space left on device")
"""


def change(stages: Any, place: str, new: str) -> None:
    source = stages.folder / "fake_train.py"
    text = source.read_text()
    assert place in text
    put = 'put(lambda directory: (directory / "weights.txt").write_text(text))'
    text = text.replace(place, new)
    source.write_text(text.replace(put, "put(write_state)") if "write_state" in new else text)


def test_signals_are_put_back_after_a_run(call: Call, recipe_file: Path, home: Path, stages: Any) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    call("run", recipe_file, "--home", home, "--device", "cpu")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_problems_as_json_lines(call: Call) -> None:
    code, out, _ = call("problems", "countdown-3", "--num", 2, "--seed", 5, "--json")
    assert code == 0
    first, second = (json.loads(line) for line in out.splitlines())
    assert first.keys() == {"id", "messages", "answer", "meta"}
    assert first["messages"][0]["role"] == "user"
    assert first["id"] != second["id"]
    assert call("problems", "countdown-3", "--num", 2, "--seed", 5, "--json")[1] == out
    assert first["id"] in call("problems", "countdown-3", "--num", 1, "--seed", 5)[1]


def test_help_does_not_load_torch() -> None:
    program = (
        "import sys, reasonmill.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    )
    path = os.pathsep.join(path for path in sys.path if path)
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, check=False, capture_output=True
    )
    assert result.returncode == 0
    assert b"lineage" in result.stdout
