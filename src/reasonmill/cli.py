"""The command line: the only place where the parts are put together.

What needs torch is imported inside the commands, so that `--help` and mistakes in arguments answer at once.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from reasonmill import grade, history, preview, upkeep
from reasonmill.audit.command import audit_command
from reasonmill.doctor.command import doctor
from reasonmill.errors import Interrupted, ReasonmillError, RecipeError
from reasonmill.evaluation.compare import compare
from reasonmill.history import note_on, note_to_user, table_of
from reasonmill.lasting_streams import lasting, open_closed_streams
from reasonmill.options import (
    DEFAULT_HOME,
    AcceptOption,
    ApiKeyOption,
    DeviceOption,
    HomeOption,
    JsonOption,
    ModelArgument,
    OverridesOption,
    RecipeArgument,
    RecipeOption,
    ServerOption,
    SplitOption,
    StopOption,
    SuiteOption,
    SystemOption,
    TemplateOption,
    UntilOption,
    WorkersOption,
)
from reasonmill.stop_signals import StopSignals
from reasonmill.store.commit import error_of_disk
from reasonmill.templates import CHAT_TEMPLATES, Prompting, read_template
from reasonmill.types import Message

if TYPE_CHECKING:
    from reasonmill.backends.native import NativeBackend
    from reasonmill.mill.pipeline import RunResult
    from reasonmill.placement import Placement
    from reasonmill.plugins.catalogue import Catalogue
    from reasonmill.recipe.graph import Recipe

app = typer.Typer(
    help="Turns a base language model into a reasoning model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits; errors that a user can act on are shown without a traceback."""
    # Threads that spin for long while they wait ruin each other where another program needs a core: seconds become
    # minutes. A short spin costs a quiet machine nothing. GNU's OpenMP reads this when torch loads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    open_closed_streams()
    with lasting("stderr"):
        try:
            app(args=None if arguments is None else list(arguments), prog_name="reasonmill")
        except (ReasonmillError, OSError) as error:
            shown = error if isinstance(error, ReasonmillError) else _error_of_file(error)
            if shown is None:
                raise
            note_on(Console(stderr=True), Text.assemble(("error:", "bold red"), f" {shown}"))
            sys.exit(shown.exit_code)
    sys.exit(0)


def _error_of_file(error: OSError) -> ReasonmillError | None:
    where = Path(str(error.filename)) if error.filename else Path.cwd()
    return error_of_disk(error, where, foreign_code=True, what="a file")


@app.command()
@lasting("stdout")
def run(
    recipe: RecipeArgument,
    home: HomeOption = DEFAULT_HOME,
    overrides: OverridesOption = None,
    until: UntilOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run; write nothing.")] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Read every byte of finished stages; rebuild what is damaged, rollouts too."),
    ] = False,
    device: DeviceOption = "auto",
    accept_unisolated_code: AcceptOption = False,
    workers: WorkersOption = None,
) -> None:
    """Runs a recipe; finished stages are not run again, and an interrupted run resumes where it stopped."""
    from reasonmill.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        from reasonmill.planning.command import show_what_would_run

        show_what_would_run(loaded, home, until)
        return

    from reasonmill.mill.display import output_console
    from reasonmill.mill.results import print_table, read_stages

    loaded.up_to(until)  # a mistake here is reported before a home is made
    backend = _backend(loaded, device)
    with _until_stopped(loaded, home, workers) as run_it:
        result = run_it(until=until, backend=backend, repair=repair)
    console = output_console()
    print_table(console, read_stages(result.summary))
    for stage in result.stages:
        if stage.artifact.kind == "verdict":
            _print_verdict(console, stage.name, stage.artifact.metrics)
    for stage in result.summary["stages"]:
        for finding in stage["findings"]:
            note_on(console, f"warning: {stage['name']}: {finding}", style="yellow")
    note_on(console, f"run: {result.directory}")


@app.command()
def plan(
    recipe: RecipeArgument,
    home: HomeOption = DEFAULT_HOME,
    overrides: OverridesOption = None,
    until: UntilOption = None,
    price_per_hour: Annotated[
        float | None, typer.Option("--price", metavar="PER_HOUR", min=0, help="What an hour of one device costs.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    accept_unisolated_code: AcceptOption = False,
    workers: WorkersOption = None,
) -> None:
    """Says what each stage will take: time, memory, disk and money, from a measurement of seconds on this machine."""
    from reasonmill.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    loaded.up_to(until)  # a mistake here is reported before a home is made

    from reasonmill.planning.command import plan_recipe

    with loaded.catalogue.workers.limited_to(workers):
        plan_recipe(
            loaded,
            home,
            until,
            _backend(loaded, device),
            price_per_hour=loaded.price_per_hour if price_per_hour is None else price_per_hour,
            as_json=as_json,
            note=note_to_user,
        )


@app.command("eval")
@lasting("stdout")
def evaluate(
    model: ModelArgument,
    suite: SuiteOption = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Task to evaluate on, in place of a suite; repeatable.")
    ] = None,
    problems: Annotated[int | None, typer.Option("--problems", min=1, help="Problems of each task.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Answers to each problem.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The suite's; 0 if it has none.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Length limit of an answer.")] = None,
    max_ungraded: Annotated[
        float | None, typer.Option("--max-ungraded", min=0, max=1, help="Share of ungraded answers that ends it.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="dev or test.")] = None,
    server: ServerOption = None,
    api_key_env: ApiKeyOption = None,
    name: Annotated[str | None, typer.Option("--name", help="Under which it is kept; of suite and model.")] = None,
    overrides: OverridesOption = None,
    template: TemplateOption = None,
    system: SystemOption = None,
    stop: StopOption = None,
    recipe: RecipeOption = None,
    device: DeviceOption = "auto",
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    accept_unisolated_code: AcceptOption = False,
    workers: WorkersOption = None,
) -> None:
    """Measures how many problems a model solves, and keeps all that it said. An interrupted evaluation resumes sample
    by sample, and a finished one is shown again."""
    from reasonmill.evaluation.command import (
        Asking,
        Prompted,
        Served,
        evaluation_of,
        named,
        print_evaluation,
        refuse_other_run,
    )

    options = named(problems=problems, samples=samples, max_ungraded=max_ungraded, split=split)
    drawing = named(temperature=temperature, top_p=top_p, max_tokens=max_tokens)
    prompting = Prompted(_prompting(template, system, stop), template)
    served = Served(server, api_key_env)
    asking = Asking(model, suite, tuple(tasks or ()), recipe, {**options, **drawing}, seed, name, served, prompting)
    loaded = evaluation_of(asking, overrides or [], home, note_to_user)
    refuse_other_run(loaded.name, home)
    backend = _backend(loaded, device)
    with _until_stopped(loaded, home, workers) as run_it:
        result = run_it(until=None, backend=backend)
    print_evaluation(model, result, home, as_json=as_json)


@app.command()
def fitness(
    model: ModelArgument,
    tasks: Annotated[list[str], typer.Option("--task", help="Task to learn; repeatable.")],
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward", metavar="NAME[=WEIGHT]", help="What RL would reward; repeatable. Accuracy and format alike."
        ),
    ] = None,
    problems: Annotated[int, typer.Option("--problems", min=2, help="Problems of each task.")] = 128,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Attempts at each problem: RL's group_size.")] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    temperature: Annotated[float, typer.Option("--temperature", min=1e-6, help="That of RL.")] = 1.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Length limit of an attempt.")] = 256,
    split: SplitOption = "train",
    template: TemplateOption = None,
    system: SystemOption = None,
    stop: StopOption = None,
    recipe: RecipeOption = None,
    device: DeviceOption = "auto",
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    accept_unisolated_code: AcceptOption = False,
    workers: WorkersOption = None,
) -> None:
    """Says whether a model is good enough for RL on a task, or what a cold start would have to bring."""
    catalogue = _catalogue(recipe)
    asked = [catalogue.task(name) for name in tasks]
    for task in asked:
        # What is wrong with a task, a reward or the prompting is reported before the model is loaded.
        task.problem(split, seed, problems - 1)
    prompting = _prompting(template, system, stop)

    from reasonmill.fitness.command import Asking, fitness_of, print_fitness, rewards_of
    from reasonmill.mill.artifacts import find_model
    from reasonmill.stages.sampling import SamplingSettings

    try:
        sampling = SamplingSettings(temperature=temperature, max_tokens=max_tokens)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    rewards = rewards_of(reward or ["accuracy", "format"], asked, catalogue)
    directory = find_model(model, home, note_to_user)

    from reasonmill.backends.native import NativeBackend
    from reasonmill.mill.display import make_progress
    from reasonmill.model.prompting import as_prompted

    with (
        as_prompted(directory, prompting) as prompted,
        make_progress(Console(stderr=True)) as progress,
        catalogue.workers.limited_to(workers),
    ):
        asking = Asking(problems, samples, sampling, split, seed)
        found = fitness_of(prompted, asked, rewards, asking, NativeBackend(_placement(device)), progress)
    print_fitness(model, found, as_json=as_json)


@app.command()
def problems(
    task: Annotated[str, typer.Argument(help="Name of a task.")],
    num: Annotated[int, typer.Option("--num", min=1, help="How many problems.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    split: SplitOption = "test",
    recipe: RecipeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Prints problems of a task."""
    drawn = itertools.islice(_catalogue(recipe).task(task).problems(split, seed), num)
    if as_json:
        for problem in drawn:
            messages = [{"role": message.role, "content": message.content} for message in problem.messages]
            line = {"id": problem.id, "messages": messages, "answer": problem.answer, "meta": dict(problem.meta)}
            print(json.dumps(line, ensure_ascii=False))
        return
    table = table_of(f"{task}, {split}, seed {seed}", "id", "problem", "answer")
    for problem in drawn:
        table.add_row(
            problem.id, Text("\n".join(message.content for message in problem.messages)), Text(problem.answer)
        )
    Console().print(table)


@app.command()
def chat(
    model: ModelArgument,
    template: TemplateOption = None,
    system: SystemOption = None,
    stop: StopOption = None,
    home: HomeOption = DEFAULT_HOME,
    device: DeviceOption = "auto",
) -> None:
    """Talks with a model; its thinking is shown dimmed. /exit or the end of input leaves."""
    prompting = _prompting(template, system, stop)

    from reasonmill.mill.artifacts import find_model

    directory = find_model(model, home, note_to_user)

    from reasonmill.model.prompting import as_prompted
    from reasonmill.sample.session import ChatSession

    with as_prompted(directory, prompting) as prompted:
        session = ChatSession(prompted, _placement(device).device)
    console = Console()
    messages: list[Message] = []
    while True:
        try:
            said = console.input("[bold]>[/bold] ").strip()
        except EOFError:
            console.print()
            return
        if said == "/exit":
            return
        if said:
            messages.append(Message("user", said))
            messages.append(Message("assistant", _print_reply(console, session.reply(messages))))


app.command()(preview.data)
app.command()(grade.grade)
app.command("audit")(audit_command)
app.command()(compare)
app.command()(doctor)
app.command()(history.status)
app.command()(history.lineage)
app.command()(history.adopt)
app.command()(upkeep.verify)
app.command()(upkeep.gc)
app.command()(upkeep.rm)


@contextmanager
def _until_stopped(recipe: Recipe, home: Path, workers: int | None) -> Iterator[Callable[..., RunResult]]:
    """What runs the recipe in the home, and shows how far it is; in the block, a signal to stop ends the command."""
    from reasonmill.mill.display import make_progress
    from reasonmill.mill.pipeline import run_recipe
    from reasonmill.store.home import Home

    with StopSignals() as stop, recipe.catalogue.workers.limited_to(workers):
        try:
            with Home.open(home) as opened, make_progress(Console(stderr=True)) as progress:
                yield partial(run_recipe, recipe, opened, progress, stop_requested=stop.requested)
        except Interrupted as error:
            _show_stop(error)
            raise typer.Exit(stop.exit_code(error)) from error
        except KeyboardInterrupt as error:
            at_once = Interrupted("stopped at once, without saving a state; what was committed is safe")
            _show_stop(at_once)
            raise typer.Exit(at_once.exit_code) from error


def _backend(recipe: Recipe, device: str) -> NativeBackend:
    """What computes for a recipe."""
    from reasonmill.backends.native import NativeBackend

    return NativeBackend(_placement(device), trust_remote_code=recipe.trust_remote_code)


def _catalogue(recipe: str | None) -> Catalogue:
    """What is offered, and a recipe's own."""
    from reasonmill.plugins.catalogue import installed
    from reasonmill.recipe.load import load_recipe

    return installed() if recipe is None else load_recipe(recipe).catalogue


def _prompting(template: str | None, system: str | None, stop: list[str] | None) -> Prompting:
    """How the options say that a model is prompted."""
    try:
        named = template in CHAT_TEMPLATES
        return Prompting(
            named=template if named else None,
            template=None if named or template is None else read_template(template, Path.cwd()),
            system=system,
            stop=tuple(stop or ()),
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _placement(choice: str) -> Placement:
    """Where to compute."""
    import torch
    from transformers.utils import logging

    from reasonmill.placement import Placement

    logging.disable_progress_bar()  # reasonmill shows its own

    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise RecipeError("there is no CUDA device here", where="--device cuda", fix="use --device cpu or auto")
    return Placement("cuda" if available and choice != "cpu" else "cpu")


def _print_verdict(console: Console, gate: str, verdict: Mapping[str, Any]) -> None:
    outcome = ("promoted", "bold green") if verdict["promoted"] else ("refused", "bold red")
    note_on(console, Text.assemble((gate, "bold"), ": ", outcome))
    for reason in verdict["reasons"]:
        note_on(console, f"  {reason}")


def _print_reply(console: Console, pieces: Iterable[str]) -> str:
    """Prints a reply as it comes; returns it without its thinking, which the next turn is not given."""
    from reasonmill.mill.thinking import split_thinking

    said = []
    for text, is_thinking in split_thinking(pieces):
        console.print(Text(text, style="dim" if is_thinking else ""), end="", soft_wrap=True)
        if not is_thinking:
            said.append(text)
    console.print()
    return "".join(said).strip()


def _show_stop(stop: Interrupted) -> None:
    note_to_user(stop.what)
    note_on(Console(stderr=True), f"  {stop.fix}")
