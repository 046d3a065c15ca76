"""A home of small objects that are texts: finished and unfinished stages without any run of them."""

from reasonmill.store.home import Home
from reasonmill.store.verification import verify_home
from reasonmill.types import Artifact


def fill(home: Home) -> None:
    """A finished stage "zero", an unfinished one "more", and an object that nothing refers to."""
    home.ledger.begin_run("r", {"stage": []}, [("zero", "rl", "k0"), ("more", "rl", "k1")])
    for step in range(3):
        home.ledger.commit_step("k0", step, put(home, f"groups {step}"))
    finish(home, "k0", "zero", put(home, "zero"))
    home.ledger.commit_step("k1", 0, put(home, "groups of more"))
    home.ledger.commit_state("k1", 1, put(home, "state of more"))
    put(home, "stray")


def put(home: Home, text: str) -> str:
    return home.objects.put(lambda directory: (directory / "text").write_text(text))


def finish(home: Home, key: str, name: str, digest: str, parents: tuple[str, ...] = ()) -> None:
    made = Artifact(digest, "model", name, parents, "")
    home.ledger.commit_stage(key=key, run="r", name=name, kind="rl", artifact=made, seconds=1.0, tokens=1)


def texts(home: Home) -> set[str]:
    """All objects."""
    return {(home.objects.path(digest) / "text").read_text() for digest in home.objects.digests()}


def digest_of(home: Home, text: str) -> str:
    return next(it for it in home.objects.digests() if (home.objects.path(it) / "text").read_text() == text)


def found(home: Home) -> list[tuple[str, bool]]:
    """What `verify` finds: the file, and whether that is a problem."""
    return [(finding.file, finding.is_problem) for finding in verify_home(home.path).findings]
