"""Whether code that no key covers changes results all the same: the bits of a tiny run, now and in earlier commits.

    python tests/bits/compare.py

Rooms that are left out of the keys of stages (src/reasonmill/plugins/room_versions.toml) must not change what stages
make, unless their versions are raised. For each stage of tiny.toml this finds the oldest commit since the versions were
last raised in which all that the stage's key covers is as it is now, for the stage and for all before it, runs the
recipe there in a worktree, and compares what the stage makes with what it makes now: the same to the last bit.

Exit code 0: the same. 1: something differs, although its key is the same: raise the version of the room that was
changed, or mend the change. The working tree counts as it lies on the disk, commits or not.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("tiny.toml")
VERSIONS = "src/reasonmill/plugins/room_versions.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout that is looked at")
    root = parser.parse_args().root.resolve()
    raised = git(root, "log", "-1", "--format=%H", "--", VERSIONS).strip()
    commits = [raised, *git(root, "rev-list", "--reverse", "--first-parent", f"{raised}..HEAD", "--", "src").split()]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        now = stages(root)
        oldest = oldest_alike(root, commits, now, work)
        groups: dict[str, list[str]] = {}
        for name, commit in oldest.items():
            groups.setdefault(commit, []).append(name)
        made_now = run(root, work / "now") if groups else {}
        differing = []
        for commit, names in groups.items():
            with Worktree(root, commit, work) as tree:
                made_then = run(tree, work / f"then-{commit[:12]}")
            differing += [(name, commit) for name in names if made_then[name] != made_now[name]]
            print(f"{commit[:12]}: compared {', '.join(names)}")
    for name in sorted(now.keys() - oldest.keys()):
        print(f"{name}: not compared, because what its key covers was changed in the working tree or the last commit")
    for name, commit in differing:
        print(f"{name}: DIFFERENT bits than in {commit[:12]}, and the same key")
    if differing:
        print(f"raise the version of the room that was changed, in {VERSIONS}, or mend the change")
        sys.exit(1)
    print(f"{len(oldest)} of {len(now)} stages compared with earlier commits: the same bits")


def stages(tree: Path) -> dict[str, tuple[str, list[str]]]:
    """What the key of each stage covers of this code, as a digest, and the stages that it reads."""
    program = (
        "import json, sys; from pathlib import Path\n"
        "from reasonmill.recipe.load import load_recipe\n"
        "nodes = load_recipe(sys.argv[1]).nodes\n"
        "print(json.dumps({n.settings.name: [[n.kind.code, {k: p.identity for k, p in n.plugins.items()}], "
        "n.stage_inputs] for n in nodes}))"
    )
    said = python(tree, "-c", program, str(RECIPE))
    return {name: (json.dumps(covered), read) for name, (covered, read) in json.loads(said).items()}


def oldest_alike(
    root: Path, commits: Sequence[str], now: Mapping[str, tuple[str, list[str]]], work: Path
) -> dict[str, str]:
    """For each stage the oldest commit in which all that its key covers is as it is now; none for the others.

    It is looked for by halving: code that was changed and changed back is compared with the change back.
    """
    others = [commit for commit in commits if is_changed_since(root, commit)]

    @cache
    def alike(commit: str) -> frozenset[str]:
        with Worktree(root, commit, work) as tree:
            try:
                then = stages(tree)
            except subprocess.CalledProcessError:  # it does not know this recipe
                return frozenset()
        found: set[str] = set()
        for name, (covered, read) in now.items():  # in the order of the recipe
            if name in then and then[name][0] == covered and set(read) <= found:
                found.add(name)
        return frozenset(found)

    found = {}
    for name in now:
        place = bisect.bisect_left(others, True, key=lambda commit, name=name: name in alike(commit))
        if place < len(others):
            found[name] = others[place]
    return found


def is_changed_since(root: Path, commit: str) -> bool:
    """Whether the sources on the disk differ from those of a commit."""
    return subprocess.run(["git", "diff", "--quiet", commit, "--", "src"], cwd=root, check=False).returncode != 0


def run(tree: Path, home: Path) -> dict[str, str]:
    """Digests of what each stage makes."""
    python(tree, "-m", "reasonmill", "run", str(RECIPE), "--home", str(home))
    summary = json.loads((home / "runs" / "bits" / "summary.json").read_text())
    return {stage["name"]: stage["digest"] for stage in summary["stages"]}


def python(tree: Path, *arguments: str) -> str:
    """What Python says where the tree's package is the one that is imported."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if arguments[0] != "-c":
            print(done.stderr)
        raise subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)
    return done.stdout


class Worktree:
    """A commit's files in a directory, as long as the block runs."""

    def __init__(self, root: Path, commit: str, work: Path) -> None:
        self._root = root
        self._commit = commit
        self._path = work / f"tree-{commit[:12]}"

    def __enter__(self) -> Path:
        git(self._root, "worktree", "add", "--detach", "--force", str(self._path), self._commit)
        return self._path

    def __exit__(self, *_: object) -> None:
        git(self._root, "worktree", "remove", "--force", str(self._path))


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
