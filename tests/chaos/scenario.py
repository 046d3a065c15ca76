"""A small run on the store alone: two stages with steps, states, artifacts and views, and what must hold of its home.

It does what the pipeline and the training loops do, in their order, with a hash in the place of a model: the weights
after a step depend on the weights before it and on the step's groups, so that a lost state, a lost group or one that
is used twice changes all that comes after. Started again on a home that a crash left behind, it goes on like they do.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from reasonmill.errors import StoreError
from reasonmill.store.commit import damaged_files, replace_directory, replace_file
from reasonmill.store.home import Home
from reasonmill.store.steps import committed_groups, forget_state, latest_state
from reasonmill.store.views import damaged_views, view_digests
from reasonmill.types import Artifact, Completion, Grade, Group, Message, Problem, Rollout

RUN = "small"
SUMMARY, MODEL = "summary.json", "model"
STEPS = {"first": 4, "trial": 1, "second": 2}
FORGOTTEN = "trial"
VERDICTS = "key-first/verdicts"
STATE_EVERY = 2  # so that a step's groups are replayed, too
KEPT_STATES = 1
BASE = Artifact(hashlib.blake2b(b"base", digest_size=32).hexdigest(), "base", "import", (), "", {})
CONFIG = b'{"layers": 1}'
# Where the home is, below a directory that exists: its parent is made, too.
PLACE = "mills/home"

# Columns that differ between runs: times, and seals, which cover them.
TIMES = ("started_s", "created_s", "finished_s", "at_s", "seal")

Rows = dict[str, list[tuple[Any, ...]]]


def carry_out(home_path: Path) -> None:
    """Runs the scenario to its end, from wherever the home is."""
    with Home.open(home_path) as home:
        if home.ledger.runs() == []:
            home.ledger.register(BASE)
        weights, parent = "base", BASE
        for number, name in enumerate(STEPS):
            keys = [(stage, "train", f"key-{stage}") for stage in list(STEPS)[: number + 1]]
            home.ledger.begin_run(RUN, {"seed": 0}, keys)
            parent = _finish(home, name, weights, parent)
            weights = (home.objects.path(parent.digest) / "parts" / "weights").read_text()
            publish(home, parent)
        # As is done with verdicts of a judge that are damaged.
        home.ledger.commit_step(VERDICTS, 0, parent.digest)
        home.ledger.forget_step(VERDICTS, 0)
        # As the pipeline does with a stage whose object is gone.
        if home.ledger.stage(f"key-{FORGOTTEN}") is not None:
            home.ledger.forget_stage(f"key-{FORGOTTEN}")
    # Once more, as the command does that finds everything finished.
    with Home.open(home_path) as home:
        assert home.ledger.stage(f"key-{name}") is not None


def _finish(home: Home, name: str, weights: str, parent: Artifact) -> Artifact:
    key = f"key-{name}"
    record = home.ledger.stage(key)
    if record is not None and home.objects.sound_path(record.artifact.digest, instead="it is made again") is None:
        home.ledger.forget_stage(key)
        record = None
    if record is None:
        home.ledger.begin_stage(key, "a machine")
        weights = _train(home, key, STEPS[name], weights)
        digest = home.objects.put(partial(write_model, weights))
        artifact = Artifact(digest, "model", name, (parent.digest,), "", {"length": len(weights)})
        home.ledger.commit_stage(
            key=key, run=RUN, name=name, kind="train", artifact=artifact, seconds=0.0, tokens=STEPS[name]
        )
        home.back_up_ledger()
    else:
        artifact = record.artifact
    for step, digest in home.ledger.states(key):
        forget_state(home, key, step, digest)
    return artifact


def _train(home: Home, key: str, steps: int, weights: str) -> str:
    start = 0
    latest = latest_state(home, key)
    if latest is not None:
        start, directory = latest
        weights = (directory / "parts" / "weights").read_text()
    for step in range(start, steps):
        groups = committed_groups(home, key, step, partial(sample, key, step, weights))
        weights = blake2b(weights, repr(groups))
        home.ledger.record_metrics(key, step, {"reward/mean": groups[0].rollouts[0].grade.reward or 0.0})
        # The last state is the very object that the stage makes: it must outlive the states.
        if (step + 1) % STATE_EVERY == 0:
            home.ledger.commit_state(key, step + 1, home.objects.put(partial(write_model, weights)))
            for old_step, old_digest in home.ledger.states(key)[:-KEPT_STATES]:
                forget_state(home, key, old_step, old_digest)
    return weights


def sample(key: str, step: int, weights: str) -> list[Group]:
    """One group of one rollout, drawn from the weights."""
    drawn = blake2b(key, str(step), weights)
    completion = Completion((1, int(drawn[:4], 16)), (-0.5, -0.25), (True, True), drawn, "stop", step)
    problem = Problem("sums", (Message("user", f"{key} {step}"),), "1")
    return [Group(problem, (Rollout((7, 8), completion, Grade(int(drawn[:2], 16) / 256)),))]


def write_model(weights: str, directory: Path) -> None:
    """Two files, one of them in a directory below."""
    (directory / "config.json").write_bytes(CONFIG)
    (directory / "parts").mkdir()
    (directory / "parts" / "weights").write_text(weights)


def publish(home: Home, artifact: Artifact) -> None:
    """Makes the run's views show the artifact, unless they do."""
    directory = home.run_dir(RUN)
    recorded = home.ledger.views(RUN)
    is_whole = recorded and not damaged_views(directory, recorded)
    if is_whole and json.loads((directory / SUMMARY).read_text())["model"] == artifact.digest:
        return
    home.ledger.record_views(RUN, {})
    replace_directory(directory / MODEL, home.objects.path(artifact.digest))
    replace_file(directory / SUMMARY, json.dumps({"model": artifact.digest, "stage": artifact.stage}).encode())
    home.ledger.record_views(RUN, view_digests(directory, {MODEL, SUMMARY}))


def blake2b(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def whole_models() -> Iterator[dict[str, bytes | None]]:
    """The files of each model that the run makes, worked out without a home."""
    weights = "base"
    for name, steps in STEPS.items():
        for step in range(steps):
            weights = blake2b(weights, repr(sample(f"key-{name}", step, weights)))
        yield {"": None, "/config.json": CONFIG, "/parts": None, "/parts/weights": weights.encode()}


MODELS = list(whole_models())


# What must hold


class Contents(NamedTuple):
    """All that a home holds.

    `rows` are those of the ledger without times, `objects` has the first file of each object that is not whole, or
    None, and `views` what is below runs/ for somebody to look at; what is half made has a name that begins with a dot.
    """

    rows: Rows
    objects: dict[str, str | None]
    views: dict[str, bytes | None]


def contents(home_path: Path) -> Contents:
    return Contents(ledger_rows(home_path), objects_of(home_path / "objects"), views_of(home_path / "runs"))


def ledger_rows(home_path: Path) -> Rows:
    """Rows of all tables without their times; no rows where there is no ledger, or one that was only just begun."""
    path = home_path / "ledger.sqlite"
    if not path.exists():
        return {}
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows: Rows = {}
        for table in sorted(tables):
            columns = [column[1] for column in database.execute(f"PRAGMA table_info({table})")]
            kept = ", ".join(column for column in columns if column not in TIMES)
            rows[table] = sorted(database.execute(f"SELECT {kept} FROM {table}").fetchall(), key=repr)
    return rows


def objects_of(directory: Path) -> dict[str, str | None]:
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return {name: next(iter(damaged_files(directory / name, name)), None) for name in names}


def views_of(directory: Path) -> dict[str, bytes | None]:
    """None stands for a directory."""
    paths = list(directory.rglob("*")) if directory.is_dir() else []
    names = {path: path.relative_to(directory).as_posix() for path in paths}
    return {
        name: path.read_bytes() if path.is_file() else None
        for path, name in names.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }


def referred(rows: Rows) -> set[str]:
    """Digests of the objects that the ledger says are there: artifacts but for bases, groups and states."""
    groups = {row[2] for row in rows.get("steps", []) if row[2] is not None}
    states = {row[2] for row in rows.get("states", [])}
    return _artifacts(rows) | groups | states


def damage(found: Contents) -> Iterator[str]:
    """What is wrong with a home that a crash left, one line each, whatever the run had come to."""
    for name, damaged in sorted(found.objects.items()):
        if damaged is not None:
            yield f"object {name[:12]} is not whole: {damaged}"
    for digest in sorted(referred(found.rows) - found.objects.keys()):
        yield f"the ledger refers to object {digest[:12]}, which is not there"
    summary = found.views.get(f"{RUN}/{SUMMARY}")
    if summary is not None:
        try:
            json.loads(summary)
        except ValueError:
            yield "the summary is torn"
    # Half a model in its place would never be made again.
    place = f"{RUN}/{MODEL}"
    model = {name.removeprefix(place): data for name, data in found.views.items() if name.startswith(place)}
    if model and model not in MODELS:
        yield "the view of the model is not whole"


def incidents(found: Contents) -> set[str]:
    """Of which objects and files damage was told.

    A process that ended before it had dealt with damage leaves an object damaged, or missing: that is told once more.
    """
    return {"/".join(row[1].split("/")[:2]) for row in found.rows.get("incidents", [])}


def unfinished(home_path: Path, expected: Contents, known_objects: frozenset[str]) -> Iterator[str]:
    """How a home differs from one whose run was not interrupted, after the run went on to its end.

    An object that was forgotten and not yet removed may be left over; it must be one that the run had made.
    """
    found = contents(home_path)
    if incidents(found) != incidents(expected):
        yield f"incidents are of {sorted(incidents(found))} and not of {sorted(incidents(expected))}"
    for table in sorted((found.rows.keys() | expected.rows.keys()) - {"incidents"}):
        if found.rows.get(table) != expected.rows.get(table):
            yield f"table {table} is {found.rows.get(table)} and not {expected.rows.get(table)}"
    missing, foreign = expected.objects.keys() - found.objects.keys(), found.objects.keys() - known_objects
    if missing or foreign:
        yield f"objects {sorted(missing)} are missing, and the run did not make {sorted(foreign)}"
    if found.views != expected.views:
        yield f"the views are {found.views} and not {expected.views}"
    leftovers = [path.name for path in (home_path / "tmp").iterdir()]
    leftovers += [path.name for path in (home_path / "runs" / RUN).iterdir() if path.name.startswith(".")]
    if leftovers:
        yield f"left over: {leftovers}"


def continued(home_path: Path, expected: Contents, known_objects: frozenset[str]) -> Iterator[str]:
    """What is wrong after the run goes on from where a crash left it, to its end."""
    try:
        carry_out(home_path)
    except (StoreError, OSError, sqlite3.Error, AssertionError) as error:
        yield f"the run can't go on: {error!r}"
        return
    yield from damage(contents(home_path))
    yield from unfinished(home_path, expected, known_objects)


def reported(find: Callable[[], Iterator[str]]) -> list[str]:
    """All problems that `find` yields; an error of its own is one, too."""
    try:
        return list(find())
    except Exception as error:
        return [f"the home can't be looked at: {error!r}"]


def _artifacts(rows: Rows) -> set[str]:
    return {row[1] for row in rows.get("artifacts", []) if row[2] != "base"}
