"""The published sets that a recipe can name: `[tasks.gsm8k] use = "gsm8k", file = "gsm8k_test.jsonl"`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from reasonmill.data.files import read_rows
from reasonmill.data.hub import HubRows, read_hub
from reasonmill.data.values import BadRow, Row
from reasonmill.errors import RecipeError
from reasonmill.grading.choice import ChoiceGrader
from reasonmill.grading.code import CodeGrader
from reasonmill.grading.instructions import InstructionsGrader, Strictness
from reasonmill.grading.mathematics import MathGrader
from reasonmill.grading.verdict import Grader
from reasonmill.jail.found import found_level
from reasonmill.published.rows import belongs, problem_of
from reasonmill.tasks.rows import RowsTask
from reasonmill.tasks.splits import Split
from reasonmill.types import Problem

# So many rows that are not understood are named.
_NAMED = 5


def gsm8k(file: Path | None = None, hub: HubRows | None = None, split: Split | None = None) -> RowsTask:
    """GSM8K (Cobbe et al. 2021): 1,319 test problems; the answer is the last number of the reply."""
    return _task("gsm8k", MathGrader(answer_in="last-number"), file, hub, split)


def math_500(file: Path | None = None, hub: HubRows | None = None, split: Split | None = None) -> RowsTask:
    """MATH-500 (Lightman et al. 2023): 500 problems of MATH's test split; the answer is in the last box."""
    return _task("math-500", MathGrader(answer_in="boxed"), file, hub, split)


def aime(file: Path | None = None, hub: HubRows | None = None, split: Split | None = None) -> RowsTask:
    """AIME, 30 problems a year, answers from 0 to 999; the answer is in the last box."""
    return _task("aime", MathGrader(answer_in="boxed"), file, hub, split)


def gpqa(file: Path | None = None, hub: HubRows | None = None, split: Split | None = None) -> RowsTask:
    """GPQA (Rein et al. 2023): 198 questions in its subset diamond, four options each."""
    return _task("gpqa", ChoiceGrader(), file, hub, split)


def mmlu(file: Path | None = None, hub: HubRows | None = None, split: Split | None = None) -> RowsTask:
    """MMLU (Hendrycks et al. 2021): 14,042 test questions, four options each."""
    return _task("mmlu", ChoiceGrader(), file, hub, split)


def humaneval(file: Path | None = None, hub: HubRows | None = None, split: Split | None = None) -> RowsTask:
    """HumanEval (Chen et al. 2021): 164 functions, judged by tests in the jail."""
    return _task("humaneval", _code(), file, hub, split)


def mbpp(file: Path | None = None, hub: HubRows | None = None, split: Split | None = None) -> RowsTask:
    """MBPP (Austin et al. 2021): 500 test problems, 257 in the sanitized version, judged by tests in the jail."""
    return _task("mbpp", _code(), file, hub, split)


def livecodebench(file: Path | None = None, hub: HubRows | None = None, split: Split | None = None) -> RowsTask:
    """LiveCodeBench (Jain et al. 2024), code generation: programs and functions, judged by hidden tests in the jail."""
    return _task("livecodebench", _code(), file, hub, split)


def ifeval(
    file: Path | None = None, hub: HubRows | None = None, split: Split | None = None, by: Strictness = "strict"
) -> RowsTask:
    """IFEval (Zhou et al. 2023): 541 prompts with one to three instructions each.

    Args:
        by: which of the two accuracies counts; both are parts of the grades.
    """
    return _task("ifeval", InstructionsGrader(by), file, hub, split)


def _code() -> CodeGrader:
    """The grader of code.

    Raises:
        NoJail: this machine can't keep programs apart; better now than after hours of other stages.
    """
    found_level()
    return CodeGrader()


def _task(name: str, grader: Grader, file: Path | None, hub: HubRows | None, split: Split | None) -> RowsTask:
    """The task of a set.

    Args:
        file: the rows, in any format that `[data.NAME]` reads.
        hub: a data set of the hub, whose splits are taken, in place of a file. Without any of the two, the task grades
            and has no problems of its own.
        split: what the rows of a file are, "test" where nothing is said; only a training set is trained on.

    Raises:
        RecipeError: both a file and a data set are given, or a split without a file.
    """
    if file is not None and hub is not None:
        raise RecipeError(f"the problems of {name} come from a file or from the hub", fix="remove one of the two")
    if file is None and split is not None:
        raise RecipeError(
            f"split says what the rows of a file are, and {name} has none",
            fix="remove split; splits of a data set are named in hub = { splits = ... }",
        )

    def read() -> Mapping[str, list[Problem]]:
        rows = {split or "test": read_rows(file)} if file is not None else read_hub(hub) if hub is not None else {}
        return {split: _problems(name, split, each) for split, each in rows.items()}

    return RowsTask(grader, _WhenAsked(read))


class _WhenAsked(Mapping[str, Sequence[Problem]]):
    """Problems by split, read when the first is asked for: processes that grade need none of them."""

    def __init__(self, read: Callable[[], Mapping[str, Sequence[Problem]]]) -> None:
        self._read = read

    @cached_property
    def _found(self) -> Mapping[str, Sequence[Problem]]:
        return self._read()

    def __getitem__(self, split: str) -> Sequence[Problem]:
        return self._found[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __bool__(self) -> bool:
        return True  # it is not known yet, and nobody should have to read for it


def _problems(name: str, split: str, rows: Iterator[Row | BadRow]) -> list[Problem]:
    """The problems of a split among rows, each once.

    Raises:
        RecipeError: a row is not of the set.
    """
    found: dict[str, Problem] = {}
    bad: list[BadRow] = []
    for row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            if not belongs(name, split, row.columns):
                continue
            problem = problem_of(name, row.columns)
            found.setdefault(problem.id, problem)
        except BadRow as error:
            bad.append(BadRow(error.what, error.column, error.place or getattr(row, "place", "")))
    if bad or not found:
        listed = [f"  {row.where}: {row.what}" for row in bad[:_NAMED]]
        more = [f"  and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []
        what = f"{len(bad)} rows are not of the set {name}:" if bad else f"there are no rows of split {split!r}"
        raise RecipeError(
            "\n".join([what, *listed, *more]),
            fix="give the published file, with the names of its columns as they are",
        )
    return list(found.values())
