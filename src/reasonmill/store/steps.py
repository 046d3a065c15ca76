"""What a stage keeps between its steps: groups, committed before anything uses them, states to resume from, models."""

from collections.abc import Callable, Sequence
from pathlib import Path

from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.home import OBJECTS, Home
from reasonmill.store.incidents import Incident
from reasonmill.types import Artifact, Group


def committed_groups(home: Home, key: str, step: int, sample: Callable[[], Sequence[Group]]) -> Sequence[Group]:
    """The step's groups: the committed ones of an earlier run, else new ones, which are committed.

    Groups whose object is damaged or missing are reported and sampled again. If they differ then, they replace
    the lost ones only where nothing that counts was made of these.

    Raises:
        OtherContent: they differ when sampled again, and the step was trained on or the stage is finished.
    """
    digest = home.ledger.step_groups(key, step)
    if digest is not None:
        path = home.objects.sound_path(digest, instead=f"the groups of step {step} are sampled again")
        if path is not None:
            return read_groups(path / GROUPS_FILE)
    groups = sample()
    made = home.objects.put(lambda target: write_groups(target / GROUPS_FILE, groups))
    if digest not in (None, made) and not _is_built_on(home, key, step):
        _give_up(home, key, step, "they differ now", "the new ones take their place")
    home.ledger.commit_step(key, step, made)
    return groups


def lost_groups(home: Home, key: str, instead: Callable[[int], str]) -> list[int]:
    """The steps of a finished stage whose groups are damaged or missing, which is reported. Running the stage again
    rebuilds them.

    They can't be rebuilt where a step has lost its groups for good: then they are given up, and left out here.

    Args:
        instead: what is done without the groups of a step, for the user.
    """
    lost = _missing(home, key, instead)
    if lost and any(digest is None for _, digest in home.ledger.steps(key)):
        give_up_lost_groups(home, key, "another step has lost its groups for good, so these can't be sampled again")
        return []
    return lost


def report_lost_groups(home: Home, key: str, instead: Callable[[int], str]) -> None:
    """Reports, each once, groups of a finished stage that are missing or visibly damaged, and does without them.

    Args:
        instead: what is done without the groups of a step, for the user.
    """
    reported = {incident.digest for incident in home.ledger.incidents()}
    for step, digest in home.ledger.steps(key):
        if digest is not None and (digest not in reported or home.objects.exists(digest)):
            home.objects.sound_path(digest, instead=instead(step), read=False)


def give_up_lost_groups(home: Home, key: str, why: str) -> None:
    """Leaves steps whose groups are damaged or missing without groups, and reports why.

    What was made of them stays: the artifact of a finished stage, the states of another one. If none of these
    is left, the stage samples new ones.
    """
    for step in _missing(home, key, lambda step: f"step {step} is left without groups"):
        _give_up(home, key, step, why, "what was made of them stays as it is")


def forget_groups_of_other_weights(home: Home, key: str, start: int) -> None:
    """Prepares steps from `start` on, where each is sampled from weights that were trained on those before.

    Where one of them has lost its groups for good, new ones are sampled, and training on them gives other weights:
    the groups of later steps are dropped, which is reported.
    """
    steps = [(step, digest) for step, digest in home.ledger.steps(key) if step >= start]
    without = next((step for step, digest in steps if digest is None), None)
    if without is None:
        return
    for step, digest in steps:
        if digest is not None and step > without:
            what = f"holds the groups of step {step}, which depend on those of step {without}, which are lost for good"
            home.incidents.add(Incident(f"{OBJECTS}/{digest}", digest, what, "new ones take their place"))
    home.ledger.forget_steps(key, without)


def keep_model(home: Home, artifact: Callable[[str], Artifact], write: Callable[[Path], None]) -> None:
    """Keeps a model of a stage that goes on.

    To be done before a state of the same step or a later one is committed: what resumes from that does not come here.

    Args:
        artifact: what the ledger records of it, where this is its digest.
    """
    home.ledger.register(artifact(home.objects.put(write)))


def kept_models(home: Home, key: str) -> dict[int, str]:
    """Digests of the models that a stage has kept, by the steps that it had taken."""
    return {step: artifact.digest for step, artifact in home.ledger.intermediates(key).items()}


def keep_memory(home: Home, key: str, tokens: int) -> None:
    """Notes how many tokens a stage's sampler has memory for, beside its steps.

    To be done before groups are committed: their commit waits for the disk, and takes this with it.
    """
    home.ledger.record_metrics(_memory_key(key), 0, {"tokens": tokens})


def kept_memory(home: Home, key: str) -> int | None:
    """What `keep_memory` noted; None for a stage of which nothing is committed, which is free to begin with another."""
    begun = any(digest is not None for _, digest in home.ledger.steps(key)) or home.ledger.states(key)
    noted = home.ledger.metrics(_memory_key(key)) if begun else []
    return int(noted[0]["tokens"]) if noted else None


def take_over_memory(home: Home, key: str, from_key: str) -> None:
    """Gives a stage what another one noted, whose steps it goes on from."""
    tokens = kept_memory(home, from_key)
    if tokens is not None:
        keep_memory(home, key, tokens)


def _memory_key(key: str) -> str:
    return f"{key}/memory"


def sound_state(home: Home, key: str) -> tuple[int, Path] | None:
    """Step and directory of the latest state of a stage that is whole, as are the groups of all steps before it.

    Damaged or missing states are reported and forgotten. Where groups are damaged or missing, a state before their
    step is the latest, so that they are sampled again; where models that were kept are, one from which they are made
    again. None if there is no such state.
    """
    lost = _missing(
        home, key, lambda step: f"the stage goes on from before step {step}, whose groups are sampled again"
    )
    unkept = [
        taken
        for taken, digest in kept_models(home, key).items()
        if home.objects.sound_path(digest, instead=f"the model after {taken} steps is made again") is None
    ]
    states = [
        (step, digest)
        for step, digest in home.ledger.states(key)
        if not (lost and step > lost[0]) and not (unkept and step >= unkept[0])
    ]
    others = [
        "the stage goes on from its first step",
        *(f"the state before step {step} is tried" for step, _ in states),
    ]
    for (step, digest), instead in reversed([*zip(states, others, strict=False)]):
        path = home.objects.sound_path(digest, instead=instead)
        if path is not None:
            return step, path
        home.ledger.forget_state(key, step)
    return None


def drop_state(home: Home, key: str, step: int, digest: str) -> None:
    """Removes a state of a stage, and its object unless the ledger refers to an equal one as something else."""
    home.ledger.forget_state(key, step)
    if not home.ledger.refers_to(digest) and home.objects.exists(digest):
        home.objects.delete(digest)


def drop_states_of_finished(home: Home, key: str, *, last: int | None) -> None:
    """Removes the states of a finished stage, which only an unfinished one needs.

    Args:
        last: the step that more steps would resume from, whose state stays; None for a stage that has no such step.
    """
    for step, digest in home.ledger.states(key):
        if step != last:
            drop_state(home, key, step, digest)


def _missing(home: Home, key: str, instead: Callable[[int], str]) -> list[int]:
    """The steps whose groups are damaged or missing, which is reported."""
    return [
        step
        for step, digest in home.ledger.steps(key)
        if digest is not None and home.objects.sound_path(digest, instead=instead(step)) is None
    ]


def _is_built_on(home: Home, key: str, step: int) -> bool:
    """Whether the step was trained on, and so has metrics, or the stage's artifact has its groups."""
    return home.ledger.stage(key) is not None or any(entry["step"] == step for entry in home.ledger.metrics(key))


def _give_up(home: Home, key: str, step: int, why: str, instead: str) -> None:
    """Forgets the groups of a step. Recorded first: a crash in between may report it twice, but never not at all."""
    digest = home.ledger.step_groups(key, step)
    assert digest is not None
    what = f"is lost for good, the groups of step {step}: {why}"
    home.incidents.add(Incident(f"{OBJECTS}/{digest}", digest, what, instead))
    home.ledger.forget_groups(key, step)
