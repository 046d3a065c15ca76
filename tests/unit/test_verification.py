"""`verify`: what it finds, what it reads for that, and how it tells it."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import reasonmill.store.commit
import reasonmill.store.ledger_backup
import reasonmill.store.views
from command_line import Call
from reasonmill.errors import StoreError
from reasonmill.store import verification
from reasonmill.store.commit import holds, replace_file
from reasonmill.store.home import Home
from reasonmill.store.ledger_backup import Seal, ledger_damage
from reasonmill.store.verification import Finding, Inspection, verify_home
from reasonmill.store.views import view_digests
from small_homes import digest_of, fill, finish, found, put


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        fill(home)
        yield home


def test_a_sound_home_has_no_findings_while_it_is_written_and_after(home: Home) -> None:
    assert found(home) == []
    home.close()
    assert verify_home(home.path) == verification.Verification((), 7)


def test_verify_names_a_damaged_object_and_who_needs_it(home: Home) -> None:
    for text in ("groups 1", "stray"):
        (home.objects.path(digest_of(home, text)) / "text").write_text("rotten")
    digests = {text: digest_of(home, text) for text in ("zero",)}
    findings = {finding.recovery: finding for finding in verify_home(home.path).problems}
    assert len(findings) == 2
    needed, free = sorted(findings)[::-1]
    assert "groups of step 1 of stage 'zero' of run 'r'" in needed
    assert "nothing needs it" in free
    assert all(digest not in finding.file for digest in digests.values() for finding in findings.values())


def test_verify_finds_what_the_ledger_refers_to_and_the_store_lacks(home: Home) -> None:
    gone = [digest_of(home, text) for text in ("zero", "groups 0", "state of more")]
    for digest in gone:
        home.objects.delete(digest)
    assert sorted(found(home)) == sorted((f"objects/{digest}", True) for digest in gone)


def test_an_artifact_that_no_stage_has_any_more_is_no_problem(home: Home) -> None:
    digest = digest_of(home, "zero")
    home.ledger.forget_stage("k0")
    home.objects.delete(digest)
    finish(home, "k0", "zero", put(home, "zero again"))
    assert found(home) == [(f"objects/{digest}", False)]


def test_steps_must_be_consecutive(home: Home) -> None:
    home.ledger.record_metrics("k1", 2, {"loss": 1.0})
    (finding,) = verify_home(home.path).problems
    assert (finding.file, finding.what) == ("ledger.sqlite", "lacks step 1 of stage key k1")


def test_leftovers_and_what_is_not_of_the_home(home: Home) -> None:
    (home.path / "tmp" / "put-x").mkdir()
    (home.path / "notes.txt").write_text("mine")
    (home.path / "objects" / "model").mkdir()
    assert sorted(found(home)) == [("notes.txt", False), ("objects/model", True), ("tmp/put-x", False)]


def test_what_only_one_look_finds_does_not_count(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([[Finding("a", "is damaged", ""), Finding("b", "is damaged", "")], [Finding("b", "is damaged", "")]])
    last = [Finding("b", "is damaged", "")]

    def check(inspection: Inspection) -> list[Finding]:
        return next(looks, last)

    monkeypatch.setattr(verification, "CHECKS", (check,))
    assert [finding.file for finding in verify_home(home.path).findings] == ["b"]


def read_objects(home: Home) -> list[int]:
    """How many objects each look reads."""
    totals: list[int] = []
    verify_home(home.path, lambda done, total: totals.append(total) if done == 1 else None)
    return totals


def test_the_second_look_reads_only_what_was_damaged(home: Home) -> None:
    assert read_objects(home) == [7]
    (home.path / "notes.txt").write_text("mine")
    assert read_objects(home) == [7]
    (home.objects.path(digest_of(home, "zero")) / "text").write_text("rotten")
    assert read_objects(home) == [7, 1]


def test_a_second_look_reads_no_view_and_no_backup_that_is_sound(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("summary.json", "report.html"):
        replace_file(home.run_dir("r") / name, b"{}")
    home.ledger.record_views("r", view_digests(home.run_dir("r")))
    home.close()
    (home.path / "runs" / "r" / "summary.json").write_text("rotten")
    read: list[str] = []

    def note(path: Path, digest: str) -> bool:
        read.append(path.name)
        return holds(path, digest)

    for module in (reasonmill.store.views, reasonmill.store.commit):
        monkeypatch.setattr(module, "holds", note)
    assert found(home) == [("runs/r/summary.json", True)]
    assert (read.count("summary.json"), read.count("report.html")) == (2, 1)
    assert read.count("ledger.sqlite") == len(list((home.path / "backups").iterdir()))


def test_the_ledger_is_checked_once_in_a_look(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Path] = []

    def note(path: Path, seal: Seal | None) -> list[str]:
        checked.append(path)
        return ledger_damage(path, seal)

    monkeypatch.setattr(reasonmill.store.ledger_backup, "ledger_damage", note)
    assert found(home) == []
    assert len(checked) == 1


def test_a_home_whose_objects_are_gone_is_a_damaged_home(home: Home) -> None:
    home.close()
    shutil.rmtree(home.path / "objects")
    assert len(verify_home(home.path).problems) == 6


def test_what_a_damaged_ledger_does_not_know_is_not_called_garbage(home: Home) -> None:
    home.close()
    (home.path / "ledger.sqlite").write_bytes(b"rotten" * 1000)
    shutil.rmtree(home.path / "backups")
    (home.objects.path(digest_of(home, "zero")) / "text").write_text("rotten")
    (finding,) = (it for it in verify_home(home.path).problems if it.file.endswith("/text"))
    assert "what needs it is not known" in finding.recovery


def test_verify_tells_why_it_can_not_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(inspection: Inspection) -> list[Finding]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/r")

    monkeypatch.setattr(verification, "CHECKS", (fail,))
    with pytest.raises(StoreError, match="can't be read or written: Permission denied") as caught:
        verify_home(home.path)
    assert (caught.value.where, bool(caught.value.fix)) == ("runs/r", True)


def test_a_ledger_beyond_reading_is_named_and_the_rest_is_still_looked_at(home: Home) -> None:
    (home.objects.path(digest_of(home, "zero")) / "text").write_text("rotten")
    home.close()
    (home.path / "ledger.sqlite").write_bytes(b"rotten" * 1000)
    files = [file for file, _ in found(home)]
    assert files[0] == "ledger.sqlite"
    assert files[1].endswith("/text")


def test_verify_on_the_command_line(home: Home, call: Call, tmp_path: Path) -> None:
    assert call("verify", "--home", home.path)[:2] == (0, "7 objects, 0 problems\n")
    file = home.objects.path(digest_of(home, "zero")) / "text"
    file.write_text("rotten")
    (home.path / "notes.txt").write_text("mine")
    code, out, _ = call("verify", "--home", home.path)
    assert code == 3
    assert f"damage: {file.relative_to(home.path)} is damaged\n  run the recipe that needs the model of" in out
    assert "note: notes.txt is not of reasonmill" in out
    assert out.endswith("7 objects, 1 problem\n")
    code, out, _ = call("verify", "--home", home.path, "--json")
    told = json.loads(out)
    assert code == 3
    assert told["objects"] == 7
    assert {(it["file"], it["is_problem"]) for it in told["findings"]} == set(found(home))
    assert call("verify", "--home", tmp_path / "nowhere")[0] == 3
