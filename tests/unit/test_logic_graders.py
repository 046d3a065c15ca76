"""Knights and knaves, 24 and zebra puzzles: what the graders take for an answer, and what they do not."""

import json
from typing import Any

import pytest

from reasonmill.grading.logic import KnightsAndKnavesGrader, TwentyFourGrader, ZebraGrader
from reasonmill.grading.verdict import Grader, Outcome
from reasonmill.types import Message, Problem


def outcome(grader: Grader, response: str, answer: str = "", meta: dict[str, Any] | None = None) -> Outcome:
    return grader.judge(Problem("logic", (Message("user", "solve"),), answer, meta or {}), response).outcome


# Knights and knaves

PEOPLE = "Zoey is a knight, and Oliver is a knave."
WRITTEN: list[tuple[str, dict[str, Any]]] = [
    (PEOPLE, {}),
    ("(1) Zoey is a knight\n(2) Oliver is a knave", {}),
    ('{"Zoey": "knight", "Oliver": "knave"}', {}),
    ('{"Zoey": true, "Oliver": false}', {}),
    ("", {"names": ["Zoey", "Oliver"], "solution": [True, False]}),
]
RIGHT_PEOPLE = [
    PEOPLE,
    f"<think> Zoey is a knave? no</think><answer> {PEOPLE}</answer>",
    "If Zoey is a knave, she lies.\n\nCONCLUSION:\n(1) Zoey is a knight\n(2) Oliver is a knave",
    "**Conclusion**: **ZOEY** is a **knight**, and **Oliver** is a **knave**",
    "Suppose Zoey is a knave: no.\n\nSo Zoey is a knight; Oliver is a knave.",
    "Knights: Zoey. Knaves: Oliver.",
    "Zoey is a knight, not a knave, and so we conclude. Oliver is a knave",
    "zoey is a knight, oliver is a knave",
    "Zoey: knight\nOliver: knave",
    "CONCLUSION: Zoey is a knave. No, CONCLUSION: Zoey is a knight and Oliver is a knave",
]
WRONG_PEOPLE = [
    "",
    "Zoey is a knight",
    "Zoey and Oliver are knights",
    "Both Zoey and Oliver are knaves.",
    "Zoey is a knave, and Oliver is a knight.",
    f"<think> {PEOPLE}",
    f"{PEOPLE}\n\nI do not know.",
    "Zoey is a knight. Zoey is a knave. Oliver is a knave.",
    "Either Zoey is a knight, or Oliver is a knave.",
    "Zoey is not a knight. Oliver is a knave.",
    "If Zoey is a knight, Oliver is a knave.",
    "Knights: Zoey, Oliver. Knaves: Zoey, Oliver.",
    "Zoey is a knight and a knave, and Oliver is a knave",
    "Zoey and Oliver: knight/knave",
    "zoey is a knight. Will Oliver be a knave?",
    f"<answer> {PEOPLE}</answer><answer> Zoey is a knave</answer>",
]


@pytest.mark.parametrize(("answer", "meta"), WRITTEN)
def test_who_is_a_knight(answer: str, meta: dict[str, Any]) -> None:
    for response in RIGHT_PEOPLE:
        assert outcome(KnightsAndKnavesGrader(), response, answer, meta) == "right", response
    for response in WRONG_PEOPLE:
        assert outcome(KnightsAndKnavesGrader(), response, answer, meta) == "wrong", response


def test_several_people_in_one_clause() -> None:
    answer = "Ann is a knave, Bob is a knave, and Cid is a knight."
    assert outcome(KnightsAndKnavesGrader(), "Ann and Bob are knaves, Cid is a knight", answer) == "right"
    assert outcome(KnightsAndKnavesGrader(), "Ann is a knave, Bob and Cid are knights", answer) == "wrong"


def test_names_that_are_words_and_other_words_for_knights() -> None:
    meta = {"knight_knave": {"knight": "a saint", "knave": "a sinner", "Knight": "A saint"}}
    answer = "Will is a saint, and Grace is a sinner."
    grader = KnightsAndKnavesGrader()
    assert (
        outcome(grader, "We will see with grace that Will is a saint and Grace is a sinner.", answer, meta) == "right"
    )
    assert outcome(grader, "We will see with grace that Will and Grace are saints.", answer, meta) == "wrong"
    assert outcome(grader, answer, answer) == "could not tell"


@pytest.mark.parametrize("answer", ["", "18", "Zoey is a hero", '{"Zoey": 3}', "Zoey is a knight, Zoey is a knave"])
def test_a_reference_that_names_no_knights(answer: str) -> None:
    assert outcome(KnightsAndKnavesGrader(), PEOPLE, answer) == "could not tell"


# 24

RIGHT_24 = [
    "(4 - 4 / 6) * 8 - 4",
    "First this.\nAnswer: 4 * (8 - 6) * 3",
    "<answer> \\boxed{(8 - 6) \\times 3 \\times 4} </answer>",
    "**3 × 4 × (8 − 6) = 24**",
]


def test_24_from_four_numbers() -> None:
    meta = {"numbers": [3, 4, 6, 8]}
    for response in RIGHT_24[1:]:
        assert outcome(TwentyFourGrader(), response, "", meta) == "right", response
        assert outcome(TwentyFourGrader(), response, "(8 - 6) * 3 * 4", {}) == "right", response
    for response in [
        "",
        RIGHT_24[0],
        "24",
        "3 * 8",
        "3 * 8 + 4 - 6",
        "3 * 4 * (8 - 6) * 1",
        "3 * 4 * (8 - 6) = 25",
        "24 = 3 * 4 * (8 - 6)",
        "3 * 4 * (8 - 6)\n3 * 8",
        "__import__('os').abort()",
        "3 ** 4",
        "9" * 10_000,
        "<think> 3 * 4 * (8 - 6)",
    ]:
        assert outcome(TwentyFourGrader(), response, "", meta) == "wrong", response


def test_another_target_and_countdown_rows() -> None:
    assert outcome(TwentyFourGrader(), "8 - 3", "", {"nums": [3, 8], "target": 5}) == "right"
    assert outcome(TwentyFourGrader(), "8 * 3", "", {"nums": [3, 8], "target": 5}) == "wrong"
    assert outcome(TwentyFourGrader(), "8 - 3", '{"target": 5, "numbers": [3, 8]}') == "right"
    assert outcome(TwentyFourGrader(), "8 + 3", '{"target": 5, "numbers": [3, 8]}') == "wrong"
    assert outcome(TwentyFourGrader(), "8 / 3", "", {"nums": [3, 8], "target": "8/3"}) == "right"


@pytest.mark.parametrize(
    ("answer", "meta"), [("", {}), ("24", {}), ("", {"numbers": "3 4"}), ("", {"numbers": [1, 2], "target": "?"})]
)
def test_a_reference_without_numbers(answer: str, meta: dict[str, Any]) -> None:
    assert outcome(TwentyFourGrader(), "3 * 8", answer, meta) == "could not tell"


# Zebra

HOUSES = {"House 1": {"Name": "Ann", "Drink": "root beer"}, "House 2": {"Name": "Bob", "Drink": "tea"}}
ROWS = {"header": ["House", "Name", "Drink"], "rows": [["1", "Ann", "root beer"], ["2", "Bob", "tea"]]}
GRID = json.dumps(HOUSES)


@pytest.mark.parametrize("reference", [HOUSES, ROWS, {"solution": HOUSES}])
def test_who_lives_where(reference: dict[str, Any]) -> None:
    grader = ZebraGrader()
    for response in [
        GRID,
        f"```json\n{GRID}\n```",
        f"The names are {{Ann, Bob}}, so:\n{GRID}\nDone.",
        json.dumps({"reasoning": "by clue {1}", "solution": HOUSES}),
        f"<think> {GRID.replace('Ann', 'Cid')}</think> {GRID.upper()}",
        GRID.replace("House 1", "1").replace("root beer", "Root_Beer"),
    ]:
        assert outcome(grader, response, json.dumps(reference)) == "right", response
        assert outcome(grader, response, "", {"solution": reference}) == "right", response
    for response in [
        "",
        "Ann lives in house 1",
        GRID.replace("tea", "milk"),
        json.dumps({"House 1": HOUSES["House 1"]}),
        f"{GRID} {GRID}",
        f"{GRID} {GRID.replace('tea', 'milk')}",
        GRID.replace('"tea"', '["tea", "milk"]'),
        GRID.replace('"Drink": "tea"', '"Drink": "milk", "drink": "tea"'),
        GRID[:-1],
        '{"a":' * 5_000,
        "{}" * 200,
        f"<think> {GRID}",
    ]:
        assert outcome(grader, response, json.dumps(reference)) == "wrong", response


def test_cells_are_counted() -> None:
    problem = Problem("zebra", (Message("user", "solve"),), GRID)
    verdict = ZebraGrader().judge(problem, GRID.replace("tea", "milk"))
    assert (verdict.outcome, verdict.parts) == ("wrong", {"cells": 0.75})


@pytest.mark.parametrize(
    "answer", ["", "18", "[]", '{"House 1": "Ann"}', '{"header": ["House", "Name"], "rows": [["1"]]}']
)
def test_a_reference_that_is_no_grid(answer: str) -> None:
    assert outcome(ZebraGrader(), GRID, answer) == "could not tell"
