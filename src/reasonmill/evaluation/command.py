"""What the command `eval` does and shows: a suite and a model make a recipe, which is run like any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonmill.errors import RecipeError
from reasonmill.history import note_on
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.suite import Asked, Suite, put_to, read_suite, slug, suite_of_tasks
from reasonmill.store.groups import GROUPS_FILE
from reasonmill.store.home import OBJECTS, Home
from reasonmill.store.ledger_backup import is_home
from reasonmill.store.looking import is_directory
from reasonmill.templates import Prompting

if TYPE_CHECKING:
    from reasonmill.mill.pipeline import RunResult

# Of tasks that no suite names.
_PROBLEMS, _SAMPLES = 100, 4


@dataclass(frozen=True)
class Served:
    """Where the model is served, if it is: address of the API, and name of the variable that holds its key."""

    url: str | None = None
    api_key_env: str | None = None


@dataclass(frozen=True)
class Prompted:
    """How the model is prompted otherwise than by its own files; `template` as the user named it."""

    prompting: Prompting
    template: str | None = None


@dataclass(frozen=True)
class Asking:
    """What the user asks for.

    Attributes:
        suite, tasks: one of the two; `recipe` is one whose own tasks may be named.
        options: settings of all evaluations that options name.
        name: of the run; None for one of suite and model.
    """

    model: str
    suite: str | None
    tasks: tuple[str, ...]
    recipe: str | None
    options: Mapping[str, Any]
    seed: int | None
    name: str | None
    served: Served
    prompted: Prompted


def named(**options: Any) -> dict[str, Any]:
    """The options that the user named."""
    return {key: value for key, value in options.items() if value is not None}


def evaluation_of(asking: Asking, overrides: Sequence[str], home: Path, note: Callable[[str], None]) -> Recipe:
    """The recipe that does what is asked. All that is wrong is reported before a model is loaded.

    Raises:
        RecipeError: something of it is wrong.
    """
    suite = _suite(asking)
    asked = _asked(asking, suite, home, note)
    if asking.seed is not None:
        suite.table["seed"] = asking.seed
    # Of a directory, its own name says enough.
    model = Path(asking.model).name if is_directory(Path(asking.model)) else asking.model
    name = asking.name or slug(f"{suite.name}-{slug(model)}")
    return put_to(suite, asked, name, asking.options, overrides)


def _suite(asking: Asking) -> Suite:
    if (asking.suite is None) == (not asking.tasks):
        raise RecipeError("name a suite, or tasks", fix="--suite NAME or --task NAME, and not both")
    if asking.suite is None:
        return suite_of_tasks(asking.tasks, _PROBLEMS, _SAMPLES, asking.recipe)
    if asking.recipe is not None:
        raise RecipeError("a suite has its own tasks, so that --recipe has no effect", fix="leave --recipe out")
    return read_suite(asking.suite)


def _asked(asking: Asking, suite: Suite, home: Path, note: Callable[[str], None]) -> Asked:
    served, prompting = asking.served, asking.prompted.prompting
    told = {"template": asking.prompted.template, "system": prompting.system, "stop": list(prompting.stop)}
    told = {key: value for key, value in told.items() if value}
    if served.url is not None:
        if told:
            raise RecipeError(
                f"a server prompts its models itself, so that --{next(iter(told))} has no effect",
                fix="leave it out, and set it where the model is served",
            )
        return Asked(asking.model, server={"model": asking.model, **named(**asdict(served))})
    if served.api_key_env is not None:
        raise RecipeError("--api-key-env has no effect without --server", fix="leave it out")
    if prompting.template is not None:
        # A suite's paths are relative to its own file.
        told["template"] = str(Path(str(asking.prompted.template)).expanduser().absolute())
    if asking.model in suite.models:
        return Asked(asking.model, prompting=told)
    from reasonmill.mill.artifacts import find_model

    return Asked(asking.model, find_model(asking.model, home, note).absolute(), prompting=told)


def refuse_other_run(name: str, home: Path) -> None:
    """Refuses to keep an evaluation under the name of a run that made other things.

    Raises:
        RecipeError: there is such a run.
    """
    if not is_home(home):
        return
    with Home.open(home, write=False) as opened:
        for run in opened.ledger.runs():
            if run.name == name and any(stage.kind != "evaluate" for stage in run.stages):
                raise RecipeError(f"the home has a run {name!r} that is no evaluation", fix="give another --name")


def print_evaluation(model: str, result: RunResult, home: Path, *, as_json: bool) -> None:
    """Prints the figures of a run of evaluations, and where their transcripts are; or all of it as JSON.

    Args:
        model: as it was asked for.
    """
    from reasonmill.mill.display import output_console
    from reasonmill.mill.findings import FINDINGS
    from reasonmill.mill.results import print_table, read_results

    run = result.summary["name"]
    stages = result.summary["stages"]
    transcripts = {stage["name"]: home / OBJECTS / stage["digest"] / GROUPS_FILE for stage in stages}
    if as_json:
        found = {
            stage["name"]: {
                "digest": stage["digest"],
                "cached": stage["cached"],
                "transcripts": str(transcripts[stage["name"]]),
                **stage["metrics"],
            }
            for stage in stages
        }
        print(json.dumps({"model": model, "run": run, "evaluations": found}, indent=2, ensure_ascii=False))
        return
    console = output_console()
    shown = [{**stage, "reads": {"from": model}} for stage in stages]
    print_table(console, read_results({"stages": shown}))
    for stage in stages:
        for finding in stage[FINDINGS]:
            note_on(console, f"warning: {stage['name']}: {finding}", style="yellow")
        note_on(console, f"{run}/{stage['name']}  transcripts: {transcripts[stage['name']]}")
    note_on(console, f"report: {result.directory / 'report.html'}")
