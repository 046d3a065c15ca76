"""A home of an earlier commit: whatever looks at results still sees them. tests/data/README.md says how it was made."""

import hashlib
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from reasonmill.cli import main
from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.home import Home

DATA = Path(__file__).parents[1] / "data"
STAGES = {
    "base": "pretrain", "zero": "rl", "rollouts": "collect", "data": "curate", "scorer": "reward-model", "tuned": "sft",
    "taught": "distill", "base-eval": "evaluate", "taught-eval": "evaluate", "gate": "gate",
}  # fmt: skip


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked home; nothing that the tests do changes it."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(DATA / "old_home.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder / "old_home"


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command prints that ends well."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert not ended.value.code
    return capsys.readouterr().out


def test_status_shows_every_stage_as_finished(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in told(capsys, "status", "--home", old).splitlines()]
    assert {line[0]: line[1] for line in lines if "finished" in line} == STAGES


def test_lineage_goes_back_to_the_base(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(capsys, "lineage", "old/gate", "--home", old)
    named = set(re.findall(r"([\w-]+)  (?:model|rollouts|dataset|evaluation|verdict)  [0-9a-f]{12}", shown))
    assert named == STAGES.keys() - {"scorer"}  # which the gate does not come from


def test_a_model_can_be_evaluated(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(old, tmp_path / "home")  # where the evaluation is kept, in groups of the present version
    options = ["--task", "countdown-3", "--problems", 4, "--samples", 2, "--max-tokens", 16]
    assert "pass@1" in told(capsys, "eval", "old/taught", *options, "--home", tmp_path / "home")


def test_every_byte_is_verified(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = len(list((old / "objects").iterdir()))
    assert f"{objects} objects, 0 problems" in told(capsys, "verify", "--home", old)


def test_groups_of_the_first_version_are_read_and_are_the_same_in_the_second(old: Path, tmp_path: Path) -> None:
    files = sorted((old / "objects").glob(f"*/{GROUPS_FILE}"))
    assert len(files) >= 5
    for file in files:
        groups = read_groups(file)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        assert rollouts
        assert all(not rollout.replies and all(rollout.completion.sampled) for rollout in rollouts)
        write_groups(tmp_path / "again", groups)
        assert read_groups(tmp_path / "again") == groups
        assert (tmp_path / "again").read_bytes() != file.read_bytes()


def test_the_home_holds_steps_with_groups_and_the_archive_is_the_one_that_was_made(old: Path) -> None:
    """The control: what the tests above find is there to be found."""
    with Home.open(old) as home:
        digests = [home.ledger.step_groups(key, 0) for key in home.ledger.begun_stages()]
    assert sum(digest is not None for digest in digests) >= 2
    digest = hashlib.sha256((DATA / "old_home.tar.xz").read_bytes()).hexdigest()
    assert digest.startswith("2d9b3819c5815a43")
