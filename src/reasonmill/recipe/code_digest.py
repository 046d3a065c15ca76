"""Identifies the code that a stage runs: its module and all of the package that it imports, directly or not.

The imports are read from the sources, so that nothing has to be imported, and imports within functions and those for
type checkers only count too: a key that changes too often costs time, one that changes too rarely gives wrong results.
A module that looks into a package's folder, as registries do by `reasonmill.tasks.__path__`, may import all that it
finds there: every module of that folder counts.
"""

from __future__ import annotations

import ast
import hashlib
import pkgutil
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path


def code_digest(module: str, file: Path, root: Path) -> str:
    """Hex digest of the sources of a module and of the modules of its package that it imports, transitively.

    Args:
        module: the module's full name; its first part names the package.
        file: the module's source.
        root: the package's directory.
    """
    hasher = hashlib.blake2b(digest_size=32)
    for name, source in sorted(source_files(module, file, root).items()):
        content = source.read_bytes()
        hasher.update(f"{name} {len(content)}\n".encode())
        hasher.update(content)
    return hasher.hexdigest()


def source_files(module: str, file: Path, root: Path) -> dict[str, Path]:
    """The sources that `code_digest` covers, by module name. The arguments are the same."""
    found = {module: file}
    waiting = [module]
    while waiting:
        importer = waiting.pop()
        is_package = found[importer].name == "__init__.py"
        nodes = _importing_nodes(found[importer].read_bytes())
        for name in _parents(importer) | set(_imported_names(nodes, importer, is_package, root)):
            source = _source(name, root)
            if name not in found and source is not None:
                found[name] = source
                waiting.append(name)
    return found


@cache  # all stages of a recipe share most of their sources
def _importing_nodes(source: bytes) -> tuple[ast.AST, ...]:
    """What may import something in a source: its imports, and where it looks into a package's folder."""
    return tuple(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Attribute) and node.attr == "__path__")
    )


def _imported_names(nodes: Iterable[ast.AST], importer: str, is_package: bool, root: Path) -> Iterator[str]:
    """All dotted names that a module's imports may load, with the packages that hold them."""
    for node in nodes:
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, importer, is_package)
            targets = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            targets = _modules_in(ast.unparse(node.value), root)
        else:
            continue
        for target in targets:
            yield target
            yield from _parents(target)


def _modules_in(package: str, root: Path) -> list[str]:
    """The modules of a folder of the package; none for the folders of other packages, and for other names."""
    source = _source(package, root)
    if source is None or source.name != "__init__.py":
        return []
    return [f"{package}.{info.name}" for info in pkgutil.iter_modules([str(source.parent)])]


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
    """The source of a module of the package; None for other packages, for plain names and for folders without code."""
    package, *parts = name.split(".")
    if package != root.name:
        return None
    path = root.joinpath(*parts)
    candidates = [path / "__init__.py", *([path.with_suffix(".py")] if parts else [])]
    return next((candidate for candidate in candidates if candidate.is_file()), None)
