"""What facts about a machine mean: each verdict, from made-up facts; and that this machine can be looked at."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest

from reasonmill.cli import main
from reasonmill.doctor import command, facts
from reasonmill.doctor.command import NOT_READY
from reasonmill.doctor.facts import Facts, Gpu, look, missing_extras
from reasonmill.doctor.judging import Finding, Verdict, is_ready, judge
from reasonmill.errors import ReasonmillError
from reasonmill.store import disk

GOOD = Facts(
    python="3.12.1",
    python_fits=True,
    torch="2.11.0",
    torch_error="",
    gpus=(Gpu("H100", 79e9, 80e9, (9, 0), True),),
    has_driver=True,
    cores=8,
    threads=8,
    load=0.5,
    free_memory=60e9,
    memory=64e9,
    home=Path("mill"),
    free_disk=500e9,
    home_error="",
    jail="bubblewrap",
    jail_error="",
    extras={"math": ()},
    has_triton=True,
    hub_error=None,
    open_files=20_000,
)


def found(changed: Facts, what: str) -> Finding:
    (finding,) = [finding for finding in judge(changed) if finding.what == what]
    return finding


def test_a_good_machine_has_nothing_to_fix() -> None:
    findings = judge(replace(GOOD, hub_error=""))
    assert {finding.verdict for finding in findings} == {"good"}
    assert not any(finding.fix for finding in findings)
    assert [finding.what for finding in findings] == [
        *("Python", "torch", "GPU", "bf16", "triton", "cores", "memory", "disk", "file system", "jail"),
        *("extra math", "hub", "limits", "clock"),
    ]
    assert "hub" not in {finding.what for finding in judge(GOOD)}  # nobody asked


SMALL = Gpu("T4", 3e9, 16e9, (7, 5), False)


@pytest.mark.parametrize(
    ("changed", "what", "verdict", "fix"),
    [
        (replace(GOOD, python_fits=False), "Python", "missing", "3.11 or newer"),
        (replace(GOOD, torch="", torch_error="no module"), "torch", "missing", "pip install torch"),
        (replace(GOOD, gpus=()), "GPU", "works with less", "can't use the GPU"),
        (replace(GOOD, gpus=(), has_driver=False), "GPU", "works with less", "none is needed"),
        (replace(GOOD, gpus=(SMALL,)), "GPU", "works with less", "nvidia-smi"),
        (replace(GOOD, gpus=(SMALL,)), "bf16", "works with less", 'precision = "fp32"'),
        (replace(GOOD, has_triton=False), "triton", "works with less", "pip install triton"),
        (replace(GOOD, threads=16), "cores", "works with less", "OMP_NUM_THREADS=8"),
        (replace(GOOD, load=9.0), "cores", "works with less", "OMP_NUM_THREADS=1"),
        (replace(GOOD, cores=1, threads=1), "cores", "works with less", "two are advised"),
        (replace(GOOD, free_memory=1e9), "memory", "missing", "2.0 GB"),
        (replace(GOOD, free_disk=20e9), "disk", "works with less", "reasonmill plan"),
        (replace(GOOD, free_disk=0.2e9), "disk", "missing", "--home"),
        (replace(GOOD, home_error="it can't lock"), "file system", "missing", "local disk"),
        (replace(GOOD, jail="landlock"), "jail", "works with less", "reasonmill[jail]"),
        (replace(GOOD, jail="unisolated"), "jail", "works with less", "as you accepted"),
        (replace(GOOD, jail="", jail_error="none\n  tried"), "jail", "missing", "reasonmill[jail]"),
        (replace(GOOD, extras={"hub": ("datasets",)}), "extra hub", "works with less", "pip install 'reasonmill[hub]'"),
        (replace(GOOD, hub_error="ConnectError: no route"), "hub", "works with less", "cache"),
        (replace(GOOD, open_files=256), "limits", "works with less", "ulimit -n 1024"),
        (replace(GOOD, bounded={"memory": 10}), "limits", "works with less", "ulimit -a"),
        (replace(GOOD, clock_behind_s=3600.0), "clock", "works with less", "set the clock"),
    ],
)
def test_what_is_wrong_has_its_verdict_and_a_fix(changed: Facts, what: str, verdict: Verdict, fix: str) -> None:
    finding = found(changed, what)
    assert finding.verdict == verdict
    assert fix in finding.fix
    stops = verdict == "missing" and what != "jail"  # the quickstart runs no programs that a model wrote
    assert is_ready(judge(changed)) is not stops


def test_no_limit_on_files_is_good() -> None:
    assert found(replace(GOOD, open_files=None), "limits").verdict == "good"


def test_what_an_extra_lacks_is_told_by_the_packages_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Message()
    for key, value in (
        ("Provides-Extra", "dev"),
        ("Provides-Extra", "speech"),
        ("Provides-Extra", "sums"),
        ("Requires-Dist", "torch>=1"),
        ("Requires-Dist", "no-such-package-here>=1; extra == 'speech'"),
        ("Requires-Dist", "pytest>=1; extra == 'speech'"),
        ("Requires-Dist", "pytest>=1; extra == 'sums'"),
        ("Requires-Dist", "no-such-package-here; extra == 'dev'"),
    ):
        told[key] = value
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: told)
    assert missing_extras() == {"speech": ("no-such-package-here",), "sums": ()}
    told["Requires-Dist"] = "pytest<1; extra == 'sums'"
    assert missing_extras()["sums"] == ("pytest",)


def test_this_machine_is_looked_at_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_jail", lambda: ("bubblewrap", ""))
    seen = look(tmp_path / "not" / "there", ask_hub=False)
    assert (seen.home_error, seen.torch_error, seen.hub_error) == ("", "", None)
    assert seen.python_fits
    assert 0 < seen.free_memory <= seen.memory
    assert seen.free_disk > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fsync_directory", "rename", "replace", "start_log"])
def test_a_disk_that_can_not_do_what_the_store_asks_of_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(disk, name, fails)
    assert "not supported" in facts._try_home(tmp_path)


@pytest.mark.parametrize(("seen", "code"), [(GOOD, 0), (replace(GOOD, free_memory=0.0), NOT_READY)])
def test_the_exit_code_says_whether_the_quickstart_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seen: Facts, code: int
) -> None:
    looked: Callable[..., Facts] = lambda home, ask_hub: seen  # noqa: E731
    monkeypatch.setattr(command, "look", looked)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == code
    shown = capsys.readouterr().out
    assert ("can run here" if code == 0 else "can't run here") in shown
    assert ("fix: free some" in shown) == (code != 0)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert ended.value.code == code
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] == (code == 0)
    assert {"what", "found", "verdict", "fix", "for_quickstart"} == told["findings"][0].keys()


def test_no_error_has_the_exit_code_of_a_machine_that_is_not_ready() -> None:
    def below(kind: type[ReasonmillError]) -> set[int]:
        return {kind.exit_code}.union(*(below(each) for each in kind.__subclasses__()))

    assert NOT_READY not in below(ReasonmillError)
