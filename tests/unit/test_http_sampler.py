"""Teachers over HTTP: what is sent, what is made of the answers, and what happens when a server fails."""

import itertools
import threading
import time
from collections.abc import Sequence
from email.utils import formatdate

import pytest
from pydantic import ValidationError

from chat_server import Answer, ChatServerFake, chat_server, says
from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.sample.http import ConversationRenderer, HttpSampler, transcript_of
from reasonmill.servers.replies import ChatReply
from reasonmill.servers.settings import ServerError, TeacherSettings
from reasonmill.types import Completion, Finish, Message, Request, SamplingParams

RENDERER = ConversationRenderer()
QUESTION = (Message("user", "make 24 from 3 8 1"),)
KEY = "sk-very-secret"


def teacher(fake: ChatServerFake, **changed: object) -> TeacherSettings:
    quick = {"url": fake.url, "model": "teacher", "retry_delay_s": 0.0, "timeout_s": 5.0}
    return TeacherSettings.model_validate(quick | changed)


def asked(count: int = 1, messages: Sequence[Message] = QUESTION, **params: object) -> list[Request]:
    return [
        Request(RENDERER.render(messages), SamplingParams(**params), noise_key=7 + index)  # type: ignore[arg-type]
        for index in range(count)
    ]


def sampled(settings: TeacherSettings, requests: Sequence[Request]) -> list[Completion]:
    drawn = dict(HttpSampler(settings).generate(requests))
    return [drawn[index] for index in range(len(requests))]


# What is sent and what comes back


def test_the_request_is_what_every_such_server_understands() -> None:
    with chat_server(lambda body, number: says("4")) as fake:
        messages = (Message("system", "Be brief."), Message("user", "2 + 2 ? „ä“"))
        sampled(teacher(fake), asked(messages=messages, temperature=0.6, top_p=0.95, max_tokens=99))
        sampled(teacher(fake, url=fake.url + "/"), asked(stop=("###",)))
    assert fake.paths == ["/v1/chat/completions"] * 2
    assert fake.bodies[0] == {
        "model": "teacher",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2 ? „ä“"}],
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 99,
        "seed": 7,
    }
    assert fake.bodies[1]["stop"] == ["###"]
    assert "Authorization" not in fake.headers[0]


def test_each_request_has_a_seed_that_fits_32_bits() -> None:
    with chat_server(lambda body, number: says("4")) as fake:
        requests = [Request(RENDERER.render(QUESTION), SamplingParams(), key) for key in (3, 2**31 + 5, 2**62 + 9)]
        sampled(teacher(fake, concurrency=1), requests)
    assert [body["seed"] for body in fake.bodies] == [3, 5, 9]


def test_instructions_stand_behind_the_last_turn_and_not_in_the_prompt_that_is_kept() -> None:
    with chat_server(lambda body, number: says("4")) as fake:
        messages = (Message("user", "hi"), Message("assistant", "hello"), Message("user", "2 + 2 ?"))
        sampled(teacher(fake, instructions="Answer with a number."), asked(messages=messages))
    contents = [message["content"] for message in fake.bodies[0]["messages"]]
    assert contents == ["hi", "hello", "2 + 2 ?\n\nAnswer with a number."]


def test_a_completion_is_text_without_tokens() -> None:
    with chat_server(lambda body, number: says("<think> 3 * 8 </think><answer> 24 </answer>")) as fake:
        (drawn,) = sampled(teacher(fake), asked())
    assert drawn == Completion((), None, (), "<think> 3 * 8 </think><answer> 24 </answer>", "stop", 0)


@pytest.mark.parametrize(
    ("ending", "finish"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "abort"), ("tool_calls", "abort")],
)
def test_only_an_end_of_the_models_own_is_a_stop(ending: str | None, finish: str) -> None:
    with chat_server(lambda body, number: says("4", ending)) as fake:
        assert sampled(teacher(fake), asked())[0].finish == finish


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_that_the_server_told_apart_becomes_thinking(name: str) -> None:
    with chat_server(lambda body, number: says("24", **{name: "3 * 8"})) as fake:
        assert sampled(teacher(fake), asked())[0].text == "<think>3 * 8</think><answer>24</answer>"


@pytest.mark.parametrize(
    ("content", "reasoning", "finish", "text"),
    [
        ("24", "", "stop", "24"),
        ("24", "hm", "stop", "<think>hm</think><answer>24</answer>"),
        ("It is <answer>24</answer>", "hm", "stop", "<think>hm</think>It is <answer>24</answer>"),
        ("2", "hm", "length", "<think>hm</think><answer>2"),
        ("", "hm", "length", "<think>hm"),
        ("", "hm", "stop", "<think>hm</think>"),
    ],
)
def test_what_was_cut_off_stays_open(content: str, reasoning: str, finish: Finish, text: str) -> None:
    assert transcript_of(ChatReply(content, reasoning, finish)) == text


def test_empty_content_is_an_empty_text() -> None:
    with chat_server(lambda body, number: says(None, "length")) as fake:
        assert sampled(teacher(fake), asked())[0].text == ""


def test_top_k_is_refused_and_weights_are_too() -> None:
    with chat_server(lambda body, number: says("4")) as fake:
        sampler = HttpSampler(teacher(fake))
        with pytest.raises(RecipeError, match="top_k"):
            list(sampler.generate(asked(top_k=5)))
        with pytest.raises(UnsupportedModel, match="can't be trained"):
            sampler.take([], version=1)
    assert fake.bodies == []


# Many requests


def test_answers_find_their_requests_and_no_more_run_at_once_than_allowed() -> None:
    are_three, has_one = threading.Barrier(3, timeout=60), threading.Event()

    def first_comes_last(body: dict, number: int) -> Answer:
        if number < 3:
            are_three.wait()
        if body["seed"] == 7:
            assert has_one.wait(60)
        return says(str(body["seed"]))

    with chat_server(first_comes_last) as fake:
        answers = HttpSampler(teacher(fake, concurrency=3)).generate(asked(9))
        one = next(answers)
        has_one.set()
        found = [one, *answers]
    assert one[0] != 0
    assert sorted((index, c.text) for index, c in found) == [(index, str(7 + index)) for index in range(9)]
    assert fake.most_at_once == 3


def test_after_a_refusal_nothing_more_is_sent() -> None:
    with chat_server(lambda body, number: Answer({"error": "no"}, 400)) as fake:
        with pytest.raises(ServerError):
            sampled(teacher(fake, concurrency=1), asked(50))
        time.sleep(0.1)
        assert len(fake.bodies) <= 2


def test_an_abandoned_call_ends_its_retries() -> None:
    with chat_server(lambda body, number: says("4") if number == 0 else Answer({}, 503)) as fake:
        drawing = HttpSampler(teacher(fake, concurrency=1, retry_delay_s=0.05, retries=1000)).generate(asked(2))
        next(drawing)
        drawing.close()  # type: ignore[attr-defined]
        time.sleep(0.15)
        sent = len(fake.bodies)
        time.sleep(0.2)
        assert len(fake.bodies) == sent


# Failures that pass


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_failure_that_may_pass_is_tried_again(status: int) -> None:
    with chat_server(lambda body, number: Answer({}, status) if number < 2 else says("4")) as fake:
        assert sampled(teacher(fake, retries=2), asked())[0].text == "4"
    assert len(fake.bodies) == 3
    assert fake.bodies[0] == fake.bodies[2]


def test_a_broken_connection_is_tried_again() -> None:
    with chat_server(lambda body, number: Answer(None) if number == 0 else says("4")) as fake:
        assert sampled(teacher(fake, retries=1), asked())[0].text == "4"


def test_a_server_that_does_not_answer_in_time_is_tried_again_and_given_up() -> None:
    release = threading.Event()

    def hang(body: dict, number: int) -> Answer:
        release.wait(5)
        return says("too late")

    with chat_server(hang) as fake:
        with pytest.raises(ServerError, match=r"after 2 attempts: timed out"):
            sampled(teacher(fake, timeout_s=0.1, retries=1), asked())
        release.set()


def test_waits_double() -> None:
    arrivals: list[float] = []

    def fail(body: dict, number: int) -> Answer:
        arrivals.append(time.monotonic())
        return Answer({}, 503)

    with chat_server(fail) as fake, pytest.raises(ServerError):
        sampled(teacher(fake, retries=3, retry_delay_s=0.05), asked())
    waits = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert len(waits) == 3
    assert waits[0] >= 0.05
    assert waits[1] >= 0.1
    assert waits[2] >= 0.2


@pytest.mark.parametrize("wait", ["1", "date"])
def test_retry_after_is_honoured(wait: str) -> None:
    arrivals: list[float] = []

    def busy(body: dict, number: int) -> Answer:
        arrivals.append(time.monotonic())
        # A date counts whole seconds, so 2 ahead is 1 to 2 seconds from now.
        after = formatdate(time.time() + 2, usegmt=True) if wait == "date" else wait
        return Answer({}, 429, {"Retry-After": after}) if number == 0 else says("4")

    with chat_server(busy) as fake:
        assert sampled(teacher(fake), asked())[0].text == "4"
    assert 0.9 < arrivals[1] - arrivals[0] < 3


def test_a_wait_that_is_longer_than_the_time_out_is_an_error_at_once() -> None:
    long = Answer({}, 429, {"Retry-After": "3600"})
    with chat_server(lambda body, number: long) as fake, pytest.raises(ServerError, match="asks to wait 3600 s"):
        sampled(teacher(fake), asked())
    assert len(fake.bodies) == 1


def test_the_error_after_the_last_try_says_what_and_where_and_what_to_do() -> None:
    loading = Answer({"error": "model is loading"}, 503)
    with chat_server(lambda body, number: loading) as fake, pytest.raises(ServerError) as caught:
        sampled(teacher(fake, retries=2), asked())
    assert "after 3 attempts" in caught.value.what
    assert "HTTP 503" in caught.value.what
    assert "model is loading" in caught.value.what
    assert caught.value.where == f"{fake.url}/chat/completions"
    assert "same command" in caught.value.fix


def test_no_server_at_all_is_an_error_too() -> None:
    with chat_server(lambda body, number: says("4")) as fake:
        pass  # its port is free again
    with pytest.raises(ServerError, match="after 2 attempts"):
        sampled(teacher(fake, retries=1), asked())


# Failures that stay


@pytest.mark.parametrize(
    ("answer", "what", "fix"),
    [
        (Answer({"detail": "Server is pinned to 'x'"}, 400), "HTTP 400.*pinned to 'x'", "model"),
        (Answer({}, 404), "HTTP 404", "/v1"),
        (Answer({}, 401), "HTTP 401", "api_key_env"),
        (Answer({}, 307, {"Location": "http://127.0.0.1:9/v1"}), "HTTP 307", "redirects"),
        (Answer({"error": {"code": 401, "message": "bad key"}}), "HTTP 401 within HTTP 200.*bad key", "api_key_env"),
        (Answer({"error": {"type": "invalid_request_error"}}), "HTTP 400 within HTTP 200", "parameters"),
        (Answer({"error": {"code": "insufficient_quota"}}, 429), "HTTP 429.*insufficient_quota", "model"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(answer: Answer, what: str, fix: str) -> None:
    with chat_server(lambda body, number: answer) as fake, pytest.raises(ServerError, match=what) as caught:
        sampled(teacher(fake), asked())
    assert len(fake.bodies) == 1
    assert fix in caught.value.fix
    assert caught.value.where.startswith(fake.url)


# The key


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", f"{KEY}\n")
    with chat_server(lambda body, number: Answer({"error": f"bad key {KEY}"}, 401)) as fake:
        settings = teacher(fake, api_key_env="TEACHER_KEY")
        sampler = HttpSampler(settings)
        with pytest.raises(ServerError, match=r"bad key \[the API key\]") as caught:
            list(sampler.generate(asked()))
    assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "TEACHER_KEY" in caught.value.fix
    assert KEY not in f"{caught.value} {settings!r} {sampler!r}"


@pytest.mark.parametrize("value", [None, "", "  ", "sk-ä", "sk-a\nb"])
def test_a_key_that_is_missing_or_no_key_is_refused_before_anything_is_sent(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEACHER_KEY", value)
    with chat_server(lambda body, number: says("4")) as fake, pytest.raises(RecipeError, match="TEACHER_KEY") as caught:
        HttpSampler(teacher(fake, api_key_env="TEACHER_KEY"))
    assert "sk-" not in str(caught.value)
    assert fake.bodies == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "127.0.0.1:8000/v1"},
        {"url": "ftp://host/v1"},
        {"url": "http://"},
        {"url": "http://host:port/v1"},
        {"url": "http://host/v1 "},
        {"url": f"http://me:{KEY}@host/v1"},
        {"url": f"http://host/v1?key={KEY}"},
        {"api_key_env": KEY},
        {"model": ""},
        {"concurrency": 0},
        {"timeout_s": 0},
        {"retries": -1},
        {"instructions": ""},
        {"temperature": 1},
    ],
)
def test_settings_that_can_not_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        TeacherSettings.model_validate({"url": "http://host/v1", "model": "teacher"} | wrong)
    assert all(KEY not in error["msg"] for error in caught.value.errors())


# The renderer


def test_messages_come_back_from_their_bytes() -> None:
    messages = (Message("system", 'say "ä"'), Message("user", "日本\n<think>"), Message("assistant", ""))
    assert RENDERER.messages(RENDERER.render(messages)) == messages


def test_bytes_are_tokens() -> None:
    assert RENDERER.response("aä") == (97, 195, 164, 256)
    assert RENDERER.text(RENDERER.response("aä")) == "aä"
    assert RENDERER.num_tokens(["aä", ""]) == [3, 0]


@pytest.mark.parametrize("tokens", [(1, 2, 3), (500,), tuple(b"{}x"), tuple(b"[1, 2]")])
def test_the_tokens_of_another_renderer_are_refused(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no conversation"):
        RENDERER.messages(tokens)
