"""A small server on this machine that speaks OpenAI's chat completions and says what a test tells it to."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server sends back; None as body hangs up without an answer."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def says(content: str | None, finish: str | None = "stop", **message: str) -> Answer:
    """A chat completion with one choice."""
    said = {"role": "assistant", "content": content, **message}
    return Answer({"object": "chat.completion", "choices": [{"index": 0, "message": said, "finish_reason": finish}]})


@dataclass
class ChatServerFake:
    """A running server: its address, and what it was asked in the order of arrival."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def chat_server(respond: Callable[[dict[str, Any], int], Answer], port: int = 0) -> Iterator[ChatServerFake]:
    """Serves until the block ends.

    Args:
        respond: (body of the request, number of requests before it) to the answer; called from many threads.
        port: where; any that is free for 0.
    """
    lock = threading.Lock()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal at_once
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(fake.bodies)
                fake.bodies.append(body)
                fake.headers.append(dict(self.headers))
                fake.paths.append(self.path)
                at_once += 1
                fake.most_at_once = max(fake.most_at_once, at_once)
            answer = respond(body, number)
            with lock:
                at_once -= 1
            if answer.body is None:
                self.close_connection = True
                return
            encoded = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(encoded))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    fake = ChatServerFake(f"http://127.0.0.1:{server.server_port}/v1")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
