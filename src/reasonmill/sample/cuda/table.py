"""Which request runs in which row, and where in memory it lies: what the host knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reasonmill.sample.cuda.runs import Runs, run_length
from reasonmill.types import Request


@dataclass(eq=False)
class Prompt:
    """A prompt in memory, but for its last token, and how many requests share it.

    Attributes:
        version: of the weights that have read it.
        is_read: whether its keys and values are there.
    """

    tokens: tuple[int, ...]
    version: int
    start: int
    num_users: int = 0
    is_read: bool = False

    @property
    def length(self) -> int:
        return len(self.tokens) - 1


@dataclass(eq=False)
class Running:
    """A running request.

    Attributes:
        start: of its own tokens in memory.
        launched: tokens that the steps which were started draw at most.
        generated: tokens that were drawn when last looked at.
        is_over: it runs no more, and has no row and no memory.
    """

    ticket: int
    request: Request
    version: int
    prompt: Prompt
    start: int
    row: int = -1
    launched: int = 0
    generated: int = 0
    is_cancelled: bool = False
    is_over: bool = False

    @property
    def most(self) -> int:
        return self.request.params.max_tokens


class Table:
    """Rows and memory, handed out and taken back."""

    def __init__(self, num_rows: int, runs: Runs) -> None:
        self._rows: list[Running | None] = [None] * num_rows
        self._runs = runs
        self._prompts: dict[tuple[int, tuple[int, ...]], Prompt] = {}

    def running(self) -> Iterator[Running]:
        """By row."""
        return (running for running in self._rows if running is not None)

    @property
    def num_free(self) -> int:
        return self._rows.count(None)

    @property
    def end(self) -> int:
        """Behind the last row that is in use."""
        return 1 + max((running.row for running in self.running()), default=-1)

    def most_like(self, request: Request) -> int:
        """How many requests like that can run together, by rows and memory; 1 also where there is memory for none."""
        shared = run_length(len(request.prompt_tokens) - 1)
        return max(1, min(len(self._rows), (self._runs.size - shared) // run_length(request.params.max_tokens)))

    def place(self, ticket: int, request: Request, version: int) -> Running | None:
        """Finds memory and a row for a request; None where one of them is missing.

        Requests with the same prompt and weights share what was read of it.
        """
        if None not in self._rows:
            return None
        start = self._runs.take(run_length(request.params.max_tokens))
        if start is None:
            return None
        key = version, request.prompt_tokens
        if key not in self._prompts:
            length = run_length(len(request.prompt_tokens) - 1)
            prompt_start = self._runs.take(length) if length else 0
            if prompt_start is None:
                self._runs.give(start, run_length(request.params.max_tokens))
                return None
            self._prompts[key] = Prompt(request.prompt_tokens, version, prompt_start, is_read=not length)
        prompt = self._prompts[key]
        prompt.num_users += 1
        running = Running(ticket, request, version, prompt, start, self._rows.index(None))
        self._rows[running.row] = running
        return running

    def release(self, running: Running) -> None:
        """Frees a request's row and memory."""
        running.is_over = True
        self._rows[running.row] = None
        self._runs.give(running.start, run_length(running.most))
        prompt = running.prompt
        prompt.num_users -= 1
        if not prompt.num_users:
            del self._prompts[prompt.version, prompt.tokens]
            if prompt.length:
                self._runs.give(prompt.start, run_length(prompt.length))

    def close_gaps(self) -> tuple[Sequence[int], Sequence[int]]:
        """Moves the last requests into free rows among the first; the rows that they leave, and those they come to."""
        running = list(self.running())
        holes = [row for row, one in enumerate(self._rows[: len(running)]) if one is None]
        movers = [one for one in running if one.row >= len(running)]
        sources = [one.row for one in movers]
        for one, hole in zip(movers, holes, strict=True):
            self._rows[one.row], self._rows[hole] = None, one
            one.row = hole
        return sources, holes
