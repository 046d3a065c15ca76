"""Options that several commands have."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from reasonmill.errors import RecipeError
from reasonmill.jail.level import ACCEPTED


def _directory(name: str) -> Path:
    """The path of a home, which has a name: an empty one, as of a shell variable that is not set, would be this
    directory."""
    if not name:
        raise RecipeError(
            "the home has no name, and the current directory is used only when it is named",
            fix="name a directory, or leave --home out; --home . is this directory",
            where="--home",
        )
    return Path(name)


def _accept(accepted: bool) -> bool:
    """Lets this process, and those that it starts, run model-written code without a jail."""
    if accepted:
        os.environ[ACCEPTED] = "1"
    return accepted


HomeOption = Annotated[
    Path,
    typer.Option("--home", parser=_directory, metavar="PATH", help="Directory that keeps all artifacts and runs."),
]
RecipeArgument = Annotated[str, typer.Argument(help="Name of a shipped recipe, or path of a TOML file.")]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", metavar="RECIPE", help="A recipe whose own tasks may be named, too.")
]
SplitOption = Annotated[str, typer.Option("--split", help="train, dev or test.")]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Changes a setting; repeatable.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="The last stage.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
AcceptOption = Annotated[
    bool,
    typer.Option(
        "--accept-unisolated-code",
        callback=_accept,
        help="Run model-written code with your own rights, files and network where this machine has no jail for it.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Graders that run at the same time; it changes no result.")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto takes CUDA where there is a GPU.")
]
ModelArgument = Annotated[
    str, typer.Argument(help="A directory, a shipped base, run/stage of the home, or the beginning of a digest.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", metavar="NAME|FILE", help="Chat template: r1-zero, or a .jinja file; the model's own."),
]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message of each prompt.")]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Text that ends a reply, too; repeatable.")
]
SuiteOption = Annotated[
    str | None, typer.Option("--suite", metavar="NAME|FILE", help="A shipped suite, or a TOML file of one.")
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="Of an OpenAI-compatible API; MODEL is the name that it knows."),
]
ApiKeyOption = Annotated[
    str | None, typer.Option("--api-key-env", metavar="NAME", help="Variable that holds the server's API key.")
]
DEFAULT_HOME = Path("mill")
