"""What every renderer promises, and which one a model directory gets."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from reasonmill.errors import UnsupportedModel
from reasonmill.protocols import Renderer
from reasonmill.render import ChatRenderer, PlainRenderer, renderer_for
from reasonmill.templates import CHAT_TEMPLATES
from reasonmill.types import Message
from reasonmill.world.tokenizer import train_tokenizer

TEXTS = ["What is 17 + 4 ? It is 21 .", "the quick brown fox says: <think> hmm </think>", "Grüße aus Köln"]
QUESTION = "What is 17 + 4 ?"
ANSWER = "<think> 17 + 4 is 21 </think> <answer> 21 </answer>"


def a_tokenizer(*, chat: bool) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    if not chat:
        tokenizer.chat_template = None
    return tokenizer


@dataclass(frozen=True)
class Case:
    renderer: Renderer
    tokenizer: PreTrainedTokenizerFast
    prompt: str
    """The text that the question is put in, up to where the assistant begins."""


@pytest.fixture(scope="module", params=["chat", "plain", "r1-zero"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp(request.param)
    tokenizer = a_tokenizer(chat=request.param == "chat")
    if request.param in CHAT_TEMPLATES:
        tokenizer.chat_template = CHAT_TEMPLATES[request.param]
    tokenizer.save_pretrained(directory)
    # After Table 1 of the R1 paper.
    r1_zero = (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The Assistant first thinks about the reasoning process and then gives the answer. The reasoning is enclosed "
        "in <think> </think> and the answer in <answer> </answer>, that is, <think> reasoning here </think> <answer> "
        f"answer here </answer>. User: {QUESTION}. Assistant:"
    )
    prompt = f"<|user|> {QUESTION}<|end|><|assistant|>" if request.param == "chat" else r1_zero
    return Case(renderer_for(directory), tokenizer, prompt)


def test_conversations_together_have_the_tokens_that_each_has_alone(case: Case) -> None:
    """Also those that are not read as they are: what spells a control token, in two of many."""
    asked = [f"{text} {number}" for number, text in enumerate([QUESTION, "<|end|> <|user|>", "", *TEXTS, "<|end|>"])]
    conversations = [[Message("user", text)] for text in asked]
    alone = [case.renderer.render(messages) for messages in conversations]
    assert case.renderer.render_all(conversations) == alone
    assert case.renderer.render_all([]) == []
    assert case.tokenizer.decode(alone[0]) == case.prompt.replace(QUESTION, asked[0])


def test_a_conversation_ends_where_the_assistant_begins(case: Case) -> None:
    tokens = case.renderer.render([Message("user", QUESTION)])
    assert case.tokenizer.decode(tokens) == case.prompt
    assert case.renderer.render([Message("user", QUESTION)]) == tokens


def test_special_marks_are_tokens_of_their_own(case: Case) -> None:
    tokens = case.renderer.render([Message("user", QUESTION)])
    marks = [mark for mark in ("<|user|>", "<|assistant|>", "<think>", "</answer>") if mark in case.prompt]
    assert set(case.tokenizer.convert_tokens_to_ids(marks)) <= set(tokens)


def test_every_message_counts(case: Case) -> None:
    one = case.renderer.render([Message("user", QUESTION)])
    two = case.renderer.render([Message("system", "Be brief."), Message("user", QUESTION)])
    text = case.tokenizer.decode(two)
    assert two != one
    assert text.index("Be brief.") < text.index(QUESTION)


def test_the_text_keeps_the_thinking_and_drops_the_stop_token(case: Case) -> None:
    tokens = case.tokenizer.encode(ANSWER, add_special_tokens=False)
    assert case.tokenizer.eos_token_id in case.renderer.stop_tokens
    assert case.renderer.text([*tokens, case.tokenizer.eos_token_id]) == ANSWER


@pytest.mark.parametrize("text", ["", "two  spaces, a\nline", " Grüße, 日本 🙂", "1 + 2 = 3 ."])
def test_any_text_comes_back_from_its_tokens(case: Case, text: str) -> None:
    tokens = case.tokenizer.encode(text, add_special_tokens=False)
    assert case.renderer.text(tokens) == text
    assert case.renderer.num_tokens([text, "", text]) == [len(tokens), 0, len(tokens)]
    assert case.renderer.num_tokens([]) == []


def test_the_chat_template_decides_which_renderer_a_model_gets(tmp_path: Path) -> None:
    for name, chat, kind in (("chat", True, ChatRenderer), ("plain", False, PlainRenderer)):
        (tmp_path / name).mkdir()
        a_tokenizer(chat=chat).save_pretrained(tmp_path / name)
        assert type(renderer_for(tmp_path / name)) is kind


def test_generation_settings_add_their_stop_tokens(tmp_path: Path) -> None:
    tokenizer = a_tokenizer(chat=True)
    tokenizer.save_pretrained(tmp_path)
    for configured, expected in (([7, 9], {7, 9}), (7, {7}), (None, set())):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": configured}))
        assert renderer_for(tmp_path).stop_tokens == {tokenizer.eos_token_id, *expected}


def test_the_same_files_elsewhere_are_not_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_tokenizer(chat=True).save_pretrained(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    text = renderer_for(tmp_path / "first").response("17 + 4")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    assert renderer_for(tmp_path / "second").response("17 + 4") == text


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_another_tokenizer_is_loaded_for_any_other_file(tmp_path: Path, name: str) -> None:
    mine, other = a_tokenizer(chat=True), train_tokenizer(["12 12 12 + 34 34 34"], vocab_size=280)
    other.chat_template, other.eos_token = "{{ messages[0].content }} .", "<|user|>"
    mine.save_pretrained(tmp_path / "mine")
    other.save_pretrained(tmp_path / "other")
    before = renderer_for(tmp_path / "mine")
    shutil.copyfile(tmp_path / "other" / name, tmp_path / "mine" / name)
    after = renderer_for(tmp_path / "mine")
    question = [Message("user", "34 34 + 12 12")]
    assert (before.render(question), before.stop_tokens) != (after.render(question), after.stop_tokens)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no tokenizer") as caught:
        renderer_for(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_tokenizer_that_never_ends_a_text_is_refused(tmp_path: Path) -> None:
    tokenizer = a_tokenizer(chat=False)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="end-of-text"):
        renderer_for(tmp_path)


def test_r1_zeros_template_tells_the_turns_of_a_longer_conversation_apart() -> None:
    tokenizer = a_tokenizer(chat=False)
    tokenizer.chat_template = CHAT_TEMPLATES["r1-zero"]
    turns = [("user", "Hi"), ("assistant", "<answer> Hello </answer>"), ("user", QUESTION)]
    text = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False)
    assert text.endswith(f"</answer>. User: Hi. Assistant: <answer> Hello </answer> User: {QUESTION}.")
