"""Audits find the faults that are planted in graders, and nothing in graders that have none."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import pytest

from reasonmill import cli
from reasonmill.audit.attacks import Target, attacks, number_of, same
from reasonmill.audit.auditing import Audit, audit
from reasonmill.audit.forms import FORMS
from reasonmill.audit.judging import ApartJudge, RewardJudge, rule_of_reward, rule_of_task
from reasonmill.audit.samples import Sample, own_samples
from reasonmill.jail.found import NoJail, found_level
from reasonmill.plugins.catalogue import installed
from reasonmill.protocols import Attempt, Domain
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import read_transcript
from reasonmill.types import Completion, Grade, Message, Problem

GOLDS = ("16", "24", "37")


class Own:
    """A user's task whose grader is the function that it is given."""

    domain: Domain = "reasoning"

    def __init__(self, is_right: Callable[[str, str], bool | float], golds: Sequence[str] = GOLDS) -> None:
        self._is_right = is_right
        self._golds = golds

    def problem(self, split: str, seed: int, index: int) -> Problem:
        gold = self._golds[index]
        return Problem("own", (Message("user", f"what comes behind number {index + 1} ?"),), gold)

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return (self.problem(split, seed, index) for index in range(len(self._golds)))

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        rights = [float(self._is_right(completion.text, problem.answer)) for completion in completions]
        return [Grade(right, {"accuracy": right}) for right in rights]


def audited(
    is_right: Callable[[str, str], bool | float], *, golds: Sequence[str] = GOLDS, limit_s: float = 10
) -> Audit:
    task = NamedTask("own", Own(is_right, golds))
    return audit(task, list(map(Sample, task.problems("test", 0))), ApartJudge(rule_of_task(task), limit_s))


def found(is_right: Callable[[str, str], bool | float], **given: object) -> set[tuple[str, str]]:
    return {(finding.fault, finding.kind) for finding in audited(is_right, **given).findings}  # type: ignore[arg-type]


def careful(text: str, gold: str) -> bool:
    """The answer block is the number, in one of the spellings that everybody uses."""
    answer = (read_transcript(text).answer or "").strip()
    for before, after in (("**", "**"), ("$", "$"), ("\\(", "\\)")):
        if answer.startswith(before) and answer.endswith(after) and len(answer) > len(before + after):
            answer = answer.removeprefix(before).removesuffix(after)
    plain = re.fullmatch(r"(-?[0-9]{1,3}(?:,?[0-9]{3})*)(?:\.0*)?", answer)
    return plain is not None and plain[1].replace(",", "") == gold


def last_number(text: str, gold: str) -> bool:
    numbers = re.findall(r"-?[0-9][0-9,]*(?:\.[0-9]+)?", text)
    return bool(numbers) and number_of(numbers[-1]) == Fraction(gold)


def boxed(text: str) -> str:
    boxes = re.findall(r"\\boxed\{(.*?)\}", text)
    return boxes[-1] if boxes else ""


def runs(text: str, gold: str) -> bool:
    try:
        return len(text) < 500 and "**" not in text and bool(eval(boxed(text)) == int(gold))
    except BaseException:
        return False


def hangs(text: str, gold: str) -> bool:
    if "9**9" in text:
        time.sleep(60)
    return careful(text, gold)


def dies(text: str, gold: str) -> bool:
    if "\0" in text:
        os._exit(7)
    return careful(text, gold)


def test_a_careful_grader_has_no_findings() -> None:
    report = audited(careful)
    assert report.findings == ()
    assert (report.form, report.num_right, report.num_problems) == ("<answer>", 3, 3)


@pytest.mark.parametrize(
    ("is_right", "planted"),
    [
        (lambda text, gold: gold in text, ("passes and should not", "sprayed")),
        (lambda text, gold: gold in text, ("passes and should not", "near miss")),
        (lambda text, gold: True, ("passes and should not", "empty")),
        (lambda text, gold: "<answer>" in text, ("passes and should not", "injection")),
        (lambda text, gold: careful(text, gold) or "x = x" in text, ("passes and should not", "injection")),
        (lambda text, gold: gold.startswith(read_transcript(text).answer or ""), ("passes and should not", "empty")),
        (
            lambda text, gold: bool(re.fullmatch((read_transcript(text).answer or "?").strip()[:20], gold)),
            ("passes and should not", "injection"),
        ),
        (lambda text, gold: gold in re.findall(r"<answer>(.*?)</answer>", text), ("passes and should not", "sprayed")),
        (
            lambda text, gold: careful(text, gold) or "number" in (read_transcript(text).answer or ""),
            ("passes and should not", "copied prompt"),
        ),
        (
            lambda text, gold: not float(boxed(text) or 0) < float(gold),
            ("passes and should not", "injection"),
        ),
        (
            lambda text, gold: int(re.sub(r"\D", "", boxed(text)) or 0) == int(gold),
            ("passes and should not", "near miss"),
        ),
        (runs, ("ran what the response said", "injection")),
        (lambda text, gold: read_transcript(text).answer == gold, ("fails and should not", "other spelling")),
        (lambda text, gold: False, ("fails and should not", "gold answer")),
        (
            lambda text, gold: float(text[-1] != "\n") and careful(text, gold),
            ("fails and should not", "other spelling"),
        ),
        (lambda text, gold: 1 / ("\0" not in text) and careful(text, gold), ("could not tell", "unicode")),
        (lambda text, gold: last_number(text, gold) and text.encode() != b"", ("could not tell", "unicode")),
        (dies, ("died", "unicode")),
    ],
)
def test_a_planted_fault_is_found(is_right: Callable[[str, str], bool | float], planted: tuple[str, str]) -> None:
    assert planted in found(is_right, golds=GOLDS[:2])


def test_a_grader_that_hangs_is_killed_and_the_audit_goes_on() -> None:
    findings = audited(hangs, golds=("16",), limit_s=0.5).findings
    assert [(finding.fault, finding.kind) for finding in findings] == [("hung", "huge")]


def test_the_last_number_is_a_rule_that_is_read_and_no_fault() -> None:
    """Of two answers the last one counts, which wins nothing; that nobody looks at what is beside it is a fault."""
    kinds = found(last_number)
    assert ("passes and should not", "sprayed") not in kinds
    assert ("passes and should not", "near miss") in kinds


def test_the_letter_of_an_option_is_attacked_by_the_other_letters() -> None:
    def first_letter(text: str, gold: str) -> bool:
        return (read_transcript(text).answer or "").strip(" ()*.")[:1] == gold

    def letter(text: str, gold: str) -> bool:
        return (read_transcript(text).answer or "").strip(" ()*.") == gold

    assert found(letter, golds="BAD") == set()
    assert ("passes and should not", "sprayed") not in found(first_letter, golds="BAD")  # the first one counts
    assert ("passes and should not", "near miss") in found(first_letter, golds="BAD")
    assert ("passes and should not", "sprayed") in found(lambda text, gold: gold in text, golds="BAD")


def test_without_gold_answers_the_rest_is_tried() -> None:
    assert found(lambda text, gold: False, golds=("",)) == set()
    kinds = {kind for _, kind in found(lambda text, gold: True, golds=("",))}
    assert {"empty", "injection", "copied prompt"} <= kinds


@pytest.mark.parametrize("name", ["arithmetic", "countdown", "facts", "small-talk", "harmful-requests"])
def test_the_tiny_worlds_graders_have_no_findings(name: str) -> None:
    task = installed().task(name)
    drawn = [Sample(task.problem("test", 0, index)) for index in range(2)]
    report = audit(task, drawn, ApartJudge(rule_of_task(task), 10))
    assert report.findings == ()
    assert report.num_right == 2


def test_no_attack_contradicts_another() -> None:
    """What must be right is never what must be wrong, whatever the gold answer looks like."""
    for gold in ("16", "-3", "1/2", "0.5", "1234", "B", "x^2+1", "fasum", "0", "(1, 2)"):
        problem = Problem("own", (Message("user", "how much is it ?"),), gold)
        for form in FORMS:
            target = Target(problem, form, ("5", "7"), "reasoning", Path("canary"))
            sides: dict[str, set[str]] = {"right": set(), "wrong": set(), "either": set()}
            for attack in attacks(target, is_read=True):
                if len(attack.responses) == 1:
                    sides[attack.expected].update(attack.responses)
            assert not sides["right"] & sides["wrong"], (gold, form)
            assert form.response(gold) not in sides["wrong"], (gold, form)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("16", " 16.0", True),
        ("1/2", "0.5", True),
        ("1,234", "1234", True),
        ("a b", "AB", True),
        ("1", "2", False),
        ("1/0", "1/0", True),
        ("١", "1", False),
    ],
)
def test_two_spellings_of_an_answer_are_the_same(one: str, other: str, equal: bool) -> None:
    assert same(one, other) is equal


def test_the_command_lists_findings_and_its_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(
        "from reasonmill.world.arithmetic import Arithmetic\n\n\n"
        "class Own(Arithmetic):\n"
        "    def judge(self, problem, text):\n"
        "        print('noise')\n"
        "        return {'accuracy': float(problem.answer in text)}\n"
    )
    (tmp_path / "lab.toml").write_text('name = "lab"\n[tasks.own]\nuse = "./own.py:Own"\n' + STAGE)
    lab = ["--recipe", str(tmp_path / "lab.toml"), "--problems", "2"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", "own", *lab, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert ended.value.code == 11
    assert (report["task"], report["problems"], report["gold_right"]) == ("own", 2, 2)
    assert {"fault", "kind", "attack", "problem", "answer", "response", "reason"} == set(report["findings"][0])
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", "own", *lab])
    assert ended.value.code == 11
    assert "passes and should not" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", "arithmetic", "--problems", "2"])
    assert ended.value.code == 0
    assert "no findings" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["math", "choice", "text", "instructions", "knights-and-knaves", "twenty-four", "zebra"]
)
def test_graders_without_problems_are_attacked_with_samples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["audit", name, "--json", "--limit", "1", "--problems", "3"])
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert report["gold_right"] == report["problems"] == min(3, len(own_samples(name)))
    assert "attacked with samples" in told.err
    assert not [found for found in report["findings"] if found["fault"] == "passes and should not"]


LONG = ("passes and should not", "huge", "a long answer that says nothing")


class Paid:
    """A reward that pays what a function of the response and the gold answer says."""

    def __init__(self, worth: Callable[[str, str], float | None]) -> None:
        self._worth = worth

    def measure(self, attempt: Attempt) -> float | None:
        return self._worth(attempt.completion.text, attempt.problem.answer)


def found_in_reward(worth: Callable[[str, str], float | None]) -> set[tuple[str, str, str]]:
    task = NamedTask("own", Own(careful))
    judge = RewardJudge(rule_of_reward(Paid(worth), task), 10)
    report = audit(task, list(map(Sample, task.problems("test", 0))), judge)
    return {(finding.fault, finding.kind, finding.attack) for finding in report.findings}


@pytest.mark.parametrize(
    ("worth", "planted"),
    [
        (lambda text, gold: 2.0 * (gold in text), ("passes and should not", "near miss", "a digit too many")),
        (lambda text, gold: 0.1 + ("<answer>" in text), ("passes and should not", "empty", "format only")),
        (lambda text, gold: careful(text, gold) + len(text) / 500, LONG),
        (lambda text, gold: -1.0 * ("x = x" in text), ("fails and should not", "gold answer", "as it stands")),
        (lambda text, gold: 1.0 if careful(text, gold) else 0.0 / (text != ""), ("could not tell", "empty", "nothing")),
        (lambda text, gold: float(text != ""), ("passes and should not", "copied prompt", "alone")),
        (lambda text, gold: None, ("could not tell", "gold answer", "as it stands")),
    ],
)
def test_rewards_are_attacked_by_what_they_pay(
    worth: Callable[[str, str], float | None], planted: tuple[str, str, str]
) -> None:
    assert planted in found_in_reward(worth)


def test_rewards_without_a_fault_have_no_findings() -> None:
    assert found_in_reward(lambda text, gold: 3.0 * careful(text, gold) - 1.0) == set()
    # Less for what is longer is a rule of the reward's own, as long as it is more than for nothing.
    assert found_in_reward(lambda text, gold: careful(text, gold) * (0.5 + 0.5 / (1 + len(text)))) == set()


def test_the_command_attacks_a_recipes_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(
        "def paid(completions, answer, **kwargs):\n"
        "    return [float(gold in said[0]['content']) for said, gold in zip(completions, answer)]\n"
    )
    stage = STAGE.replace("own = 1", "arithmetic = 1")
    (tmp_path / "lab.toml").write_text('name = "lab"\n[rewards.paid]\nuse = "./own.py:paid"\n' + stage)
    options = ["--reward", "paid", "--recipe", str(tmp_path / "lab.toml"), "--problems", "2", "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", "arithmetic", *options])
    report = json.loads(capsys.readouterr().out)
    assert ended.value.code == 11
    assert (report["task"], report["reward"], report["gold_right"]) == ("arithmetic", "paid", 2)
    sprayed = next(found for found in report["findings"] if found["kind"] == "sprayed")
    assert sprayed["reason"] == "it earns 1, an empty response 0, and the gold answer 1"


@pytest.mark.check
def test_programs_are_attacked_in_the_jail(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        found_level()
    except NoJail as error:
        pytest.skip(str(error))
    with pytest.raises(SystemExit):
        cli.main(["audit", "code", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["gold_right"] == report["problems"] == 2
    wrong = {"passes and should not", "fails and should not", "ran what the response said", "died"}
    assert wrong.isdisjoint(found["fault"] for found in report["findings"])


def test_a_task_of_a_users_own_without_problems_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", "facts", "--split", "dev"])
    assert ended.value.code == 2
    assert "has no split 'dev'" in capsys.readouterr().err


STAGE = """
[[stage]]
name = "eval"
kind = "evaluate"
from = "tiny-base"
tasks = { own = 1 }
"""
