"""How many of the project's source commits would have re-keyed a stage: had made its finished results run again.

    python benchmarks/replay_keys.py --commits 93 --until 1a848ae

Goes through the last commits that changed src/ and compares what the key of an `rl` stage covers before and after each:
as the rules are now, and as they were then (everything that the stage's module imports, and every task). The rules of
now are applied to the layout of then by the names that the left-out rooms had.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reasonmill.plugins.sources import PACKAGE, code_digest, room_versions, source_files

ROOT = Path(__file__).resolve().parent.parent
# What the left-out rooms of now consisted of before they were rooms: what a stage is, and the scans for plug-ins.
THEN = ("stages.context", "stages.registry", "tasks.registry", "rewards.registry", "rewards.rule", "world.offers")
# What the stage `zero` of r1-zero-tiny names, by the places that it had.
NAMED = ("tasks/countdown.py", "tasks/arithmetic.py", "rewards/rules/format.py", "rewards/format.py")
NAMED_NOW = ("world/countdown.py", "world/arithmetic.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commits", type=int, default=93, help="how many of the last source commits")
    parser.add_argument("--until", default="1a848ae", help="the last of them")
    parser.add_argument("--list", action="store_true", help="print the commits that re-key by the rules of now")
    arguments = parser.parse_args()
    commits = git("rev-list", "--no-merges", f"--max-count={arguments.commits}", arguments.until, "--", "src").split()
    now = before = 0
    for commit in commits:
        with tempfile.TemporaryDirectory() as folder:
            old, new = Path(folder, "old"), Path(folder, "new")
            unpack(f"{commit}^", old)
            unpack(commit, new)
            changed_now = covered_now(old) != covered_now(new)
            changed_before = covered_before(old) != covered_before(new)
        now, before = now + changed_now, before + changed_before
        if arguments.list and changed_now:
            print(git("log", "-1", "--format=%h %s", commit).strip())
    print(f"{len(commits)} source commits up to {arguments.until}: rl is re-keyed")
    print(f"  by {now} of them as the rules are now, by {before} as they were")


def covered_now(package: Path) -> str:
    """Digest of what the key of an `rl` stage covers by the rules of now; empty where there is no such stage."""
    places = ["stages/rl.py", *NAMED, *NAMED_NOW]
    modules = {module_name(place): package / place for place in places if (package / place).is_file()}
    if "reasonmill.stages.rl" not in modules:
        return ""
    return code_digest(source_files(modules, {PACKAGE: package}, [*room_versions(), *THEN]))


def covered_before(package: Path) -> str:
    """The same by the rules of then: all imports, and the modules of folders that a registry looks into."""
    modules = {"reasonmill.stages.rl": package / "stages" / "rl.py"}
    if not modules["reasonmill.stages.rl"].is_file():
        return ""
    while True:
        found = source_files(modules, {PACKAGE: package}, ())
        scanned = {name: file for source in found.values() for name, file in scanned_modules(source, package)}
        if scanned.keys() <= found.keys():
            return code_digest(found)
        modules = {**found, **scanned}


def scanned_modules(source: Path, package: Path) -> Iterator[tuple[str, Path]]:
    """The modules of the folders whose `__path__` a source looks at."""
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Attribute) and node.attr == "__path__":
            folder = package.joinpath(*ast.unparse(node.value).split(".")[1:])
            for file in folder.glob("*.py"):
                yield module_name(file.relative_to(package).as_posix()), file


def module_name(place: str) -> str:
    """The full name of the module at a place in the package."""
    return f"{PACKAGE}.{place.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"


def unpack(commit: str, target: Path) -> None:
    """Puts the package as it is in a commit into a directory; nothing where it has none."""
    target.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit, f"src/{PACKAGE}"], cwd=ROOT, capture_output=True, check=False
    ).stdout
    if archive:
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            sources = [member for member in opened.getmembers() if member.isdir() or member.name.endswith(".py")]
            for member in sources:
                member.name = member.name.removeprefix(f"src/{PACKAGE}").lstrip("/") or "."
            opened.extractall(target, members=sources, filter="data")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
