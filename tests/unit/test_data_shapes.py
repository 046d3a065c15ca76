"""Rows in the exact shapes of other projects, unchanged: what each is made into, and what is refused by its column."""

import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from reasonmill.data import shapes
from reasonmill.data.items import CHOSEN, LABEL
from reasonmill.data.table import Rows
from reasonmill.errors import RecipeError
from reasonmill.types import Conversation, Group, Message, Problem

SHAPES = Path(shapes.__file__).with_suffix(".toml")
ASKED = [{"role": "user", "content": "What is 7 + 5?"}]
SAID = [{"role": "assistant", "content": "It is 12."}]
TURNS = (Message("user", "What is 7 + 5?"),)
NEMO = {"responses_create_params": {"input": ASKED, "tools": [], "parallel_tool_calls": True}, "expected_answer": "12"}
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": ASKED,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "12"},
    "extra_info": {"split": "train", "index": 0, "answer": "It is 12.\n#### 12", "tools_kwargs": None},
}
SKYRL = {
    "data_source": "openai/gsm8k",
    "prompt": ASKED,
    "env_class": "gsm8k",
    "reward_spec": {"method": "rule", "ground_truth": "12"},
    "extra_info": {"index": 0},
}
VERIFIERS_1 = {
    "idx": 0,
    "id": "a",
    "name": None,
    "prompt": "What is 7 + 5?",
    "system_prompt": "Calculate.",
    "image": None,
    "workdir": None,
    "network_allow": [],
    "timeout": {"setup": None, "agent": None},
    "resources": {"cpu": None, "gpu": None},
    "answer": "12",
}
INSPECT = {"input": "What is 7 + 5?", "choices": None, "target": "12", "id": 1, "metadata": {"level": 1}, "files": None}

# Name of the shape, a row of it, the prompt, the answer, and the columns that graders and rewards get.
PROBLEMS: list[tuple[str, dict[str, Any], tuple[Message, ...], str, set[str]]] = [
    ("TRL prompts", {"prompt": ASKED, "ground_truth": "12", "level": 2}, TURNS, "12", {"ground_truth", "level"}),
    ("TRL prompts without answers", {"prompt": "What is 7 + 5?", "words": 3}, TURNS, "", {"prompt", "words"}),
    ("verl", VERL, TURNS, "12", {"data_source", "ability", "reward_model", "extra_info"}),
    ("DAPO", {**VERL, "reward_model": {"style": "rule-lighteval/MATH_v2", "ground_truth": "12"}}, TURNS, "12",
     {"data_source", "ability", "reward_model", "extra_info"}),
    ("SkyRL", SKYRL, TURNS, "12", {"data_source", "env_class", "reward_spec", "extra_info"}),
    ("slime", {"prompt": ASKED, "label": "12", "metadata": {"rm_type": "math"}}, TURNS, "12", {"label", "metadata"}),
    ("open-instruct", {"messages": ASKED + SAID, "ground_truth": "12", "dataset": "math"}, TURNS, "12",
     {"ground_truth", "dataset"}),
    ("NeMo Gym", NEMO, TURNS, "12", {"expected_answer"}),
    ("verifiers 1", VERIFIERS_1, (Message("system", "Calculate."), *TURNS), "12",
     set(VERIFIERS_1) - {"system_prompt"}),
    ("verifiers 0", {"question": ASKED, "answer": "12", "info": {}, "task": "sums"}, TURNS, "12",
     {"answer", "info", "task"}),
    ("inspect", INSPECT, TURNS, "12", {"choices", "target", "id", "metadata", "files"}),
    ("GSM8K", {"question": "What is 7 + 5?", "answer": "<<7+5=12>>It is 12.\n#### 12"}, TURNS, "12", {"answer"}),
    ("MATH", {"problem": "What is 7 + 5?", "solution": "So \\boxed{1} and \\boxed{\\frac{24}{2}}.", "level": "Level 1",
              "type": "Algebra"}, TURNS, "\\frac{24}{2}", {"solution", "level", "type"}),
    ("OpenR1", {"problem": "What is 7 + 5?", "solution": "\\boxed{13}", "answer": "12",
                "messages": ASKED + SAID, "generations": ["12"]}, TURNS, "12",
     {"solution", "answer", "messages", "generations"}),
    ("numbers", {"question": "What is 7 + 5?", "answer": 12}, TURNS, "12", {"answer"}),
]  # fmt: skip


def test_the_page_lists_the_shapes_and_the_settings() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    start = cells.index("shape") + 1
    names = [shape["name"] for shape in tomllib.loads(SHAPES.read_text(encoding="utf-8"))["shape"]]
    assert cells[start : start + len(names)] == names
    settings = [name for cell in cells[: start - 1] for name in re.findall("`([a-z_]+)`", cell)]
    assert settings[1:] == list(inspect.signature(Rows).parameters)


def rows(folder: Path, *written: dict[str, Any], **settings: Any) -> Rows:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in written))
    return Rows(train=file, **settings)


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "kept"), [case[1:] for case in PROBLEMS], ids=[c[0] for c in PROBLEMS]
)
def test_problems(
    tmp_path: Path, row: dict[str, Any], prompt: tuple[Message, ...], answer: str, kept: set[str]
) -> None:
    (problem,) = rows(tmp_path, row).problems()["train"]
    assert (problem.messages, problem.answer, problem.split) == (prompt, answer, "train")
    assert problem.meta == {column: row[column] for column in kept}


def test_any_of_several_answers_is_right(tmp_path: Path) -> None:
    (problem,) = rows(tmp_path, {**INSPECT, "target": ["12", "twelve"]}).problems()["train"]
    assert (problem.answer, problem.meta["answers"]) == ("12", ["twelve"])
    (problem,) = rows(tmp_path, {**INSPECT, "target": ["12"]}).problems()["train"]
    assert (problem.answer, "answers" in problem.meta) == ("12", False)
    squad = {"question": "Which city?", "answers": {"text": ["Paris"], "answer_start": [3]}}
    (problem,) = rows(tmp_path, squad, columns={"prompt": "question", "answer": "answers.text"}).problems()["train"]
    assert (problem.answer, problem.meta["answers"]) == ("Paris", [])  # and not the names of its columns


def test_what_is_ignored_may_come_late(tmp_path: Path) -> None:
    written = [{"problem": str(n), "answer": "1"} for n in range(150)] + [{"problem": "x", "answer": "1", "tools": [1]}]
    assert rows(tmp_path, *written, ignore=["tools"]).counts.splits == {"train": 151}


def test_options_stand_in_the_prompt_and_the_answer_is_a_letter(tmp_path: Path) -> None:
    asked = {"question": "Which is largest?", "choices": ["2", "9", "4"]}
    named = [{**asked, "answer": answer} for answer in (1, "B", "9")]
    for row in named:
        (problem,) = rows(tmp_path, row).problems()["train"]
        assert problem.messages[0].content == "Which is largest?\n\nA. 2\nB. 9\nC. 4"
        assert (problem.answer, problem.meta["choices"]) == ("B", ["2", "9", "4"])
    arc = {"question": "Which is largest?", "choices": {"text": ["2", "9", "4"], "label": ["1", "2", "3"]}}
    (problem,) = rows(tmp_path, {**arc, "answerKey": "2"}).problems()["train"]
    assert (problem.answer, problem.meta["choices"]) == ("B", ["2", "9", "4"])
    with pytest.raises(RecipeError, match="'D' is none of the options A, B, C"):
        rows(tmp_path, {**asked, "answer": "D"})


CONVERSATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("TRL messages", {"messages": ASKED + SAID}, "It is 12."),
    ("prompt and completion", {"prompt": "What is 7 + 5?", "completion": "It is 12."}, "It is 12."),
    ("both as messages", {"prompt": ASKED, "completion": SAID, "tools": None}, "It is 12."),
    ("from and value", {"conversations": [{"from": "human", "value": "What is 7 + 5?"},
                                          {"from": "gpt", "value": "It is 12."}]}, "It is 12."),
    ("parts of text", {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 7 + 5?"}]}, *SAID]},
     "It is 12."),
    ("Alpaca", {"instruction": "What is 7 + 5?", "input": "", "output": "It is 12."}, "It is 12."),
    ("thinking", {"messages": [*ASKED, {"role": "assistant", "reasoning_content": "Count.", "content": "12"}]},
     "<think>\nCount.\n</think>\n\n12"),
]  # fmt: skip


def test_what_an_instruction_is_about_stands_below_it(tmp_path: Path) -> None:
    (conversation,) = rows(tmp_path, {"instruction": "Add.", "input": "7 and 5", "output": "12"}).conversations()
    assert conversation.messages[0].content == "Add.\n\n7 and 5"


@pytest.mark.parametrize(("row", "response"), [case[1:] for case in CONVERSATIONS], ids=[c[0] for c in CONVERSATIONS])
def test_conversations(tmp_path: Path, row: dict[str, Any], response: str) -> None:
    (conversation,) = rows(tmp_path, row).conversations()
    assert isinstance(conversation, Conversation)
    assert (conversation.messages, conversation.response, conversation.split) == (TURNS, response, "train")


HH = "\n\nHuman: What is 7 + 5?\n\nAssistant: {}"
PAIRS: list[tuple[str, dict[str, Any]]] = [
    ("explicit prompt", {"prompt": "What is 7 + 5?", "chosen": "12", "rejected": "13"}),
    ("explicit prompt as messages", {"prompt": ASKED, "chosen": [{"role": "assistant", "content": "12"}],
                                     "rejected": [{"role": "assistant", "content": "13"}]}),
    ("prompt said again", {"prompt": "What is 7 + 5?", "chosen": [*ASKED, {"role": "assistant", "content": "12"}],
                           "rejected": [*ASKED, {"role": "assistant", "content": "13"}], "score_chosen": 8.0}),
    ("implicit prompt", {"chosen": [*ASKED, {"role": "assistant", "content": "12"}],
                         "rejected": [*ASKED, {"role": "assistant", "content": "13"}]}),
    ("marked turns", {"chosen": HH.format("12"), "rejected": HH.format("13")}),
]  # fmt: skip


def labels(group: Group, part: str) -> dict[str, float]:
    return {rollout.completion.text: rollout.grade.parts[part] for rollout in group.rollouts}


@pytest.mark.parametrize("row", [case[1] for case in PAIRS], ids=[case[0] for case in PAIRS])
def test_pairs(tmp_path: Path, row: dict[str, Any]) -> None:
    (group,) = rows(tmp_path, row).labelled()
    assert group.problem.messages == TURNS
    assert labels(group, CHOSEN) == {"12": 1.0, "13": 0.0}


def test_labels_of_responses_and_of_steps(tmp_path: Path) -> None:
    (group,) = rows(tmp_path, {"prompt": "What is 7 + 5?", "completion": "13", "label": False}).labelled()
    assert labels(group, LABEL) == {"13": 0.0}
    steps = {"prompt": "What is 7 + 5?", "completions": ["Count.", "13"], "labels": [True, False]}
    (group,) = rows(tmp_path, steps).labelled()
    assert labels(group, LABEL) == {"Count.": 1.0, "Count.\n13": 0.0}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": ASKED + SAID, "tools": [{"name": "search"}]}, "tools"),
    ({**NEMO, "responses_create_params": {"input": ASKED, "temperature": 0.2}}, "responses_create_params.temperature"),
    ({**VERL, "reward_model": {"style": "model", "ground_truth": "12"}}, "reward_model.style"),
    ({**VERL, "extra_info": {"tools_kwargs": {"sandbox": {"create_kwargs": {"x": 1}}}}}, "extra_info.tools_kwargs"),
    ({**VERL, "agent_name": "tool_agent"}, "agent_name"),
    ({**SKYRL, "reward_spec": {"method": "reward_model", "ground_truth": "12"}}, "reward_spec.method"),
    ({**VERIFIERS_1, "workdir": "/app"}, "workdir"),
    ({**INSPECT, "sandbox": "docker"}, "sandbox"),
    ({"prompt": ASKED, "answer": "12", "environment": "shell"}, "environment"),
    ({"prompt": ASKED, "answer": "12", "chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
    ({"prompt": ASKED, "answer": "12", "images": ["a.png"]}, "images"),
]


@pytest.mark.parametrize(("row", "column"), REFUSED, ids=[column for _, column in REFUSED])
def test_what_asks_for_more_is_refused_by_line_and_column_unless_it_is_ignored(
    tmp_path: Path, row: dict[str, Any], column: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        rows(tmp_path, row)
    assert refused.value.where == f"{tmp_path / 'rows.jsonl'}:1, column {column!r}"
    assert rows(tmp_path, row, ignore=[column]).counts.splits == {"train": 1}


# A second row that is not understood, its column, and what is said.
BAD: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "2"}, "answer", "nothing stands behind ####"),
    ({"problem": "a", "solution": "\\boxed{1}"}, {"problem": "b", "solution": "\\boxed{2"}, "solution", "no \\boxed"),
    ({"problem": "a", "answer": "1"}, {"problem": "b", "answer": None}, "answer", "missing, or null"),
    ({"problem": "a", "answer": "1"}, {"problem": 7, "answer": "1"}, "problem", "neither a text nor a list"),
    ({"prompt": ASKED, "answer": "1"}, {"prompt": ASKED + SAID, "answer": "1"}, "prompt", "nothing is asked"),
    ({"messages": ASKED + SAID}, {"messages": ASKED}, "messages", "there is no response"),
    ({"messages": ASKED + SAID}, {"messages": SAID}, "messages", "follows a turn of the user"),
    ({"messages": ASKED + SAID}, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0]", "role 'robot'"),
    ({"messages": ASKED + SAID}, {"messages": [*ASKED, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
     "messages[1].tool_calls", "only what is said is read"),
    ({"messages": ASKED + SAID}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, *SAID]},
     "messages[0].content[0]", "something else than text"),
    ({"prompt": "a", "chosen": "1", "rejected": "2"}, {"prompt": "a", "chosen": "1", "rejected": "1"}, "rejected",
     "are the same"),
    ({"prompt": "a", "completion": "1", "label": True}, {"prompt": "a", "completion": "1", "label": 0.5}, "label",
     "true or false"),
    ({"prompt": "a", "completions": ["1"], "labels": [True]}, {"prompt": "a", "completions": ["1"], "labels": []},
     "labels", "every step needs a label"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "column", "why"), BAD)
def test_rows_that_are_not_understood_are_named(
    tmp_path: Path, good: dict[str, Any], bad: dict[str, Any], column: str, why: str
) -> None:
    with pytest.raises(RecipeError, match="1 row is not understood") as refused:
        rows(tmp_path, good, bad)
    assert refused.value.where == f"{tmp_path / 'rows.jsonl'}:2, column {column!r}"
    assert why in refused.value.what
    read = rows(tmp_path, good, bad, bad_rows="drop")
    assert (read.counts.splits, read.counts.bad) == ({"train": 1}, 1)


def test_columns_say_what_rows_of_no_known_shape_are(tmp_path: Path) -> None:
    row = {"ask": {"text": "What is 7 + 5?"}, "gold": "so #### 12", "note": "x"}
    with pytest.raises(RecipeError, match=r"rows with the columns ask\.text, gold, note are of no known shape"):
        rows(tmp_path, row)
    read = rows(tmp_path, row, columns={"prompt": "ask.text", "answer": "gold"})
    (problem,) = read.problems()["train"]
    assert (problem.messages, problem.answer, problem.meta) == (TURNS, "12", {"gold": "so #### 12", "note": "x"})
    (conversation,) = rows(tmp_path, row, columns={"prompt": "ask.text", "response": "gold"}).conversations()
    assert conversation.response == "so #### 12"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"prompt": "problem", "answer": "gold"}}, "columns.answer names 'gold', and the rows have no"),
        ({"columns": {"prompt": "problem", "chosen": "answer"}}, "columns of prompt, chosen make nothing"),
        ({"columns": {"prompt": "problem"}, "answer": "box"}, "answer says how a column is read"),
        ({"ignore": ["tools"]}, "ignore names 'tools', and no row has it"),
        ({"shares": {"train": 1.0}}, "shares divide the rows of `file`"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        rows(tmp_path, {"problem": "a", "answer": "1"}, **settings)


def test_rows_are_no_more_than_they_are(tmp_path: Path) -> None:
    read = rows(tmp_path, {"problem": "a", "answer": "1"})
    assert isinstance(read.problems()["train"][0], Problem)
    with pytest.raises(RecipeError, match=r"the rows hold problems .*, and conversations are needed"):
        read.conversations()
    with pytest.raises(RecipeError, match="pairs or labels are needed"):
        read.labelled()
