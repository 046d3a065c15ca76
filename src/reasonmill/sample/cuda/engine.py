"""The engine on CUDA: rows whose state lives on the device, looked at while the next steps already run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reasonmill.activity import beat
from reasonmill.errors import UnsupportedModel
from reasonmill.model.decoder import Decoder
from reasonmill.protocols import MemoryNeed, Renderer
from reasonmill.sample.cuda.draw import Draw
from reasonmill.sample.cuda.memory import PREFILL_TOKENS, Memory, PromptLayout, numbers_in
from reasonmill.sample.cuda.rows import NOT_FINITE, RUNNING, Rows
from reasonmill.sample.cuda.steps import Filtered, Steps, has_experts
from reasonmill.sample.cuda.table import Prompt, Running, Table
from reasonmill.sample.queue import Queue
from reasonmill.sample.requests import completion, longest, not_finite, reach, says, stop_strings
from reasonmill.types import Finish, Request

# Of the requests that can run together, so many must find a place before they are admitted beside others: to read the
# prompt of one alone takes as long as several steps of all.
_ADMITTED_TOGETHER = 1 / 16


@dataclass(frozen=True)
class _Parts:
    """What is made for the first request and kept."""

    memory: Memory
    rows: Rows
    table: Table
    steps: Steps


@dataclass(frozen=True)
class _Snapshot:
    """What rows have come to when all steps that were started have run.

    Attributes:
        seen: [2, n], on the host as soon as `event` has happened.
        running: requests, and in `rows` the rows that they have then. Here and where one looks at them, lists lie side
            by side: a look that made pairs and lists by the hundred would set off Python's collection of cycles, which
            takes a quarter of a second now and then, and the device would run out of steps.
    """

    seen: Tensor
    event: torch.cuda.Event | None
    running: list[Running]
    rows: list[int]


class CudaEngine(Queue):
    """Runs requests on a decoder on CUDA.

    A step starts several steps of the device and, while they run, looks at what those before them have drawn. So a
    request may run on for up to `2 * stride` tokens behind a stop string, which are thrown away; stop tokens are seen
    by the device. The device is waited for only where nothing is left to start, or where somebody asks for the tokens
    of a request that runs.

    Memory is sized once: by `reserve`, or else for the first request, by the whole card, the slots and the model's
    context. While the engine rests, that of keys and values is given back; no prompt that was read outlasts the last
    request that shares it, so that nothing of it is missed.

    Beside others, products of other shapes round otherwise and a completion may take another course. But which requests
    run beside each other is decided by the requests, their order and the size of memory alone: by what each step
    has drawn, never by how long it took. So requests that are asked in the same order of an engine that is idle have
    the same completions in any process, on cards of the same kind. For models with experts that has not been shown.

    Args:
        num_slots: sequences that run at the same time, where memory allows.
        prefill_tokens: prompt tokens that are read in one forward pass.
        stride: tokens of each request that a step draws.
    """

    def __init__(
        self,
        decoder: Decoder,
        renderer: Renderer,
        *,
        num_slots: int = 512,
        prefill_tokens: int = PREFILL_TOKENS,
        stride: int = 8,
    ) -> None:
        super().__init__(decoder, renderer)
        self._num_slots = num_slots
        self._prefill_tokens = prefill_tokens
        self._stride = stride
        self._parts: _Parts | None = None
        self._pending: _Snapshot | None = None
        # What has been drawn is read beside the steps that run, and does not wait for their turn.
        self._reading = torch.cuda.Stream(decoder.device, priority=-1) if decoder.device.type == "cuda" else None

    @property
    def repeatable(self) -> bool:
        return not has_experts(self._decoder)

    @property
    def memory_tokens(self) -> int:
        """Tokens whose keys and values fit into memory; 0 before the first request."""
        return self._parts.memory.runs.size if self._parts else 0

    @torch.inference_mode()
    def reserve(self, need: MemoryNeed) -> int:
        """Makes the memory and what goes with it, graphs of plain draws included, anew.

        Raises:
            OutOfMemory: it does not fit beside what others take, or they do not fit where it is given back.
        """
        self._parts = self._pending = None
        self._parts = self._made(need)
        self._parts.steps.prepare(Filtered(top_k=False, top_p=False))
        self._parts.memory.require(need.in_turn)
        return self.memory_tokens

    @torch.inference_mode()
    def rest(self) -> None:
        """Gives back the memory of keys and values, until a request is admitted. Graphs stay: they hold its addresses.

        Raises:
            RuntimeError: a request runs, whose keys and values would be lost.
        """
        if self._parts is None:
            return
        self._settle()
        self._drop_cancelled(self._parts)
        if any(self._parts.table.running()):
            raise RuntimeError("an engine does not rest while requests run")
        self._parts.memory.give_back()

    # The mode is entered for each step: a generator would leave its caller in inference mode between two of them.
    @torch.inference_mode()
    def step(self) -> None:
        """Admits requests that wait, starts the next steps of all that run, and looks at those started before.

        Raises:
            UnsupportedModel: a request's logits are not finite, or it does not fit into memory.
        """
        beat()
        if self._parts is None:
            if not self._waiting:
                return
            self._parts = self._made()
        parts = self._parts
        self._drop_cancelled(parts)
        self._admit(parts)
        before, self._pending = self._pending, self._launched(parts)
        if before is not None:
            self._look(parts, before)
        if all(running.launched >= running.most for running in parts.table.running()):
            self._settle()

    @torch.inference_mode()
    def drawn(self, ticket: int, start: int = 0) -> list[int]:
        """The tokens that a running request has drawn so far, from number `start` on; none of one that waits."""
        self._settle()
        for running in self._parts.table.running() if self._parts else ():
            if running.ticket == ticket and running.generated > start:
                return next(self._tokens([running], [start], [running.generated]))
        return []

    def cancel(self, ticket: int) -> None:
        """Forgets a request, however far it is."""
        self._forget(ticket)
        for running in self._parts.table.running() if self._parts else ():
            if running.ticket == ticket:
                running.is_cancelled = True  # its row and its memory are free from the next step on

    def _made(self, need: MemoryNeed | None = None) -> _Parts:
        decoder, device = self._decoder, self._decoder.device
        if need is not None:
            need = replace(need, sequences=min(need.sequences, self._num_slots))
        memory = Memory(decoder, self._num_slots, need)
        rows = Rows(self._num_slots, device)
        vocabulary = decoder.head_weight.shape[0]
        draw = Draw(self._num_slots, vocabulary, sorted(self._renderer.stop_tokens), decoder.softcap, device)
        steps = Steps(decoder, draw, rows, memory)
        return _Parts(memory, rows, Table(self._num_slots, memory.runs), steps)

    def _drop_cancelled(self, parts: _Parts) -> None:
        gone = [running for running in parts.table.running() if running.is_cancelled]
        if gone:
            parts.rows.stop([running.row for running in gone])
        for running in gone:
            parts.table.release(running)

    def _admit(self, parts: _Parts) -> None:
        """Starts waiting requests, if there are rows and memory for enough of them."""
        if not self._waiting:
            return
        parts.memory.take()
        table = parts.table
        is_idle = table.num_free == self._num_slots
        if is_idle:
            parts.rows.clear()
        together = table.most_like(next(iter(self._waiting.values())))
        enough = 1 if is_idle else min(len(self._waiting), max(1, int(together * _ADMITTED_TOGETHER)))
        if table.num_free < enough:
            return
        new: list[Running] = []
        for ticket, request in self._waiting.items():
            running = table.place(ticket, request, self.version)
            if running is None:
                break
            new.append(running)
        if len(new) < enough:
            for running in new:
                table.release(running)
            if is_idle:
                raise self._too_long(parts, next(iter(self._waiting.values())))
            return
        for running in new:
            del self._waiting[running.ticket]
        parts.steps.check()
        self._read_prompts(parts, new)
        parts.rows.fill(new)

    def _too_long(self, parts: _Parts, request: Request) -> UnsupportedModel:
        return UnsupportedModel(
            f"a sequence of {longest(request):,} tokens does not fit into memory for "
            f"{parts.memory.runs.size:,} ({parts.memory.bytes_per_token / 1024:.0f} KiB each)",
            fix="lower max_tokens, or shorten the prompts",
        )

    def _read_prompts(self, parts: _Parts, new: Sequence[Running]) -> None:
        """Reads those prompts that nobody has read, those of about the same length together."""
        prompts = list(dict.fromkeys(running.prompt for running in new if not running.prompt.is_read))
        batch: list[Prompt] = []
        for prompt in sorted(prompts, key=lambda prompt: prompt.length):
            if batch and prompt.length * (len(batch) + 1) > self._prefill_tokens:
                self._read_batch(parts, batch)
                batch = []
            batch.append(prompt)
        if batch:
            self._read_batch(parts, batch)

    def _read_batch(self, parts: _Parts, prompts: Sequence[Prompt]) -> None:
        device = self._decoder.device
        lengths = [prompt.length for prompt in prompts]
        tokens = torch.tensor([token for prompt in prompts for token in prompt.tokens[:-1]], device=device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        self._decoder.hidden(tokens, positions, PromptLayout(lengths, [p.start for p in prompts], parts.memory))
        for prompt in prompts:
            prompt.is_read = True

    def _launched(self, parts: _Parts) -> _Snapshot | None:
        """Starts the next steps; what will have come of them, or None if nothing runs."""
        table, rows = parts.table, parts.rows
        running = list(table.running())
        left = max((one.most - one.launched for one in running), default=0)
        if left <= 0:
            return None
        if parts.steps.bucket(len(running)) < parts.steps.bucket(table.end):
            rows.move(*table.close_gaps())
        filtered = Filtered(
            top_k=any(one.request.params.top_k > 0 for one in running),
            top_p=any(one.request.params.top_p < 1 for one in running),
        )
        times = min(left, self._stride)
        parts.steps.run(table.end, filtered, times)
        for one in running:
            one.launched = min(one.most, one.launched + times)
        seen, event = rows.seen(table.end), None
        if self._reading is None:
            seen = seen.clone()
        else:
            seen = torch.empty(seen.shape, dtype=seen.dtype, pin_memory=True).copy_(seen, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        return _Snapshot(seen, event, running, [one.row for one in running])

    def _settle(self) -> None:
        """Waits for all steps that were started, and looks at them."""
        pending, self._pending = self._pending, None
        if pending is not None and self._parts is not None:
            self._look(self._parts, pending)

    def _look(self, parts: _Parts, snapshot: _Snapshot) -> None:
        """Takes those requests out of their rows that have come to their end."""
        if snapshot.event is not None:
            snapshot.event.synchronize()
        states, positions = snapshot.seen.tolist()
        rows, present = [], []
        for row, one in zip(snapshot.rows, snapshot.running, strict=True):
            if not one.is_over and not one.is_cancelled:
                rows.append(row)
                present.append(one)
        earlier = [one.generated for one in present]
        for row, one in zip(rows, present, strict=True):
            one.generated = positions[row] - one.prompt.length
        broken = [one for row, one in zip(rows, present, strict=True) if states[row] == NOT_FINITE]
        if broken:
            counts = len(broken), len(snapshot.rows)
            first = broken[0]
            raise not_finite(first.request, first.ticket, first.generated, counts, self._decoder, self.version)
        stopped = self._stopped(present, earlier)
        over = [one for row, one in zip(rows, present, strict=True) if states[row] != RUNNING or one in stopped]
        if over:
            self._finish(parts, over, stopped)

    def _stopped(self, running: Sequence[Running], earlier: Sequence[int]) -> dict[Running, int]:
        """Requests whose text has come to a stop string, with the number of tokens that it took.

        Args:
            earlier: how many tokens of each were looked at before.
        """
        watched, befores, firsts = [], [], []
        for one, before in zip(running, earlier, strict=True):
            stops = stop_strings(one.request, self._renderer)
            if stops and one.generated > before:
                watched.append(one)
                befores.append(before)
                firsts.append(max(0, before + 1 - reach(stops)))
        drawn = self._tokens(watched, firsts, [one.generated for one in watched])
        stopped: dict[Running, int] = {}
        for one, before, first, tokens in zip(watched, befores, firsts, drawn, strict=True):
            stops = stop_strings(one.request, self._renderer)
            # Of most texts none of the new tokens ends in a stop string: one look at all of them tells.
            for count in range(before + 1, one.generated + 1) if says(tokens, stops, self._renderer) else ():
                last = tokens[max(first, count - reach(stops)) - first : count - first]
                if says(last, stops, self._renderer):
                    stopped[one] = count
                    break
        return stopped

    def _finish(self, parts: _Parts, over: Sequence[Running], stopped: Mapping[Running, int]) -> None:
        """Notes what requests have come to, and frees their rows and memory."""
        if stopped:
            parts.rows.stop([one.row for one in stopped])
        firsts, ends = [0] * len(over), [stopped.get(one, one.generated) for one in over]
        drawn = self._tokens(over, firsts, ends), self._logprobs(over, firsts, ends)
        for one, tokens, logprobs in zip(over, *drawn, strict=True):
            is_stopped = one in stopped or tokens[-1] in self._renderer.stop_tokens
            finish: Finish = "stop" if is_stopped else "length"
            done = completion(one.request, self._renderer, tokens, logprobs, finish, one.version)
            self._finished.append((one.ticket, done))
            parts.table.release(one)

    def _tokens(self, running: Sequence[Running], firsts: Sequence[int], ends: Sequence[int]) -> Iterator[list[int]]:
        """Tokens of requests, each from one number up to another; steps that run go on running."""
        return self._read(self._parts.memory.tokens, running, firsts, ends) if self._parts else iter(())

    def _logprobs(
        self, running: Sequence[Running], firsts: Sequence[int], ends: Sequence[int]
    ) -> Iterator[list[float]]:
        """Their log-probs, likewise."""
        return self._read(self._parts.memory.logprobs, running, firsts, ends) if self._parts else iter(())

    def _read(
        self, numbers: Tensor, running: Sequence[Running], firsts: Sequence[int], ends: Sequence[int]
    ) -> Iterator[list[Any]]:
        if not running:
            return iter(())
        starts = [one.start + first for one, first in zip(running, firsts, strict=True)]
        lengths = [end - first for first, end in zip(firsts, ends, strict=True)]
        with torch.cuda.stream(self._reading) if self._reading else nullcontext():
            return numbers_in(numbers, starts, lengths)
