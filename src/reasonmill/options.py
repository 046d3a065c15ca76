"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from reasonmill.errors import RecipeError


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


HomeOption = Annotated[
    Path,
    typer.Option("--home", parser=_directory, metavar="PATH", help="Directory that keeps all artifacts and runs."),
]
RecipeArgument = Annotated[str, typer.Argument(help="Name of a shipped recipe, or path of a TOML file.")]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Changes a setting; repeatable.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="The last stage.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Graders that run at the same time; it changes no result.")
]
DEFAULT_HOME = Path("mill")
