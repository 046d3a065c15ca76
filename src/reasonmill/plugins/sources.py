"""Identifies the code that decides a result: modules and all that they import, directly or not, of known packages.

The imports are read from the sources, so that nothing has to be imported, and imports within functions and those for
type checkers only count too: a key that changes too often costs time, one that changes too rarely gives wrong results.

What only carries results around is left out: the store, the reading of recipes, errors and their like. Each of these
rooms has a version in `room_versions.toml`, which counts instead of its sources. It is raised by hand when a change of
the room changes results; `tests/bits/compare.py` checks that nobody forgot.
"""

from __future__ import annotations

import ast
import hashlib
import tomllib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

import reasonmill
from reasonmill.errors import RecipeError

PACKAGE = "reasonmill"
PACKAGE_ROOT = Path(reasonmill.__path__[0])


@cache
def room_versions() -> Mapping[str, int]:
    """The version of each room that is left out, by the room's name."""
    text = (PACKAGE_ROOT / "plugins" / "room_versions.toml").read_text(encoding="utf-8")
    versions: dict[str, int] = tomllib.loads(text)["rooms"]
    return versions


# What a stage's context makes for it, and where that is implemented. No stage imports it; each says in `NEEDS` what it
# takes.
ENGINES: Mapping[str, tuple[str, ...]] = {
    "sampler": ("sample/engines.py", "sample/sampler.py", "sample/http.py"),
    "learner": ("learn/local.py",),
    "reward-learner": ("learn/scalar.py",),
    "scorer": ("rewards/model.py",),
}


def engine_sources(need: str) -> list[tuple[str, Path]]:
    """The modules that implement what a stage needs, each with its file.

    Raises:
        RecipeError: a stage needs something that there is not.
    """
    if need not in ENGINES:
        raise RecipeError(f"no stage can need {need!r}", fix=f"NEEDS may name {', '.join(ENGINES)}")
    return [(f"{PACKAGE}.{path.removesuffix('.py').replace('/', '.')}", PACKAGE_ROOT / path) for path in ENGINES[need]]


def is_left_out(module: str, rooms: Collection[str]) -> bool:
    """Whether a module of this package belongs to one of the rooms that are left out; the package itself does."""
    package, _, rest = module.partition(".")
    return package == PACKAGE and (rest == "" or any(part in rooms for part in (rest, *_parents(rest))))


class Seen:
    """What sources say and where they are: each is looked at once. All stages of a recipe share most of them."""

    def __init__(self) -> None:
        self._content: dict[Path, bytes] = {}
        self._places: dict[tuple[str, Path], Path | None] = {}
        self._imported: dict[tuple[str, Path, tuple[tuple[str, Path], ...]], list[tuple[str, Path]]] = {}
        self._tables: dict[tuple[str, Path], list[tuple[str, Path]]] = {}

    def content(self, source: Path) -> bytes:
        if source not in self._content:
            self._content[source] = source.read_bytes()
        return self._content[source]

    def imported(self, importer: str, source: Path, roots: Mapping[str, Path]) -> list[tuple[str, Path]]:
        """What a module imports of the packages in `roots`: the modules' names, each with its file."""
        known = (importer, source, tuple(roots.items()))
        if known not in self._imported:
            names = _imported_names(self.content(source), importer, source.name == "__init__.py")
            places = [(name, self._place(name, roots)) for name in names]
            self._imported[known] = [(name, place) for name, place in places if place is not None]
        return self._imported[known]

    def tables(self, module: str, source: Path) -> list[tuple[str, Path]]:
        """The tables of a module: files beside it that bear its name, as talk.toml beside talk.py."""
        if (module, source) not in self._tables:
            self._tables[module, source] = list(_tables(module, source))
        return self._tables[module, source]

    def _place(self, name: str, roots: Mapping[str, Path]) -> Path | None:
        root = roots.get(name.partition(".")[0])
        if root is None:
            return None
        if (name, root) not in self._places:
            self._places[name, root] = _source(name, root)
        return self._places[name, root]


def code_digest(sources: Mapping[str, Path], seen: Seen | None = None) -> str:
    """Hex digest (256 bits) of sources and their names.

    Args:
        sources: files by the full names of their modules, as `source_files` finds them.
        seen: what is known of them; None looks at all of them.
    """
    seen = seen or Seen()
    hasher = hashlib.blake2b(digest_size=32)
    for name, source in sorted(sources.items()):
        content = seen.content(source)
        hasher.update(f"{name} {len(content)}\n".encode())
        hasher.update(content)
    return hasher.hexdigest()


def source_files(
    modules: Mapping[str, Path], roots: Mapping[str, Path], left_out: Collection[str], seen: Seen | None = None
) -> dict[str, Path]:
    """The sources of modules and of all that they import of the packages in `roots`, by the modules' names.

    A table that lies beside a module and bears its name belongs to it, as talk.toml beside talk.py.

    Args:
        modules: where to begin: the files by the modules' full names.
        roots: the place of each package that counts, a folder or a file, by its name.
        left_out: the rooms of this package that don't count.
        seen: what is known of sources; None looks at all of them.
    """
    seen = seen or Seen()
    found = dict(modules)
    waiting = list(modules)
    while waiting:
        importer = waiting.pop()
        for name, source in seen.imported(importer, found[importer], roots):
            if name not in found and not is_left_out(name, left_out):
                found[name] = source
                waiting.append(name)
    return found | dict(table for name, source in found.items() for table in seen.tables(name, source))


def _tables(module: str, source: Path) -> Iterator[tuple[str, Path]]:
    for path in source.parent.glob(f"{source.stem}.*"):
        if path.suffix in (".toml", ".json", ".jsonl", ".txt", ".csv"):
            yield f"{module}:{path.name}", path


@cache  # all recipes of a process share most of their sources
def _imported_names(source: bytes, importer: str, is_package: bool) -> frozenset[str]:
    """All dotted names that a module's imports may load, with the packages that hold them and the module itself."""
    names = set(_parents(importer))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, importer, is_package)
            targets = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        names.update(targets, *map(_parents, targets))
    return frozenset(names)


def _absolute(node: ast.ImportFrom, importer: str, is_package: bool) -> str:
    """The module that `from ... import` names; each dot after the first goes up one package."""
    if node.level == 0:
        return node.module or ""
    parts = importer.split(".")
    dropped = node.level - 1 if is_package else node.level
    return ".".join([*parts[: len(parts) - dropped], *([node.module] if node.module else [])])


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def _source(name: str, root: Path) -> Path | None:
    """The source of a module of the package at `root`; None for plain names and for folders without code."""
    parts = name.split(".")[1:]
    if root.is_file():
        return None if parts else root
    path = root.joinpath(*parts)
    candidates = [path / "__init__.py", *([path.with_suffix(".py")] if parts else [])]
    return next((candidate for candidate in candidates if candidate.is_file()), None)
