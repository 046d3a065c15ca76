"""A small run on the store alone, in parts between which the disk rots.

It does what the pipeline and the training loops do, in their order, with a hash in the place of a model: the weights
after a step depend on the weights before it and on the step's groups, so that a lost state, a lost group or one that
is used twice changes all that comes after. Started again on a home that a crash left behind, it goes on like they do.

Damage is done to a home at rest, when a part begins, and once: a mark beside the home says that it is done, also to a
process that starts again after a crash. So a part that begins with damage is a recovery, which can be cut off anywhere.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from reasonmill.store.accounts import ALWAYS, account
from reasonmill.store.commit import replace_directory, replace_file
from reasonmill.store.garbage import collect_garbage
from reasonmill.store.groups import GROUPS_FILE
from reasonmill.store.home import OBJECTS, Home
from reasonmill.store.incidents import Incident
from reasonmill.store.ledger import Ledger
from reasonmill.store.ledger_backup import BACKUPS, LEDGER, SEAL, SIDE_FILES, read_seal
from reasonmill.store.objects import QUARANTINE
from reasonmill.store.plans import KeptPlans, Plan, write_plans
from reasonmill.store.removal import remove_runs
from reasonmill.store.steps import (
    committed_groups,
    drop_state,
    drop_states_of_finished,
    lost_groups,
    report_lost_groups,
    sound_state,
)
from reasonmill.store.views import RUNS, damaged_views, view_digests
from reasonmill.types import Artifact, Completion, Grade, Group, Message, Problem, Rollout

RUN, BRIEF = "small", "brief"
SUMMARY, MODEL = "summary.json", "model"
WEIGHTS = "parts/weights"
# The last state of the first and the last stage is the very object that the stage makes: it must outlive the states.
STEPS = {"first": 2, "longer": 3, "second": 4}
# The second stage is the first one with more steps: it takes its steps over, and the last state of the first stays.
SHORTER, LONGER = "first", "longer"
FORGOTTEN = "longer"
STOPPED = 2  # steps of the last stage
VERDICTS = "key-first/verdicts"
PLANNED = KeptPlans((Plan("key-second", "a machine", begun=0, seconds=1.0, memory_bytes=None),))
STATE_EVERY = 2  # so that a step's groups are replayed, too
KEPT_STATES = 1
BASE = Artifact(hashlib.blake2b(b"base", digest_size=32).hexdigest(), "base", "import", (), "", {})
CONFIG = b'{"layers": 1}'
LOG = SIDE_FILES[0]
# Where the home is, below a directory that exists: its parent is made, too.
PLACE = "mills/home"

OnRot = Callable[[Path], None]  # is told of each file that changed without the store


class Mark(NamedTuple):
    """A file of the home that was damaged, and the digest of what it holds instead."""

    file: str
    digest: str


def carry_out(home_path: Path, parts: range, on_rot: OnRot = lambda path: None) -> None:
    """Carries out these parts, the first of them from wherever the home is."""
    for part in parts:
        work, damage = PARTS[part]
        mark = mark_of(home_path, part)
        if damage is not None and not mark.exists():
            changed = list(damage(home_path))
            damaged = [name for name in changed if (home_path / name).exists() and not is_leftover(name)]
            marks = [Mark(name, content_digest((home_path / name).read_bytes())) for name in damaged]
            mark.write_text(json.dumps(marks))
            for name in changed:
                on_rot(home_path / name)
            on_rot(mark)
        work(home_path)


def mark_of(home_path: Path, part: int) -> Path:
    """The file beside the home that says what was damaged before a part."""
    return home_path.parents[1] / f"damage-{part}"


@lru_cache(maxsize=4096)
def content_digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def is_leftover(name: str) -> bool:
    """Whether this is on its way to a view: of no worth, and no damage."""
    return name.startswith(f"{RUNS}/{RUN}/.")


# What the run does


def begin(home_path: Path) -> None:
    """One stage, and a plan of the next. Most operations come first here, and each is met by every fault: what is small
    is soon done again."""
    with Home.open(home_path) as home:
        _run(home, stages=1)
        write_plans(home_path, PLANNED)


def go_on(home_path: Path) -> None:
    """The recipe has two more stages now; the last is stopped on its way."""
    with Home.open(home_path) as home:
        _run(home, stop_after=STOPPED)


def finish_beside_a_reader(home_path: Path) -> None:
    """The rest. Then a stage counts as not finished, as one does whose object is gone, and what steps have is
    forgotten, as where it is damaged or came of what is lost."""
    with Home.open(home_path) as home:
        last = _run(home)
        for part in range(2):
            home.ledger.commit_step(VERDICTS, part, last.digest)
        home.ledger.forget_groups(VERDICTS, 0)
        home.ledger.forget_steps(VERDICTS, 1)
        home.ledger.forget_stage(f"key-{FORGOTTEN}")
        reader = Home.open(home_path, write=False)
        reader.ledger.runs()
    reader.close()


def run_and_clean_up(home_path: Path) -> None:
    """The same recipe again, which finds the damage that it meets, and then all; then garbage, as runs leave it that
    are cut off, which is collected."""
    with Home.open(home_path) as home:
        _run(home)
    with Home.open(home_path) as home:
        _run(home, repair=True)
        home.objects.put(partial(write_model, "needed by nobody"))
        # A process that ends between a stage's commit and this one's removal leaves such a state.
        home.ledger.commit_state("key-first", 1, home.objects.put(partial(write_model, "idle")))
        _begin_brief_run(home)
    collect_garbage(home_path)


def remove_brief_run(home_path: Path) -> None:
    """The other run is removed; what had removed it to the end but for closing the home only does that."""
    with Home.open(home_path, write=False) as home:
        is_there = any(run.name == BRIEF for run in home.ledger.runs())
    if is_there or (home_path / RUNS / BRIEF).exists():
        remove_runs(home_path, [BRIEF])
    else:
        Home.open(home_path).close()


def _begin_brief_run(home: Home) -> None:
    """A run with the first stage, and one of its own that is stopped on its way."""
    home.ledger.begin_run(BRIEF, {"seed": 1}, [(name, "train", f"key-{name}") for name in (SHORTER, BRIEF)])
    home.ledger.commit_step(f"key-{BRIEF}", 0, home.objects.put(partial(write_model, "groups of the brief run")))
    home.ledger.commit_state(f"key-{BRIEF}", 1, home.objects.put(partial(write_model, "state of the brief run")))
    replace_file(home.run_dir(BRIEF) / SUMMARY, b"{}")


def _run(home: Home, *, stages: int = len(STEPS), stop_after: int | None = None, repair: bool = False) -> Artifact:
    """What a run of so many stages does, the last of which is stopped after so many steps, if any; returns what it has
    come to."""
    home.incidents.tell(lambda text: None)
    if home.ledger.runs() == []:
        home.ledger.register(BASE)
    done = [BASE]
    while len(done) <= stages:
        begun = list(STEPS)[: len(done)]
        name = begun[-1]
        home.ledger.begin_run(RUN, {"seed": 0}, [(stage, "train", f"key-{stage}") for stage in begun])
        parent = BASE if name == LONGER else done[-1]
        artifact = _committed(home, name, parent, repair=repair)
        is_cached = artifact is not None
        if artifact is None:
            if not _is_whole(home, parent):
                _forget_last(home, done)
                continue
            artifact = _finished(home, name, parent, stop_after if len(done) == stages else None)
            if artifact is None:  # stopped on its way: what is finished is shown
                if publish(home, done[-1]):
                    break
                _forget_last(home, done)
                continue
        drop_states_of_finished(home, f"key-{name}", last=STEPS[name] if name == SHORTER else None)
        done.append(artifact)
        is_last = len(done) > stages
        if (repair or is_last or not is_cached) and not publish(home, artifact):
            _forget_last(home, done)
    return done[-1]


def _is_whole(home: Home, artifact: Artifact) -> bool:
    """Whether all of what is about to be used is what was committed."""
    return artifact is BASE or home.objects.sound_path(artifact.digest, instead="it is rebuilt") is not None


def _forget_last(home: Home, done: list[Artifact]) -> None:
    """Goes back to the stage that made what is damaged."""
    home.ledger.forget_stage(f"key-{done.pop().stage}")


def _committed(home: Home, name: str, parent: Artifact, *, repair: bool) -> Artifact | None:
    """A stage as the ledger has it, unless its artifact is seen to be damaged; a repair reads all that it has, and
    makes groups that it has lost again."""
    key = f"key-{name}"
    record = home.ledger.stage(key)
    if record is None:
        return None
    if home.objects.sound_path(record.artifact.digest, instead="it is rebuilt", read=repair) is None:
        home.ledger.forget_stage(key)
        return None
    if not repair:
        report_lost_groups(home, key, lambda step: "the stage does without them")
    elif lost_groups(home, key, lambda step: "they are made again"):
        _train(home, name, STEPS[name], parent)
    for step, digest in home.ledger.states(key):
        if home.objects.sound_path(digest, instead="the stage does without it", read=repair) is None:
            home.ledger.forget_state(key, step)
    return record.artifact


def _finished(home: Home, name: str, parent: Artifact, limit: int | None) -> Artifact | None:
    key = f"key-{name}"
    if name == LONGER and not home.ledger.steps(key) and home.ledger.states(f"key-{SHORTER}"):
        home.ledger.carry_over(key, f"key-{SHORTER}", STEPS[SHORTER])
    home.ledger.begin_stage(key, "a machine")
    weights = _train(home, name, STEPS[name] if limit is None else limit, parent)
    if limit is not None:
        return None
    digest = home.objects.put(partial(write_model, weights))
    artifact = Artifact(digest, "model", name, (parent.digest,), "", {"length": len(weights)})
    home.ledger.commit_stage(
        key=key, run=RUN, name=name, kind="train", artifact=artifact, seconds=0.0, tokens=STEPS[name]
    )
    home.back_up_ledger()
    return artifact


def _train(home: Home, name: str, steps: int, parent: Artifact) -> str:
    key, start = f"key-{name}", 0
    weights = "base" if parent is BASE else (home.objects.path(parent.digest) / WEIGHTS).read_text()
    latest = sound_state(home, key)
    if latest is not None:
        start, path = latest
        weights = (path / WEIGHTS).read_text()
    for step in range(start, steps):
        groups = committed_groups(home, key, step, partial(sample, name, step, weights))
        weights = blake2b(weights, repr(groups))
        reward = groups[0].rollouts[0].grade.reward or 0.0
        home.ledger.record_metrics(key, step, {"reward/mean": reward, **account(groups, step, ALWAYS)})
        if (step + 1) % STATE_EVERY == 0:
            home.ledger.commit_state(key, step + 1, home.objects.put(partial(write_model, weights)))
            for old_step, old_digest in home.ledger.states(key)[:-KEPT_STATES]:
                drop_state(home, key, old_step, old_digest)
    return weights


def sample(name: str, step: int, weights: str) -> list[Group]:
    """One group of one rollout, drawn from the weights; the longer stage draws what the shorter one does."""
    key = f"key-{SHORTER if name == LONGER else name}"
    drawn = blake2b(key, str(step), weights)
    completion = Completion((1, int(drawn[:4], 16)), (-0.5, -0.25), (True, True), drawn, "stop", step)
    problem = Problem("sums", (Message("user", f"{key} {step}"),), "1")
    return [Group(problem, (Rollout((7, 8), completion, Grade(int(drawn[:2], 16) / 256)),))]


def write_model(weights: str, directory: Path) -> None:
    """Two files, one of them in a directory below."""
    (directory / "config.json").write_bytes(CONFIG)
    (directory / "parts").mkdir()
    (directory / WEIGHTS).write_text(weights)


def publish(home: Home, artifact: Artifact) -> bool:
    """Makes the run's views show the artifact, unless they do; False if it is damaged, so that they can't."""
    directory, recorded = home.run_dir(RUN), home.ledger.views(RUN)
    damaged = damaged_views(directory, recorded)
    for name in damaged:
        home.incidents.add(
            Incident(f"{RUNS}/{RUN}/{name}", recorded[name], "is damaged", "it is written again", time.time())
        )
    is_whole = bool(recorded) and not damaged
    shown = json.loads((directory / SUMMARY).read_text())["model"] if is_whole else None
    if shown == artifact.digest:
        return True
    if not _is_whole(home, artifact):
        return False
    home.ledger.record_views(RUN, {})
    replace_directory(directory / MODEL, home.objects.path(artifact.digest))
    replace_file(directory / SUMMARY, json.dumps({"model": artifact.digest, "stage": artifact.stage}).encode())
    home.ledger.record_views(RUN, view_digests(directory))
    return True


def blake2b(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def whole_models() -> Iterator[dict[str, bytes | None]]:
    """The files of each model that the run makes, worked out without a home."""
    weights = "base"
    for name, steps in STEPS.items():
        weights = "base" if name == LONGER else weights
        for step in range(steps):
            weights = blake2b(weights, repr(sample(name, step, weights)))
        yield {"": None, "/config.json": CONFIG, "/parts": None, f"/{WEIGHTS}": weights.encode()}


MODELS = list(whole_models())


# What the disk does, and once the user; each yields what it changed


def rot_of_the_closed_ledger(home: Path) -> Iterator[str]:
    """A byte that SQLite does not look at, a log that is none, and the last backup. The user removes the quarantine."""
    seal = read_seal(home)
    assert seal is not None
    yield flip(home, LEDGER)
    (home / LOG).write_bytes(b"no log" * 16)
    yield LOG
    yield flip(home, f"{BACKUPS}/{seal.backups[0]}/{LEDGER}")
    (home / QUARANTINE).rmdir()
    yield QUARANTINE


def rot_of_what_is_going_on(home: Path) -> Iterator[str]:
    """The only state of a stage that is not finished, groups that it was trained on, a view, and the last backup."""
    with closing(Ledger(home / LEDGER, write=False, is_final=True)) as ledger:
        state, groups = ledger.states("key-second")[-1][1], ledger.step_groups("key-second", 1)
    seal = read_seal(home)
    assert seal is not None
    yield flip(home, f"{OBJECTS}/{state}/{WEIGHTS}")
    yield truncate(home, f"{OBJECTS}/{groups}/{GROUPS_FILE}")
    yield flip(home, f"{RUNS}/{RUN}/{SUMMARY}")
    yield flip(home, f"{BACKUPS}/{seal.backups[0]}/{LEDGER}")


def rot_of_the_seal_a_row_and_all_objects(home: Path) -> Iterator[str]:
    """A digit of the ledger, which only the seal of its row shows then, and a file of each object.

    And what a writer of views left.
    """
    yield flip(home, SEAL)
    with closing(sqlite3.connect(home / LEDGER)) as database, database:
        database.execute("UPDATE steps SET metrics = replace(metrics, '0.', '1.') WHERE step = 1")
    yield LEDGER
    for number, directory in enumerate(sorted((home / OBJECTS).iterdir())):
        files = sorted(path.relative_to(home).as_posix() for path in directory.rglob("*") if path.is_file())
        yield (flip, truncate)[number % 2](home, files[number % len(files)])
    views = home / RUNS / RUN
    (views / f".{MODEL}.new").mkdir()
    (views / f".{MODEL}.new" / "config.json").write_bytes(CONFIG)
    (views / f".{SUMMARY}.tmp").write_bytes(b"{")
    yield from (f"{RUNS}/{RUN}/.{name}" for name in (f"{MODEL}.new/config.json", f"{SUMMARY}.tmp"))


def flip(home: Path, name: str) -> str:
    """Changes a bit; in a ledger it is one of those in its header that are kept for later versions of SQLite."""
    data = bytearray((home / name).read_bytes())
    data[min(80, len(data) // 2)] ^= 1
    (home / name).write_bytes(data)
    return name


def truncate(home: Path, name: str) -> str:
    data = (home / name).read_bytes()
    (home / name).write_bytes(data[: len(data) // 2])
    return name


class Part(NamedTuple):
    work: Callable[[Path], None]
    damage: Callable[[Path], Iterator[str]] | None = None  # before the work


PARTS = (
    Part(begin),
    Part(go_on),
    Part(go_on, rot_of_the_closed_ledger),
    Part(finish_beside_a_reader, rot_of_what_is_going_on),
    Part(run_and_clean_up, rot_of_the_seal_a_row_and_all_objects),
    Part(remove_brief_run),
)
ALL = range(len(PARTS))
