"""The directory of a run that people look at: its model, its report, its summary and its recipe."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from reasonmill.mill.inputs import model_path
from reasonmill.mill.models import known_digest, make_ready
from reasonmill.mill.report import write_report
from reasonmill.mill.summary import StageResult, read_summary, same_outcome
from reasonmill.recipe.graph import Recipe
from reasonmill.store.commit import replace_directory, replace_file
from reasonmill.store.full_disk import waits_for_room
from reasonmill.store.home import Home
from reasonmill.store.incidents import Incident
from reasonmill.store.looking import exists, is_directory
from reasonmill.store.views import MODEL, RECIPE, SUMMARY, damaged_views, view_digests


class Showcase:
    """The directory of a recipe's run.

    Args:
        reads_all: whether each byte of the copy of the model is looked at, and not only the sizes of its files.
    """

    def __init__(self, recipe: Recipe, home: Home, *, reads_all: bool) -> None:
        self._recipe = recipe
        self._home = home
        self._reads_all = reads_all

    @property
    def directory(self) -> Path:
        return self._home.run_dir(self._recipe.name)

    def has_model(self, digest: str | None) -> bool:
        """Whether the directory shows this model, or none for None."""
        shown = self._shown["model"] if self._shown else None
        return digest == shown and is_directory(self.directory / MODEL) == (digest is not None)

    @waits_for_room
    def publish(self, summary: Mapping[str, Any], results: Sequence[StageResult]) -> None:
        """Makes the directory show these results; what is up to date is left alone."""
        name, ledger, directory = self._recipe.name, self._home.ledger, self.directory
        resolved = _json(self._recipe.resolved())
        shown = self._shown
        if shown is None or not same_outcome(shown, summary) or (directory / RECIPE).read_bytes() != resolved:
            ledger.record_views(name, {})
            replace_file(directory / RECIPE, resolved)
            self._publish_model(summary["model"])
            logs = {result.name: result.log_key for result in results}
            write_report(directory, self._home, summary, logs)
            replace_file(directory / SUMMARY, _json(summary))
            ledger.record_views(name, view_digests(directory))

    @cached_property
    def _shown(self) -> Mapping[str, Any] | None:
        """The summary that the directory shows, if none of its files is damaged; each that is, is reported."""
        directory, recorded = self.directory, self._home.ledger.views(self._recipe.name)
        if not recorded:  # what no digest is recorded of was cut off while it was written, and is not trusted
            return None
        is_readable = not damaged_views(directory, {SUMMARY: recorded[SUMMARY]})
        shown = read_summary(directory) if is_readable else None
        copied = shown["model"] if shown is not None and not self._reads_all else None
        model = self._home.objects.location(copied) if copied and self._home.objects.exists(copied) else None
        damaged = damaged_views(directory, recorded, model=model)
        for name in damaged:
            file, what = directory / name, "is damaged" if exists(directory / name) else "is missing"
            place = file.relative_to(self._home.path).as_posix()
            self._home.incidents.add(Incident(place, recorded[name], what, "it is written again"))
        return None if damaged else shown

    def _publish_model(self, digest: str | None) -> None:
        """Puts a plain copy of the model into the directory, unless that is the model which is shown there."""
        if self.has_model(digest):
            return
        for model in self._recipe.models.values():
            # A gate left it in place, maybe in an earlier process.
            if digest is not None and known_digest(model, self._home) == digest:
                make_ready(model, self._home, lambda said: None)
        source = None
        if digest is not None:
            is_own = self._home.objects.exists(digest)  # then all of it is read, unless it was already
            source = self._home.objects.path(digest) if is_own else model_path(self._home, digest, self._recipe)
        # A crash may leave no model here; the next run then puts it back from the store.
        replace_directory(self.directory / MODEL, source)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
