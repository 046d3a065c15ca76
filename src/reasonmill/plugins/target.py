"""What the text of a `use` names: an attribute of a module, by the module's dotted name or by its file.

    my_lab.gsm8k:Gsm8k     an installed package
    ./mine.py:Mine         a file, relative to the recipe's folder
    ./average.py           a module as a whole, which a stage is

A file is a module of a package that has no name of its own: its folder. It imports its neighbours relatively, as in
`from .helpers import digits`; nothing is put on Python's search path, so that two folders can't be mixed up.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import itertools
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from reasonmill.errors import RecipeError
from reasonmill.plugins.sources import Seen

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# What modules of files are called in keys, whatever folder they are in.
FILES = "files"


@dataclass(frozen=True)
class Target:
    """A module, and the attribute of it that is meant; an empty attribute means the module itself.

    Attributes:
        module: its dotted name, for a file the name without ".py".
        file: the module's file where it is named by its file.
    """

    module: str
    attribute: str
    file: Path | None = None

    @property
    def root(self) -> tuple[str, Path]:
        """Name and place of the package that the module belongs to: a folder, or the one file that it consists of.

        Raises:
            RecipeError: there is no such package.
        """
        if self.file is not None:
            return FILES, self.file.parent
        name = self.module.partition(".")[0]
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise _missing(self.module, name)
        places = list(spec.submodule_search_locations or [])
        return name, Path(places[0] if places else str(spec.origin))

    @property
    def source(self) -> tuple[str, Path]:
        """Full name within the package's root, and file, of the module."""
        if self.file is not None:
            return f"{FILES}.{self.module}", self.file
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            raise _missing(self.module, self.module)
        return self.module, Path(spec.origin)


def read_target(text: str, folder: Path) -> Target:
    """Takes the text of a `use` apart.

    Args:
        folder: what the path of a file is relative to.

    Raises:
        RecipeError: it names neither a module nor a file that is there.
    """
    path, colon, attribute = text.partition(":") if not text.endswith(".py") else (text, "", "")
    if path.endswith(".py"):
        file = (folder / Path(path).expanduser()).resolve()
        if not file.is_file():
            raise RecipeError(f"missing module: there is no file {path!r}", fix=f"it is looked for at {file}")
        if "." in file.stem:
            raise RecipeError(f"{file.stem!r} is no name of a module: it has a dot", fix=f"rename the file {file.name}")
        return Target(file.stem, attribute, file)
    if not _DOTTED.fullmatch(path) or (colon and not attribute.isidentifier()):
        raise RecipeError(
            f"{text!r} names no code",
            fix="write package.module:Name, or ./file.py:Name for a file beside the recipe",
        )
    return Target(path, attribute)


class Importer:
    """Imports targets, those of files again for each importer: an old version of a changed file is never used.

    Attributes:
        seen: what is known of the sources.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.seen = Seen()
        self._packages: dict[Path, str] = {}

    def load(self, target: Target) -> Any:
        """The module or the attribute that is meant.

        Raises:
            RecipeError: it can't be imported, or has no such attribute; where its own code is at fault, with the line.
        """
        name = target.module if target.file is None else f"{self._package(target.file.parent)}.{target.module}"
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
            raise _import_error(error, target) from error
        if not target.attribute:
            return module
        if not hasattr(module, target.attribute):
            own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == name}
            known = [key for key in own if not key.startswith("_")]
            raise RecipeError(
                f"module {target.module!r} has no {target.attribute!r}",
                fix=f"it has {', '.join(known)}" if known else "correct the name after the colon",
                where=str(getattr(module, "__file__", "")),
            )
        return getattr(module, target.attribute)

    def _package(self, folder: Path) -> str:
        """The package that stands for a folder."""
        if folder not in self._packages:
            name = f"{_PREFIX}{next(self._numbers)}"
            package = ModuleType(name, "A folder whose files are imported by their paths.")
            package.__path__ = [str(folder)]
            sys.modules[name] = package
            self._packages[folder] = name
        return self._packages[folder]


_PREFIX = "reasonmill_files_"


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source itself: a cached bytecode file is only as new as the second and the size of its source."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class _FilesFinder:
    """Finds modules of the packages that stand for folders."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(_PREFIX) or path is None:
            return None
        # Without a list of what else is in the folder, which the jail does not give.
        name = fullname.rpartition(".")[2]
        for folder in map(Path, path):
            for file, inside in ((folder / name / "__init__.py", [str(folder / name)]), (folder / f"{name}.py", None)):
                if file.is_file():
                    loader = _SourceLoader(fullname, str(file))
                    return importlib.util.spec_from_file_location(
                        fullname, file, loader=loader, submodule_search_locations=inside
                    )
        return None


sys.meta_path.insert(0, _FilesFinder)  # before the one that would find them, too, and take cached bytecode


def _import_error(error: BaseException, target: Target) -> RecipeError:
    """What a failed import says: of a module that is missing, or of the line that is at fault."""
    if isinstance(error, SyntaxError) and error.filename:
        return RecipeError(
            f"module {target.module!r} is not valid Python: {error.msg}", where=f"{error.filename}:{error.lineno}"
        )
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        if target.module == error.name or target.module.startswith(f"{error.name}."):
            return _missing(target.module, error.name)
        beside = target.file is not None and (target.file.parent / f"{error.name}.py").is_file()
        return RecipeError(
            f"module {target.module!r} imports {error.name!r}, which is not installed",
            where=_place(error, target),
            fix=f"a neighbour is imported relatively: from .{error.name} import ..." if beside else "install it",
        )
    return RecipeError(
        f"module {target.module!r} can't be imported: {type(error).__name__}: {error}", where=_place(error, target)
    )


def _place(error: BaseException, target: Target) -> str:
    """The line of the target's own code that was last at work."""
    folder = str(target.file.parent) if target.file else f"/{target.module.partition('.')[0]}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if folder in frame.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(target.file or target.module)


def _missing(module: str, part: str) -> RecipeError:
    return RecipeError(
        f"missing module: {module!r} can't be imported, because there is no {part!r}",
        fix="install the package that has it, or name a file: ./mine.py:Name",
    )
