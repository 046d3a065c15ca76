"""Servers that say the same in other ways, and replies that are kept as soon as they come."""

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chat_server import Answer, ChatServerFake, chat_server, says
from contexts import KEY
from reasonmill.kept_replies import REPLIES_FILE, KeptReplies
from reasonmill.plugins.catalogue import installed
from reasonmill.rewards.judge import Claim, Judge, JudgeSettings
from reasonmill.sample.http import transcript_of
from reasonmill.servers.client import ChatRequest, ChatServer, Replies
from reasonmill.servers.replies import ChatReply
from reasonmill.servers.settings import ServerError, ServerSettings
from reasonmill.stages import collect
from reasonmill.store.home import Home
from reasonmill.store.verification import verify_home
from reasonmill.transcript import read_transcript
from reasonmill.types import Finish, Message, Problem, SamplingParams

ARITHMETIC = installed().task("arithmetic")
CUT_OFF = {"choices": [{"message": {"content": "4"}}], "usage": {"completion_tokens": 256}}


def asked(count: int = 1) -> list[ChatRequest]:
    return [ChatRequest((Message("user", "q"),), SamplingParams(), seed) for seed in range(count)]


def replied(fake: ChatServerFake, count: int = 1, replies: Replies | None = None, **changed: object) -> list[ChatReply]:
    quick = {"url": fake.url, "model": "m", "retry_delay_s": 0.01, "timeout_s": 5.0, "retries": 2, "concurrency": 1}
    server = ChatServer(ServerSettings.model_validate(quick | changed), replies)
    drawn = dict(server.complete(asked(count)))
    return [drawn[index] for index in range(count)]


def answer(message: Mapping[str, Any], finish: str | None = "stop") -> Answer:
    return Answer({"choices": [{"message": message, "finish_reason": finish}]})


# What is sent


def test_parameters_are_left_out_or_renamed() -> None:
    with chat_server(lambda body, number: says("4")) as fake:
        replied(fake, parameters={"max_tokens": "max_completion_tokens", "temperature": False, "seed": False})
    assert fake.bodies[0].keys() == {"model", "messages", "top_p", "max_completion_tokens"}
    assert fake.bodies[0]["max_completion_tokens"] == 256


@pytest.mark.parametrize(
    "wrong",
    [
        {"parameters": {"max_tokens": "seed"}},
        {"parameters": {"seed": "model"}},
        {"parameters": {"seed": ""}},
        {"parameters": {"seed": True}},
        {"parameters": {"top_k": False}},
        {"finish_reasons": {"end_turn": "length"}},
        {"finish_reasons": {"over": "ended"}},
    ],
)
def test_settings_that_can_not_be_meant_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServerSettings.model_validate({"url": "http://host/v1", "model": "m"} | wrong)


def test_what_the_server_is_not_told_can_not_be_set() -> None:
    teacher = {"url": "http://host/v1", "model": "m", "parameters": {"temperature": False}}
    stage = {"name": "c", "kind": "collect", "teacher": teacher, "tasks": {"arithmetic": 2}}
    collect.Settings.model_validate(stage)
    with pytest.raises(ValidationError, match="leaves temperature out"):
        collect.Settings.model_validate({**stage, "sampling": {"temperature": 0.5}})
    judge = {"url": "http://host/v1", "model": "m", "parameters": {"max_tokens": False}}
    JudgeSettings.model_validate(judge)
    with pytest.raises(ValidationError, match="leaves max_tokens out"):
        JudgeSettings.model_validate({**judge, "max_tokens": 9})


# How a reply ends


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        *((word, "stop") for word in ("stop", "STOP", "eos", "eos_token", "stop_sequence", "end_turn")),
        ("FinishReason.STOP", "stop"),
        *((word, "length") for word in ("length", "max_tokens", "MAX_TOKENS", "model_length", "max-tokens")),
        *((word, "abort") for word in ("content_filter", "SAFETY", "RECITATION", "tool_calls", "function_call")),
        *((word, "abort") for word in ("abort", "cancelled", "error", "refusal", "tool_use")),
        (None, "stop"),
        ("", "stop"),
    ],
)  # fmt: skip
def test_the_usual_words_for_an_end_are_known(said: str | None, finish: Finish) -> None:
    with chat_server(lambda body, number: says("4", said)) as fake:
        assert replied(fake)[0].finish == finish


def test_a_reply_that_does_not_say_why_it_ended_was_cut_off_where_it_is_as_long_as_may_be() -> None:
    with chat_server(lambda body, number: Answer(CUT_OFF)) as fake:
        assert replied(fake)[0].finish == "length"


def test_a_reply_that_says_why_it_ended_is_kept_whatever_it_says_of_its_length() -> None:
    choice = {"message": {"content": "4"}, "finish_reason": "stop"}
    with chat_server(lambda body, number: Answer({"choices": [choice], "usage": [256]})) as fake:
        assert replied(fake)[0].finish == "stop"
    assert len(fake.bodies) == 1


def test_an_unknown_word_is_named_and_a_setting_says_what_it_means(tmp_path: Path) -> None:
    with (
        chat_server(lambda body, number: says("4", "weary" if number == 1 else "stop")) as fake,
        Home.open(tmp_path) as home,
    ):
        with pytest.raises(ServerError, match="finish_reason 'weary'") as caught:
            replied(fake, 3, KeptReplies(home, KEY))
        assert "finish_reasons" in caught.value.fix
        before = len(fake.bodies)
        again = replied(fake, 3, KeptReplies(home, KEY), finish_reasons={"weary": "length"})
        assert [reply.finish for reply in again] == ["stop", "length", "stop"]
        assert before + len(fake.bodies[before:]) == 3  # the reply that was not understood was paid for, too


# What a reply says


@pytest.mark.parametrize(
    ("message", "content", "reasoning"),
    [
        ({"content": [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]}, "42", ""),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "42"}]}, "42", "hm"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}, "", "hm"),
        ({"content": "42", "reasoning_content": "hm", "reasoning": "hm"}, "42", "hm"),
        ({"content": "42", "thinking": "hm"}, "42", "hm"),
        ({"content": "42", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}, "42", "hm"),
        ({"content": "42", "reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]}, "42", "hm"),
        ({"content": "42", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}, "42", ""),
        ({"content": None, "refusal": "no"}, "no", ""),
        ({"content": "a\ud83d b \udc00", "reasoning": "\ud83d\ude00"}, "a\ufffd b \ufffd", "\U0001f600"),
    ],
)  # fmt: skip
def test_contents_of_all_shapes(message: dict[str, Any], content: str, reasoning: str) -> None:
    with chat_server(lambda body, number: answer(message)) as fake:
        (reply,) = replied(fake)
    assert (reply.content, reply.reasoning) == (content, reasoning)
    transcript_of(reply).encode()


@pytest.mark.parametrize(
    ("content", "finish", "text"),
    [
        ("<think>I add.</think>\n\n42", "stop", "<think>I add.</think><answer>42</answer>"),
        ("\n<think>I add.</think>42", "stop", "<think>I add.</think><answer>42</answer>"),
        ("I add.</think>\n\n42", "stop", "<think>I add.</think><answer>42</answer>"),
        ("<think>a</think> <answer> 42</answer>", "stop", "<think>a</think> <answer> 42</answer>"),
        ("<thinking>a</thinking>42", "stop", "<think>a</think><answer>42</answer>"),
        ("[THINK]a[/THINK]42", "stop", "<think>a</think><answer>42</answer>"),
        ("<THINK>a</THINK>42", "stop", "<think>a</think><answer>42</answer>"),
        ("\u25c1think\u25b7a\u25c1/think\u25b742", "stop", "<think>a</think><answer>42</answer>"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>42",
            "stop",
            "<think>a</think><answer>42</answer>",
        ),
        ("<think>I add", "length", "<think>I add"),
        ("<think>I add.</think>4", "length", "<think>I add.</think><answer>4"),
        ("42", "stop", "42"),
        ("see <think>", "stop", "see <think>"),
    ],
)
def test_thinking_within_the_content_is_thinking(content: str, finish: Finish, text: str) -> None:
    assert transcript_of(ChatReply(content, "", finish)) == text


def test_tags_that_are_spoken_of_end_nothing() -> None:
    text = transcript_of(ChatReply("the </think> tag", "no </think> yet", "stop"))
    assert read_transcript(text).answer == "the /think tag"


@pytest.mark.parametrize("said", ["<think> is 4 right? </think>CORRECT", "is 4 right?</think>\n\nCORRECT"])
def test_a_judge_may_think_within_its_content(said: str) -> None:
    claim = Claim(Problem("arithmetic", (Message("user", "q"),), "4"), "4")
    with chat_server(lambda body, number: says(said)) as fake:
        assert Judge(JudgeSettings(url=fake.url, model="m")).correct([claim]) == [True]


# Failures that pass


@pytest.mark.parametrize(
    "failing",
    [
        Answer({"error": {"code": 502, "message": "upstream"}}),
        Answer({"error": {"code": "429"}}),
        Answer({"error": "overloaded"}),
        Answer({"object": "error", "message": "busy", "code": 503}),
        Answer({"choices": [{"error": {"code": 500}, "message": {"content": ""}, "finish_reason": "error"}]}),
        Answer({"choices": []}),
        Answer({"choices": [{"message": {"content": ["x"]}, "finish_reason": "stop"}]}),
        Answer(b"<html>starting</html>"),
        Answer(b""),
        Answer(b"[" * 100_000),
        Answer([1, 2]),
        Answer(None),
    ],
)
def test_a_failure_within_a_success_is_tried_again(failing: Answer) -> None:
    with chat_server(lambda body, number: failing if number == 0 else says("4")) as fake:
        assert replied(fake)[0].content == "4"
    assert len(fake.bodies) == 2


def test_what_is_never_a_completion_is_an_error_that_doubts_the_address() -> None:
    with (
        chat_server(lambda body, number: Answer(b"<html>hello</html>")) as fake,
        pytest.raises(ServerError, match=r"after 3 attempts.*no chat completion: <html>hello") as caught,
    ):
        replied(fake)
    assert "/v1" in caught.value.fix


def test_a_busy_server_is_asked_for_as_long_as_patience_lasts() -> None:
    began: list[float] = []

    def busy(body: dict[str, Any], number: int) -> Answer:
        began.append(time.monotonic())
        is_over = began[-1] - began[0] > 0.5
        return says("4") if is_over else Answer({}, 429, {"Retry-After": "0.02"} if number % 2 else {})

    with chat_server(busy) as fake:
        assert replied(fake, retries=0)[0].content == "4"
    assert len(fake.bodies) > 4

    with chat_server(lambda body, number: Answer({}, 429)) as fake, pytest.raises(ServerError, match="HTTP 429"):
        replied(fake, retries=9, patience_s=0.1)
    assert 2 <= len(fake.bodies) <= 5


# Replies that were paid for


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as opened:
        yield opened


def test_a_failure_loses_no_reply_of_the_same_call(home: Home) -> None:
    """Nor those that are under way when it comes."""
    is_under_way, has_failed = threading.Event(), threading.Event()

    def fails_at_third(body: dict[str, Any], number: int) -> Answer:
        if body["seed"] == 2 and not has_failed.is_set():
            assert is_under_way.wait(5)
            has_failed.set()
            return Answer({"error": "once"}, 400)
        if body["seed"] > 2:
            is_under_way.set()
            assert has_failed.wait(5)
            time.sleep(0.1)
        return says(str(body["seed"]))

    with chat_server(fails_at_third) as fake:
        with pytest.raises(ServerError):
            replied(fake, 9, KeptReplies(home, KEY), concurrency=4)
        first = len(fake.bodies)
        assert first >= 4
        assert [reply.content for reply in replied(fake, 9, KeptReplies(home, KEY))] == [str(n) for n in range(9)]
        assert len(fake.bodies) == 10


def test_a_reply_is_kept_before_anybody_sees_it(home: Home) -> None:
    with chat_server(lambda body, number: says("4")) as fake:
        settings = ServerSettings(url=fake.url, model="m", concurrency=1)
        coming = ChatServer(settings, KeptReplies(home, KEY)).complete(asked(2))
        next(coming)
        assert KeptReplies(home, KEY).find(_names(home)[0]) is not None
        coming.close()  # type: ignore[attr-defined]


def _names(home: Home) -> list[str]:
    return list(KeptReplies(home, KEY)._things)


def test_equal_requests_have_replies_of_their_own(home: Home) -> None:
    with chat_server(lambda body, number: says(str(number))) as fake:
        server = ChatServer(ServerSettings(url=fake.url, model="m", concurrency=1), KeptReplies(home, KEY))
        drawn = dict(server.complete([*asked(1), *asked(1)]))
    assert {reply.content for reply in drawn.values()} == {"0", "1"}


def test_damaged_replies_are_reported_and_asked_for_again(home: Home) -> None:
    with chat_server(lambda body, number: says("4")) as fake:
        replied(fake, 1, KeptReplies(home, KEY))
        ((_, digest),) = home.ledger.steps(f"{KEY}/replies")
        file = home.path / "objects" / str(digest) / REPLIES_FILE
        file.chmod(0o644)
        file.write_text("{}")
        home.objects._verified.clear()
        replied(fake, 1, KeptReplies(home, KEY))
        replied(fake, 1, KeptReplies(home, KEY))
    assert len(fake.bodies) == 2
    assert [incident.digest for incident in home.ledger.incidents()] == [digest]
    assert not verify_home(home.path).problems


def test_what_is_committed_needs_no_replies(home: Home) -> None:
    with chat_server(lambda body, number: says("4")) as fake:
        kept = KeptReplies(home, KEY)
        replied(fake, 2, kept)
        kept.drop()
        assert home.objects.digests() == []
        assert home.ledger.steps(f"{KEY}/replies") == []
        kept.drop()
        replied(fake, 2, kept)
    assert len(fake.bodies) == 4
