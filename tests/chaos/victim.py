"""What a child of the nursery does: reasonmill's own command line, with the tests' eyes and, if asked, sabotage.

Nothing in the product knows of these patches: they are made in the child, after the fork.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.dataset  # noqa: F401  # the command line imports these only where it needs them
import torch
from matplotlib.figure import Figure
from transformers import AutoModelForSequenceClassification  # noqa: F401
from transformers.models.qwen2 import modeling_qwen2  # noqa: F401
from transformers.utils import logging

from reasonmill import cli, rollouts
from reasonmill.errors import RecipeError
from reasonmill.learn import checkpoints, on_policy, scoring
from reasonmill.learn.adamw import AdamW
from reasonmill.learn.state_file import STATE_FILE
from reasonmill.model.decoder import load_decoder
from reasonmill.plugins.catalogue import installed
from reasonmill.plugins.plugin import GROUPS
from reasonmill.randomness import Part, key
from reasonmill.recipe.reference import shipped_bases
from reasonmill.render import renderer_for
from reasonmill.store.ledger import Ledger, StageRecord
from reasonmill.world import blocks

if TYPE_CHECKING:
    from chaos.nursery import Order


def prepare() -> None:
    """Imports and computes what every start would have to, and leaves no thread behind."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # as the command line does; the bar would bring a thread
    for group in GROUPS:
        for name in installed().names(group):
            with suppress(RecipeError):  # what can't be made without arguments or an extra
                installed().plugin(group, name).code  # noqa: B018  # its sources are parsed once, and then kept
    for base in shipped_bases().values():
        load_decoder(base, device="cpu", dtype=torch.float32)
        renderer_for(base)
    Figure().savefig(io.BytesIO(), format="svg")


def live(order: Order) -> int:
    """Runs the command line under the patches of the order; returns its exit code."""
    watch_states(Path(order.states))
    fork_workers()
    if order.sabotage is not None:
        SABOTAGES[order.sabotage]()
    if order.dies_after_steps is not None:
        die_after_steps(order.dies_after_steps)
    return command(order.arguments)


def command(arguments: Sequence[str]) -> int:
    """Runs reasonmill's command line here; returns its exit code."""
    try:
        cli.main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)


# Eyes


def watch_states(directory: Path) -> None:
    """Leaves a digest of the learner's state after a stage's last step in a file that is named like the stage.

    The product drops most states of finished stages. What is written here is what a next step would go on from.
    """
    last: dict[str, Callable[[Path], None]] = {}  # how to save the state, by the stage's key
    before_step, commit_stage = checkpoints.Checkpoints.before_step, Ledger.commit_stage
    after_last_step = checkpoints.Checkpoints.after_last_step

    def remember(self: Any, step: int, steps: int, save: Callable[[Path], None]) -> None:
        last.clear()
        last[self._run.key] = save
        before_step(self, step, steps, save)

    def remember_at_end(self: Any, steps: int, save: Callable[[Path], None]) -> None:
        last.clear()  # a stage that was killed behind its last step takes none any more
        last[self._run.key] = save
        after_last_step(self, steps, save)

    def write(self: Ledger, *, key: str, name: str, **recorded: Any) -> StageRecord:
        # Before the stage is committed: a stage that is has its digest, wherever the process is killed.
        if key in last:
            (directory / name).write_text(state_digest(last.pop(key)))
        return commit_stage(self, key=key, name=name, **recorded)

    checkpoints.Checkpoints.before_step = remember  # type: ignore[method-assign]
    checkpoints.Checkpoints.after_last_step = remember_at_end  # type: ignore[method-assign]
    Ledger.commit_stage = write  # type: ignore[method-assign]


def state_digest(save: Callable[[Path], None]) -> str:
    """A digest of all that is saved: names, types, shapes and every bit of the values."""
    with tempfile.TemporaryDirectory() as saved:
        save(Path(saved))
        return hashlib.blake2b((Path(saved) / STATE_FILE).read_bytes(), digest_size=32).hexdigest()


def fork_workers() -> None:
    """Lets the workers of pretraining be forked: to start them anew costs a second, and they encode the same."""
    # The child has no threads before its first stage, which is the only one here that has workers.
    context = blocks.multiprocessing.get_context("fork")
    blocks.multiprocessing.get_context = lambda method: context  # type: ignore[assignment]


def die_after_steps(steps: int) -> None:
    """Kills the own process group when so many steps were recorded."""
    record, calls = Ledger.record_metrics, itertools.count(1)

    def record_and_die(self: Ledger, *recorded: Any) -> None:
        record(self, *recorded)
        if next(calls) == steps:
            os.killpg(0, signal.SIGKILL)

    Ledger.record_metrics = record_and_die  # type: ignore[method-assign]


# Sabotage: each breaks one thing that exact resume stands on, and shows only in a run that was cut off. Where that goes
# on with other weights than those that sampled, the stage would end, because learner and sampler differ. It is the
# comparison of ends that has to notice, so that check is left out then.


def draw_from_a_process() -> None:
    """Sampling noise comes from a generator of the process, whose position no state restores."""
    draws = itertools.count()

    def counted(*parts: Part) -> int:
        return key("sample", next(draws)) if parts[0] == "sample" else key(*parts)

    rollouts.key = counted


def sample_committed_groups_again() -> None:
    """A step's committed groups are put aside, and others are drawn and trained on."""
    committed, named = on_policy.committed_groups, key
    again = False

    def noted(*parts: Part) -> int:
        return named(*parts, "again") if again else named(*parts)

    def resample(home: Any, stage_key: str, step: int, sample: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        nonlocal again
        if home.ledger.step_groups(stage_key, step) is None:
            return committed(home, stage_key, step, sample)
        again = True
        try:
            return sample()
        finally:
            again = False

    rollouts.key = noted
    on_policy.committed_groups = resample


def restore_weights_only() -> None:
    """The moments of the optimizer and its count of updates start from nothing."""
    load_state = AdamW.load_state

    def load_weights(self: AdamW, state: Mapping[str, torch.Tensor]) -> None:
        zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items() if not name.startswith("master/")}
        load_state(self, {**state, **zeros})

    AdamW.load_state = load_weights  # type: ignore[method-assign]
    pass_over_mismatch()


def train_on_a_step_twice() -> None:
    """The loaded state is taken for that of one step earlier."""
    resume = checkpoints.Checkpoints.resume

    def resume_earlier(self: checkpoints.Checkpoints, load: Any) -> int:
        return max(0, resume(self, load) - 1)

    checkpoints.Checkpoints.resume = resume_earlier  # type: ignore[method-assign]
    pass_over_mismatch()


def pass_over_mismatch() -> None:
    scoring.refuse_mismatch = lambda measured, step, bound: None  # type: ignore[assignment]


SABOTAGES: dict[str, Callable[[], None]] = {
    "random state": draw_from_a_process,
    "replay": sample_committed_groups_again,
    "optimizer state": restore_weights_only,
    "step": train_on_a_step_twice,
}
