"""What a completion says: the one answer that was said aloud, and whether the format was kept."""

import time

import pytest

from reasonmill.transcript import read_transcript


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>a b</think><answer>24</answer>", "a b", "24"),
        ("<think> a\nb </think>\n <answer> 24 </answer>\n", "a\nb", "24"),
        (" <think></think><answer></answer>", "", ""),
        ("<think>3 < 8 > 1</think><answer>3 < 8</answer>", "3 < 8 > 1", "3 < 8"),
        ("<think>a <b> c</think><answer><b></answer>", "a <b> c", "<b>"),
    ],
)
def test_well_formed(text: str, thinking: str, answer: str) -> None:
    transcript = read_transcript(text)
    assert transcript.well_formed
    assert (transcript.thinking, transcript.answer) == (thinking, answer)


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("", "", None),
        ("24", "", None),
        ("<answer>24</answer>", "", "24"),
        ("<think>a</think>", "a", None),
        ("<think>a</think>24", "a", None),
        ("<think>a</think><answer>24", "a", None),
        ("<think>a</think>24</answer>", "a", None),
        ("<think>a</think>so <answer>24</answer>", "a", "24"),
        ("well <think>a</think><answer>24</answer>", "a", "24"),
        ("<think>a</think><answer>24</answer> bye", "a", "24"),
        ("<answer>24</answer><think>a</think>", "a", "24"),
        # The prompt may have opened the thinking.
        ("a b</think><answer>24</answer>", "a b", "24"),
        ("try <answer>1</answer> no</think><answer>24</answer>", "try <answer>1</answer> no", "24"),
        # What is thought, and never said aloud, is no answer.
        ("<think>a <answer>24</answer>", "a <answer>24</answer>", None),
        ("<think>a <answer>24</answer></think>", "a <answer>24</answer>", None),
        ("<answer>24</answer></think>", "<answer>24</answer>", None),
        ("<think>a <answer>1</answer></think><answer>24</answer>", "a <answer>1</answer>", "24"),
        ("<think>a <think>b</think><answer>24</answer>", "a <think>b", "24"),
        # Several answers are none.
        ("<think>a</think><answer>24</answer><answer>25</answer>", "a", None),
        ("<think>a</think><answer>24</answer><answer>24</answer>", "a", None),
        ("<think>a</think><answer>24<answer>25</answer>", "a", None),
        ("<answer>24</answer><think>a</think><answer>25</answer>", "a", None),
        # Only the tags themselves are tags.
        ("<Think>a</Think><Answer>24</Answer>", "", None),
        ("< think >a</ think >< answer >24</ answer >", "", None),
    ],
)
def test_not_well_formed(text: str, thinking: str, answer: str | None) -> None:
    transcript = read_transcript(text)
    assert not transcript.well_formed
    assert (transcript.thinking, transcript.answer) == (thinking, answer)


@pytest.mark.parametrize(
    "text",
    ["<think>a</think><think>b <answer>24</answer>", "<think>a</think><think>b <answer>24</answer></think>"],
)
def test_an_answer_in_a_later_thinking_block_was_not_said_aloud(text: str) -> None:
    assert read_transcript(text).answer is None


@pytest.mark.parametrize("text", ["<answer>2<think>a</think>4</answer>", "<ans<think>a</think>wer>24</answer>"])
def test_no_answer_is_put_together_around_a_thinking_block(text: str) -> None:
    assert read_transcript(text).answer is None


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 1250,
        "<think>" * 1400,
        "<think>" + "</think><answer>" * 600,
        "<think>" + "</think><answer>" * 300 + "</answer>" * 600 + "x",
        "<think>a</think>" + " " * 10_000 + "x",
    ],
)
def test_10_000_odd_characters_are_read_in_no_time(text: str) -> None:
    start = time.perf_counter()
    transcript = read_transcript(text)
    assert time.perf_counter() - start < 1.0
    assert not transcript.well_formed
    assert transcript.answer is None
