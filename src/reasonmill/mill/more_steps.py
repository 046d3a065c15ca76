"""A finished stage whose `steps` is raised: from where it can resume, or what prevents that."""

from dataclasses import dataclass

from reasonmill.mill.inputs import KeyedStage
from reasonmill.store.home import Home
from reasonmill.store.ledger import ADOPTED


@dataclass(frozen=True)
class ShorterStage:
    """A finished stage that differs from another one in nothing but that it took fewer steps.

    `obstacle` says why the other one can't resume from its last step; None where it can.
    """

    key: str
    steps: int
    digest: str
    obstacle: str | None

    def note(self, name: str) -> str:
        """Whether the shorter one's steps are used, for the user."""
        result = f"step {self.steps} of its finished result {self.digest[:12]}"
        if self.obstacle is None:
            return f"{name}  resumes after {result}"
        return f"{name}  starts from its first step, and not after {result}: {self.obstacle}"


def shorter_stage(stage: KeyedStage, home: Home) -> ShorterStage | None:
    """The longest finished stage that is a beginning of this one, if nothing of this one is committed yet."""
    settings, ledger = stage.node.settings, home.ledger
    wanted: int | None = getattr(settings, "steps", None)
    if wanted is None or ledger.steps(stage.key) or ledger.states(stage.key):
        return None
    found = None
    for record in ledger.stages():
        steps = len(ledger.steps(record.log_key))
        if (record.name, record.kind) != (stage.name, stage.kind) or not (found.steps if found else 0) < steps:
            continue
        if steps < wanted and stage.key_with(steps=steps) == record.key:
            obstacle = settings.against_more_steps()
            if obstacle is None and ADOPTED in record.artifact.metrics:
                obstacle = "its result was adopted from other code"
            if obstacle is None and steps not in dict(ledger.states(record.key)):
                obstacle = "the state after its last step was not kept"
            found = ShorterStage(record.key, steps, record.artifact.digest, obstacle)
    return found
