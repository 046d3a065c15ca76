"""A conversation with a tiny random model: pieces of a reply, and what decides them."""

from pathlib import Path

import pytest
import torch

from reasonmill.errors import UnsupportedModel
from reasonmill.model.decoder import new_decoder
from reasonmill.sample.session import ChatSession
from reasonmill.types import Message
from reasonmill.world.tokenizer import train_tokenizer
from tiny_models import tiny_config

CONTEXT = 48


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["What is 17 + 4 ? It is 21 ."], vocab_size=280)
    tokenizer.save_pretrained(directory)
    config = tiny_config("qwen2", vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    decoder = new_decoder(config, seed=0, device="cpu", dtype=torch.float32)
    decoder.network.save_pretrained(directory)
    return directory


def question(text: str) -> list[Message]:
    return [Message("user", text)]


def test_a_reply_comes_in_pieces_and_is_the_same_again(model_dir: Path) -> None:
    pieces = list(ChatSession(model_dir, "cpu").reply(question("4 ?")))
    assert len(pieces) > 3
    assert all(pieces)
    assert "<|end|>" not in "".join(pieces)
    assert list(ChatSession(model_dir, "cpu").reply(question("4 ?"))) == pieces


def test_another_seed_or_question_gets_another_reply(model_dir: Path) -> None:
    sessions = [
        (ChatSession(model_dir, "cpu", seed=seed), text) for seed, text in ((0, "4 ?"), (1, "4 ?"), (0, "17 ?"))
    ]
    assert len({"".join(session.reply(question(text))) for session, text in sessions}) == 3


def test_a_conversation_that_fills_the_context_is_refused(model_dir: Path) -> None:
    with pytest.raises(UnsupportedModel, match=f"do not fit into the model's {CONTEXT} positions"):
        next(ChatSession(model_dir, "cpu").reply(question("4 " * CONTEXT)))
