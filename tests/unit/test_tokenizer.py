"""The tiny world's tokenizer, and the corpus as its tokens."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from reasonmill.render import renderer_for
from reasonmill.transcript import TAGS
from reasonmill.world.blocks import EncodedBlocks
from reasonmill.world.corpus import Document, documents
from reasonmill.world.tokenizer import SPECIAL_TOKENS, train_tokenizer
from reasonmill.world.traces import TraceHabits

VOCAB_SIZE = 768


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return list(documents(0, 0, 2000, TraceHabits()))


@pytest.fixture(scope="module")
def tokenizer(corpus: list[Document]) -> PreTrainedTokenizerFast:
    return train_tokenizer((document.text for document in corpus), VOCAB_SIZE)


@pytest.fixture(scope="module")
def model_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(directory)
    return directory


def encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in encoded(tokenizer, text)]


def test_the_vocabulary_has_the_stated_size(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == VOCAB_SIZE
    assert max(tokenizer.get_vocab().values()) == VOCAB_SIZE - 1


def test_training_twice_gives_the_same_tokens(corpus: list[Document], tokenizer: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer((document.text for document in corpus), VOCAB_SIZE)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_common_numbers_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [n for n in range(1, 51) if len(encoded(tokenizer, f" {n}")) != 1] == []


def test_digits_are_taken_two_by_two_from_the_left(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pieces(tokenizer, " 1224") == [" 12", "2", "4"]
    assert pieces(tokenizer, " 12 24") == [" 12", " 24"]
    # However often a longer number comes.
    assert pieces(train_tokenizer([" 122"] * 100, 300), " 122") == [" 12", "2"]


@pytest.mark.parametrize("tag", [*TAGS, *SPECIAL_TOKENS])
@pytest.mark.parametrize("context", ["{}", "make{}make", " 24{} 24", "{0}{0}"])
def test_a_tag_is_one_token_wherever_it_stands(tokenizer: PreTrainedTokenizerFast, tag: str, context: str) -> None:
    token = tokenizer.convert_tokens_to_ids(tag)
    found = encoded(tokenizer, context.format(tag))
    before, after = context.split("{}") if "{}" in context else ("", "")
    middle = [token] if "{}" in context else [token, token]
    assert found == [*encoded(tokenizer, before), *middle, *encoded(tokenizer, after)]


def test_what_looks_like_a_tag_is_none(tokenizer: PreTrainedTokenizerFast) -> None:
    tags = set(tokenizer.convert_tokens_to_ids([*TAGS, *SPECIAL_TOKENS]))
    for text in ("< think >", "<Think>", "think>", "<thinking>", "<|END|>", "<| end |>"):
        assert tags.isdisjoint(encoded(tokenizer, text)), text


def test_tags_survive_where_special_tokens_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    response = "<think> 3 + 8 = 11</think><answer> 3 + 8</answer>"
    tokens = encoded(tokenizer, f"{response}<|end|>")
    assert tokenizer.decode(tokens, skip_special_tokens=True) == response
    assert tokenizer.decode(tokens) == f"{response}<|end|>"


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(text=st.text(max_size=60))
@example(text="make 24 from 3 8 1 ( 3 * 8 ) - 1 , . ; ? !")
@example(text="  two   spaces \n\t and\r\nlines ")
@example(text="don't , can't . n't 's")
@example(text="sch\u00f6n \u4f60\u597d \U0001f600 e\u0301 \u00a0 \u0663 \ufeff \x00")
@example(text="<think> a</think><answer>b</answer><|end|><|pad|>")
def test_decoding_gives_the_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(encoded(tokenizer, text)) == text


def test_documents_are_given_back(tokenizer: PreTrainedTokenizerFast, corpus: list[Document]) -> None:
    for document in corpus[:300]:
        assert tokenizer.decode(encoded(tokenizer, document.text)) == document.text


def test_a_document_is_what_the_chat_template_renders(
    tokenizer: PreTrainedTokenizerFast, corpus: list[Document]
) -> None:
    for document in corpus[:100]:
        turns = [{"role": message.role, "content": message.content} for message in document.messages]
        assert tokenizer.apply_chat_template(turns, tokenize=False) == document.text


def test_the_base_reads_prompts_as_a_sampler_sends_them(
    tokenizer: PreTrainedTokenizerFast, corpus: list[Document], model_dir: Path
) -> None:
    renderer = renderer_for(model_dir)
    assert renderer.stop_tokens == {tokenizer.convert_tokens_to_ids("<|end|>")}
    for document in corpus[:100]:
        prompt = renderer.render(document.messages[:1])
        tokens = encoded(tokenizer, document.text)
        assert tuple(tokens[: len(prompt)]) == prompt
        assert renderer.text(tokens[len(prompt) :]) == document.messages[1].content


def test_the_system_turn_is_rendered_like_the_users(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|system|> be brief<|end|><|user|> hello<|end|><|assistant|>"


def test_a_saved_tokenizer_is_the_same(
    tokenizer: PreTrainedTokenizerFast, corpus: list[Document], model_dir: Path
) -> None:
    loaded = AutoTokenizer.from_pretrained(model_dir)
    assert len(loaded) == len(tokenizer)
    assert (loaded.eos_token, loaded.pad_token) == ("<|end|>", "<|pad|>")
    assert loaded.chat_template == tokenizer.chat_template
    for document in corpus[:100]:
        assert encoded(loaded, document.text) == encoded(tokenizer, document.text)


# The corpus as tokens, made by other processes


def test_blocks_are_the_encoded_documents_wherever_reading_starts(
    tokenizer: PreTrainedTokenizerFast, corpus: list[Document]
) -> None:
    blocks = EncodedBlocks(tokenizer.backend_tokenizer.to_str(), seed=0, habits=TraceHabits(), size=6)
    read = list(blocks.read(2, 5))
    assert [len(block) for block in read] == [6, 6, 6]
    rows = [row for block in read for row in block]
    expected = [encoded(tokenizer, document.text) for document in corpus[12:30]]
    assert [row.tolist() for row in rows] == expected
    assert {row.dtype for row in rows} == {np.dtype(np.int64)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_workers_that_are_sent_a_signal_let_the_step_end(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A whole process group or service is sent it; the parent needs its workers to come to the end of its step."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # so that the worker is known to be ready
    blocks = EncodedBlocks(tokenizer.backend_tokenizer.to_str(), seed=0, habits=TraceHabits(), size=6)
    read = blocks.read(0, 8)
    sizes = [len(next(read))]
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, number)
    sizes += [len(block) for block in read]
    assert sizes == [6] * 8
