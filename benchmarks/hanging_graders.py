"""How much longer it takes to grade a step when some of its responses make their grader hang, in every way.

    python benchmarks/hanging_graders.py                        # 512 responses, 5 % of them hang, a limit of 10 s
    python benchmarks/hanging_graders.py --busy 2               # the same beside two processes that only compute
    python benchmarks/hanging_graders.py --first 0.5            # the first call of each process computes so long before

The same responses are graded with those that hang, and with ordinary ones in their places; the workers are new each
time, and their start is in the figures. The bar: the difference is at most the limit and half a second, and what hangs,
and nothing else, gets "could not tell". It ends with exit code 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from busy import busy

from reasonmill.plugins.catalogue import Catalogue, TaskUse
from reasonmill.types import Completion, Grade
from reasonmill.workers.limits import Limits

# The functions of the grader that hang.
WAYS = (
    *("sleeps", "ignores_signals", "blocks_signals", "stops", "loops", "loops_in_c", "loops_in_c_and_blocks"),
    *("computes_in_c", "loops_in_threads", "waits_for_a_child", "leaves_children", "forks_loops", "deadlocks"),
    *("reads_nothing", "catches_all"),
)
# A grader that computes for about a millisecond, as mathematics does, and hangs in the way that the response names.
GRADER = """
import hashlib, os, re, signal, subprocess, sys, threading, time
from reasonmill.types import Grade, Message, Problem

def sleeps(): time.sleep(1000)
def ignores_signals():
    for number in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)
def blocks_signals(): signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(1000)
def stops(): os.kill(os.getpid(), signal.SIGSTOP)
def loops():
    while True: pass
def loops_in_c(): re.match("(a+)+$", "a" * 40 + "b")
def loops_in_c_and_blocks(): signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); loops_in_c()
def computes_in_c(): sys.set_int_max_str_digits(0); int("9" * 10**8)
def loops_in_threads():
    for _ in range(3): threading.Thread(target=loops).start()
    loops()
def waits_for_a_child(): subprocess.run(["sleep", "1000"])
def leaves_children(): [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(3)]; time.sleep(1000)
def forks_loops(): [os.fork() for _ in range(2)]; loops()
def deadlocks(): lock = threading.Lock(); lock.acquire(); lock.acquire()
def reads_nothing(): os.read(os.pipe()[0], 1)
def catches_all():
    while True:
        try: time.sleep(1000)
        except BaseException: pass



class Hanging:
    domain = "reasoning"
    ready = 0.0

    def grade(self, problem, completions):
        if not self.ready:
            self.ready = time.process_time() + FIRST_S
        return [self.of(completion.text) for completion in completions]

    def problem(self, split, seed, index):
        return Problem("hanging", (Message("user", "?"),), "1")

    def problems(self, split, seed):
        return iter((self.problem(split, seed, 0),))

    def of(self, text):
        while time.process_time() < self.ready: pass
        if text in WAYS:
            globals()[text]()
        for number in range(1000):
            digest = hashlib.sha256(f"{text} {number}".encode()).digest()
        return Grade(float(digest[0] % 2), {"accuracy": float(digest[0] % 2)})
"""
# What it may take beyond the limit: processes that must be killed and started again.
MORE_S = 0.5


def texts_of(responses: int, share: float, seed: int) -> list[str]:
    """Responses in a drawn order, of which a share makes the grader hang, in each of the ways as often as in others."""
    hanging = round(share * responses)
    texts = [WAYS[place % len(WAYS)] if place < hanging else f"response {place}" for place in range(responses)]
    random.Random(seed).shuffle(texts)
    return texts


def graded(folder: Path, texts: Sequence[str], limit_s: float, workers: int) -> tuple[float, list[Grade]]:
    """(seconds, the grades) of responses that are all there at once, as they are for the last of a step's."""
    table = TaskUse(use="./hanging.py:Hanging", limits=Limits(seconds=limit_s))  # type: ignore[call-arg]  # Use's arguments
    catalogue = Catalogue({"tasks": {"hanging": table}}, folder)
    task = catalogue.task("hanging")
    problem = task.problem("train", 0, 0)
    with catalogue.workers.limited_to(workers):
        began = time.perf_counter()
        grades = task.grade(problem, [Completion((), None, (), text, "stop", 0) for text in texts])
        return time.perf_counter() - began, grades


def main() -> int:
    options = _parser().parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as name, busy(options.busy):
        folder = Path(name)
        (folder / "hanging.py").write_text(f"WAYS, FIRST_S = {WAYS!r}, {options.first}\n{GRADER}", encoding="utf-8")
        print(
            f"{options.responses} responses, limit {options.limit:g} s, {options.workers} workers, {options.busy} busy"
        )
        for seed in range(options.seed, options.seed + options.repeat):
            texts = texts_of(options.responses, options.share, seed)
            ordinary = [f"instead {place}" if text in WAYS else text for place, text in enumerate(texts)]
            without, all_fine = graded(folder, ordinary, options.limit, options.workers)
            within, grades = graded(folder, texts, options.limit, options.workers)
            wrong = [grade for grade in all_fine if grade.reward is None]
            for text, grade, fine in zip(texts, grades, all_fine, strict=True):
                if (grade != fine) if text not in WAYS else grade.reward is not None:
                    wrong.append(grade)
            grown = within - without
            is_missed = bool(wrong) or grown > options.limit + MORE_S
            missed += is_missed
            print(
                f"seed {seed}: {without:.2f} s without, {within:.2f} s with {sum(text in WAYS for text in texts)} that "
                f"hang, {grown:.2f} s more; {len(wrong)} wrong verdicts: {'MISSED' if is_missed else 'ok'}",
                flush=True,
            )
            for grade in wrong[:5]:
                print(f"  {grade}")
    return int(missed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=512)
    parser.add_argument("--share", type=float, default=0.05, help="share of the responses that hang")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for one response")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute meanwhile")
    parser.add_argument("--first", type=float, default=0.0, help="seconds that a process computes in its first call")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the responses")
    parser.add_argument("--repeat", type=int, default=1, help="so many orders")
    return parser


if __name__ == "__main__":
    sys.exit(main())
