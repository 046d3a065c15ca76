"""Graders in workers: what hangs, dies or takes too much spoils nothing and leaves nothing, and the rest is graded as
ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from reasonmill.errors import ReasonmillError
from reasonmill.jail.found import NoJail, found_level
from reasonmill.plugins.catalogue import Catalogue, DataUse, RewardUse, TaskUse
from reasonmill.protocols import FollowUp, Renderer
from reasonmill.rewards.combination import ACCURACY_ALONE, RewardWeights
from reasonmill.rewards.grades import reasons
from reasonmill.rewards.isolated import IsolatedReward, IsolatedTask
from reasonmill.rollouts import collect
from reasonmill.types import Completion, Grade, Request, SamplingParams
from users_code import refused, write

# A grader that does what a response says, as no grader should.
CODE = """
import os, random, re, signal, subprocess, sys, threading, time
from pathlib import Path
from reasonmill.types import Grade, Message, Problem

class Obeying:
    domain = "reasoning"

    def __init__(self, unmade: bool = False) -> None:
        if unmade and "CUDA_VISIBLE_DEVICES" in os.environ:
            raise OSError("not here")

    def problem(self, split, seed, index):
        return Problem("?", (Message("user", f"{split} {index}"),), "1", {"language": "en"})

    def problems(self, split, seed):
        return (self.problem(split, seed, index) for index in range(3))

    def grade(self, problem, completions):
        return [self.of(completion.text) for completion in completions]

    def of(self, text):
        exec(text)
        return Grade(1.0, {"accuracy": 1.0, "chance": random.random(), "process": float(os.getpid())})

class Jailed(Obeying):
    isolation = "jail"

class InWorkers(Obeying):
    isolation = "worker"

class Reads:
    domains = frozenset({"reasoning"})

    def measure(self, attempt):
        exec(attempt.completion.text)
        return len(attempt.task.domain) + os.getpid() / 1e9
"""
MARK = "REASONMILL_TEST_OF_WORKERS"
LIMIT_S = 1.0
TOO_LONG = "it took longer than 1 s"


def completion(text: str) -> Completion:
    return Completion((1,), (0.0,), (True,), text, "stop", 0)


def brought(folder: Path, **table: Any) -> Catalogue:
    """A catalogue with the task `obeying` and the reward `reads`."""
    write(folder, own=CODE)
    told = {"limits": {"seconds": LIMIT_S}, **table}
    return Catalogue(
        {
            "tasks": {"obeying": TaskUse(**{"use": "own.py:Obeying", **told})},
            "rewards": {"reads": RewardUse(use="own.py:Reads", limits=told["limits"])},
        },
        folder,
    )


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogue]:
    monkeypatch.setenv(MARK, str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    catalogue = brought(tmp_path)
    with catalogue.workers.limited_to(2):
        yield catalogue


def graded(catalogue: Catalogue, texts: Sequence[str]) -> list[Grade]:
    task = catalogue.task("obeying")
    return task.grade(task.problem("train", 0, 0), [completion(text) for text in texts])


def marked(folder: Path) -> list[int]:
    """The processes that were started with the mark of a test, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                has_mark = f"{MARK}={folder}".encode() in (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended, or is another user's
                continue
            if has_mark:
                found.append(int(entry.name))
    return found


def require_nothing_left(folder: Path) -> None:
    for _ in range(600):
        if not marked(folder) and not list(folder.glob("reasonmill-workers-*")):
            return
        time.sleep(0.05)
    raise AssertionError(f"left: {marked(folder)} {list(folder.glob('reasonmill-workers-*'))}")


HANGING = {
    "time.sleep(1000)": TOO_LONG,
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)": TOO_LONG,
    "[subprocess.Popen(['sleep', '1000']) for _ in range(3)]; time.sleep(1000)": TOO_LONG,
    "re.match('(a+)+$', 'a' * 40 + 'b')": TOO_LONG,
}
DYING = {
    "os._exit(0)": "it ended its process with exit code 0",
    "sys.exit(0)": "it raised SystemExit: 0",
    "raise KeyboardInterrupt": "it raised KeyboardInterrupt",
    "os.kill(os.getpid(), signal.SIGSEGV)": "its process was ended by SIGSEGV",
    "bytearray(1 << 36)": "it raised MemoryError",
    "os.fork() or (os.setsid(), os.fork(), time.sleep(1000)); os._exit(3)": "it ended its process with exit code 3",
    "print('x' * 100000); os.write(2, b'y' * 100000); raise ValueError('z')": "it raised ValueError: z",
}
# What takes a processor, or has more of a kind that is there already.
MORE = {
    "while True: pass": TOO_LONG,
    "sys.set_int_max_str_digits(0); int('9' * 10**7)": TOO_LONG,
    "os.kill(os.getpid(), signal.SIGSTOP)": TOO_LONG,
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(1000)": TOO_LONG,
    "os.closerange(3, 1000); time.sleep(1000)": "it closed its connection",
    "os.closerange(0, 1000)": "it ended its process with exit code 0",
    "import ctypes; ctypes.string_at(0)": "its process was ended by SIGSEGV",
    "raise BaseExceptionGroup('', [SystemExit()])": "it raised BaseExceptionGroup:  (1 sub-exception)",
}
# What a grader may do, although it leaves something behind.
FINE = (
    "",
    "os.fork()",
    "subprocess.Popen(['sleep', '1000'])",
    "threading.Thread(target=time.sleep, args=(1000,)).start()",
    "Path(os.environ['TMPDIR'], 'left').write_text('x')",
    "signal.setitimer(signal.ITIMER_REAL, 0.3)",
)


def require_reasons(own: Catalogue, folder: Path, bad: dict[str, str]) -> None:
    texts = [text for pair in zip(bad, FINE * len(bad), strict=False) for text in pair]
    found = dict(zip(texts, graded(own, [*texts, *FINE]), strict=False))
    said = {text: found[text].error.partition("could not tell: ")[2] for text in bad}
    assert said == bad
    assert all(found[text].reward is None for text in bad)
    assert [text for text in FINE if text in found and found[text].reward != 1.0] == []
    own.workers.close()
    require_nothing_left(folder)


def test_what_hangs_or_dies_is_ungraded_spoils_nothing_and_leaves_nothing(own: Catalogue, tmp_path: Path) -> None:
    require_reasons(own, tmp_path, HANGING | DYING)


@pytest.mark.check
def test_so_does_what_takes_a_processor_or_breaks_its_connection(own: Catalogue, tmp_path: Path) -> None:
    require_reasons(own, tmp_path, MORE)


# It says who it is and computes for ever; and the states of all who do.
BEGINS = "Path({folder!r}, f'{{os.getpid()}}.pid').touch()\nwhile True: pass"
STATES = """
for path in Path({folder!r}).glob('*.pid'):
    state = Path('/proc', path.stem, 'stat').read_text().rpartition(')')[2].split()[0]
    Path({folder!r}, f'{{path.stem}} {{state}}').touch()
"""


@pytest.mark.check
def test_what_hangs_is_stopped_while_others_wait_and_all_of_it_hangs_at_the_same_time(tmp_path: Path) -> None:
    catalogue = brought(tmp_path, limits={"seconds": 3.0})
    hanging, looks = BEGINS.format(folder=str(tmp_path)), STATES.format(folder=str(tmp_path))
    # None has taken too long when the last but one is graded; the last one waits for a worker meanwhile.
    with catalogue.workers.limited_to(1):
        grades = graded(catalogue, [*["", "", hanging] * 6, looks, ""])
    assert [grade.reward for grade in grades] == [*[1.0, 1.0, None] * 6, 1.0, 1.0]
    assert all("it took longer than 3 s" in grade.error for grade in grades[2:18:3])
    states = [path.name.split()[1] for path in tmp_path.glob("* *")]
    assert len(states) == 6
    assert states.count("T") >= 5  # the last one may just be about to be stopped


# Computes in the first call of a process, as importing does.
PREPARES = """
if "ready" not in globals():
    globals()["ready"] = time.process_time() + 0.4
    while time.process_time() < ready: pass
"""


def test_workers_whose_first_call_takes_long_are_waited_for_and_not_replaced(tmp_path: Path) -> None:
    catalogue = brought(tmp_path, limits={"seconds": 20.0})
    with catalogue.workers.limited_to(1):
        grades = graded(catalogue, [PREPARES] * 24)
    assert [grade.reward for grade in grades] == [1.0] * 24
    assert len({grade.parts["process"] for grade in grades}) <= 4


KILLED = """
import sys
from pathlib import Path
from test_workers import brought, completion
task = brought(Path(sys.argv[1])).task("obeying")
text = "subprocess.Popen(['sleep', '1000']); Path(%r).touch(); time.sleep(1000)" % sys.argv[2]
task.grade(task.problem("train", 0, 0), [completion(text)])
"""


def test_nothing_is_left_when_the_process_that_asks_is_killed(own: Catalogue, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    write(tmp_path, asks=KILLED)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    asking = subprocess.Popen([sys.executable, tmp_path / "asks.py", tmp_path, begun], env=environment)
    while not begun.exists():
        assert asking.poll() is None
        time.sleep(0.02)
    assert len(marked(tmp_path)) >= 5  # it, the manager, the template, the worker, and what that started
    asking.kill()
    asking.wait()
    require_nothing_left(tmp_path)


def test_the_number_of_workers_changes_no_grade(own: Catalogue) -> None:
    texts = [f"number = {place}; time.sleep({place % 3} / 1000)" for place in range(60)]

    def parts(size: int) -> list[tuple[float | None, float]]:
        with own.workers.limited_to(size):
            return [(grade.reward, grade.parts["chance"]) for grade in graded(own, texts)]

    one = parts(1)
    assert one == parts(3)
    assert len(set(one)) == len(texts)


def test_users_code_is_graded_in_another_process_unless_the_recipe_says_otherwise(
    own: Catalogue, tmp_path: Path
) -> None:
    assert graded(own, [""])[0].parts["process"] != os.getpid()
    here = brought(tmp_path, isolation="none", limits=None)
    assert graded(here, [""])[0].parts["process"] == os.getpid()
    error = refused(lambda: brought(tmp_path, isolation="none").task("obeying"))
    assert "is graded in this process, where limits have no effect" in error.what


def test_what_ships_stays_in_the_process_unless_the_recipe_says_otherwise() -> None:
    told = Catalogue({"tasks": {"sums": TaskUse(use="arithmetic", isolation="worker")}})
    assert isinstance(told.task("sums").task, IsolatedTask)
    assert not isinstance(told.task("arithmetic").task, IsolatedTask)
    assert not isinstance(told.reward("format"), IsolatedReward)


def test_a_grader_is_never_isolated_less_than_it_asks_for(tmp_path: Path) -> None:
    error = refused(lambda: brought(tmp_path, use="own.py:InWorkers", isolation="none").task("obeying"))
    assert "needs the isolation 'worker', and the recipe gives it 'none'" in error.what
    error = refused(lambda: brought(tmp_path, use="own.py:Jailed", isolation="worker").task("obeying"))
    assert "needs the isolation 'jail', and the recipe gives it 'worker'" in error.what


def test_what_asks_for_the_jail_is_graded_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        found_level()
    except NoJail:
        pytest.skip("this machine has no jail")
    secret = tmp_path / "secret"
    secret.touch()
    monkeypatch.setenv(MARK, str(tmp_path))
    catalogue = brought(tmp_path / "recipe", use="own.py:Jailed", limits={"seconds": 10.0})
    write(tmp_path / "recipe", helper="HELPED = 1\n")
    own = tmp_path / "recipe" / "own.py"
    jailed = f"class Jailed(Obeying):\n    files = ({str(tmp_path / 'declared')!r},)"
    own.write_text("from .helper import HELPED\n" + own.read_text().replace("class Jailed(Obeying):", jailed))
    (tmp_path / "declared").write_text("1")
    beside = tmp_path / "recipe" / "answers.jsonl"
    beside.touch()
    # Neither what lies elsewhere nor what lies beside the recipe; but what the grader declares.
    reads = f"""for secret in ({str(secret)!r}, {str(beside)!r}):
    try:
        Path(secret).read_text()
    except OSError:
        pass
    else:
        raise AssertionError(secret)
assert Path({str(tmp_path / "declared")!r}).read_text() == "1"
"""
    texts = [reads, f"assert {MARK!r} not in os.environ", "os._exit(3)", ""]
    with catalogue.workers.limited_to(1):
        found = graded(catalogue, texts)
    assert [grade.reward for grade in found] == [1.0, 1.0, None, 1.0], found
    assert found[2].error.endswith("it ended its process with exit code 3")


def test_what_can_not_be_made_in_a_worker_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    catalogue = brought(tmp_path, unmade=True)
    with (
        catalogue.workers.limited_to(1),
        pytest.raises(ReasonmillError, match=r"task 'obeying' can't be made in a worker: .*OSError: not here"),
    ):
        graded(catalogue, ["", ""])


def test_a_manager_that_was_killed_ends_the_run(own: Catalogue, tmp_path: Path) -> None:
    assert graded(own, [""])[0].reward == 1.0
    for process in marked(tmp_path):
        os.kill(process, 9)
    with pytest.raises(ReasonmillError, match="the process that manages grader workers ended with exit code -9"):
        graded(own, [""])


def test_rewards_are_measured_in_workers_and_say_why_they_are_not(own: Catalogue) -> None:
    task = own.task("obeying")
    weights = RewardWeights({"accuracy": 1.0, "reads": 2.0}, {"reads": own.reward("reads")})
    problem, texts = task.problem("train", 0, 0), ["", "if 'attempt' in vars(): time.sleep(1000)"]
    fine, hung = weights.grade(task, problem, [completion(text) for text in texts], noise=(0,))
    assert 9.0 < fine.parts["reads"] < 10.0
    assert fine.parts["reads"] != 9.0 + os.getpid() / 1e9
    assert fine.reward == 1.0 + 2 * fine.parts["reads"]
    assert (hung.reward, hung.error) == (None, f"the reward reads ({TOO_LONG}) could not be measured")
    assert hung.parts["accuracy"] == 1.0


class _OneAfterTheOther:
    """A sampler that finishes a completion only when the one before has been graded."""

    repeatable = True

    def __init__(self, graded: Path) -> None:
        self._graded = graded

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        for place in range(len(requests)):
            yield place, completion(f"Path({str(self._graded)!r}, 'graded {place}').touch()")
            for _ in range(600):
                if (self._graded / f"graded {place}").exists():
                    break
                time.sleep(0.05)
            else:
                raise AssertionError(f"completion {place} is not graded while the next is sampled")


class _Words(Renderer):
    def render_all(self, conversations: Any) -> list[tuple[int, ...]]:
        return [(1, 2) for _ in conversations]


def test_grading_begins_while_sampling_goes_on(own: Catalogue, tmp_path: Path) -> None:
    task = own.task("obeying")
    problems = [task.problem("train", 0, index) for index in range(2)]
    groups = collect(
        _OneAfterTheOther(tmp_path),  # type: ignore[arg-type]  # only what collect asks for
        _Words(),
        {"obeying": task},
        problems,
        rewards=ACCURACY_ALONE,
        num_samples=2,
        params=SamplingParams(max_tokens=4),
        noise=(0,),
    )
    assert [group.rewards for group in groups] == [[1.0, 1.0], [1.0, 1.0]]


def test_the_manager_loads_nothing_but_the_standard_library() -> None:
    program = "import sys, reasonmill.workers.manager as m; sys.exit(any(n in sys.modules for n in %r))"
    modules = ["torch", "numpy", "pydantic", "reasonmill.types"]
    subprocess.run([sys.executable, "-c", program % modules], check=True, env={"PYTHONPATH": os.pathsep.join(sys.path)})


def test_reasons_are_counted_in_few_words() -> None:
    errors = ["the grader of 'x' could not tell: it raised ValueError: 7", "the reward y could not be measured"]
    grades = [Grade(None, error=error) for error in [*errors, errors[0], *"abcdef"]]
    assert reasons([*grades, Grade(1.0)]) == {
        "it raised ValueError": 2, "a": 1, "b": 1, "c": 1, "d": 1, "other reasons": 3
    }  # fmt: skip


def test_a_worker_does_not_read_the_rows_that_its_problems_are_from(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "1 + {n} ?", "answer": "{1 + n}"}}\n' for n in range(20)))
    tables: dict[Any, Any] = {
        "data": {"sums": DataUse(train="rows.jsonl")},
        "tasks": {"told": TaskUse(use="text", data="sums", isolation="worker")},
    }
    catalogue = Catalogue(tables, tmp_path)
    task = catalogue.task("told")
    problem = task.problem("train", 0, 0)
    rows.unlink()
    with catalogue.workers.limited_to(1):
        (grade,) = task.grade(problem, [completion(f"<answer>{problem.answer}</answer>")])
    assert grade.reward == 1.0, grade
