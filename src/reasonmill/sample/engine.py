"""The native engine: continuous batching on the policy's own network, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from reasonmill.activity import beat
from reasonmill.algo.logprobs import scaled, scaled_logits
from reasonmill.errors import UnsupportedModel
from reasonmill.model.decoder import Decoder, is_finite
from reasonmill.protocols import MemoryNeed, Renderer
from reasonmill.sample.cache import DecodeLayout, PrefillLayout
from reasonmill.sample.drawing import Filters, draw, uniform
from reasonmill.sample.lean import LeanSteps
from reasonmill.sample.packed import PackedWeights
from reasonmill.sample.queue import Queue
from reasonmill.sample.requests import completion, longest, not_finite, reach, says, stop_strings
from reasonmill.sample.slots import Running, Slots
from reasonmill.types import Completion, Finish

# A slot holds a multiple of so many tokens, so that a somewhat longer request needs no new memory.
_LENGTH_UNIT = 128


class NativeEngine(Queue):
    """Runs requests on a decoder, as many at a time as there are slots; a freed slot is filled at once.

    The slots' memory is made for the first request and kept. It is replaced only for a request that is longer than a
    slot, which waits until nothing runs.

    Args:
        num_slots: sequences that run at the same time.
        prefill_tokens: prompt tokens that are read in one forward pass.
    """

    repeatable = True

    def __init__(
        self, decoder: Decoder, renderer: Renderer, *, num_slots: int = 512, prefill_tokens: int = 8192
    ) -> None:
        super().__init__(decoder, renderer)
        self._num_slots = num_slots
        self._prefill_tokens = prefill_tokens
        self._stop_tokens = torch.tensor(sorted(renderer.stop_tokens), device=decoder.device)
        self._slots = Slots(0, 0, decoder.device)
        self._lean = LeanSteps.of(decoder)
        self._packed = PackedWeights(decoder, decoder.network.modules() if self._lean is None else self._lean.modules)

    # The mode is entered for each step: a generator would leave its caller in inference mode between two of them.
    @torch.inference_mode()
    def step(self) -> None:
        """Draws one token: the first of requests that are admitted, else the next of all that run.

        Raises:
            UnsupportedModel: the logits of one of them are not finite.
        """
        beat()
        self._slots.drop([slot for slot, running in enumerate(self._slots.running) if running.is_cancelled])
        if self._may_admit():
            logits = self._admit()
            self._draw(logits, first=len(self._slots.running) - logits.shape[0])
        elif self._slots.running:
            self._draw(self._decode(), first=0)
        self._collect_finished()
        self._drop_copies_if_idle()

    def copied_bytes(self, sequences: int) -> int:
        """Those of `PackedWeights`."""
        return self._packed.num_bytes(min(sequences, self._num_slots))

    def _drop_copies_if_idle(self) -> None:
        """A learner may need the memory, and will change the weights."""
        if not self._waiting and all(running.is_cancelled for running in self._slots.running):
            self._packed.drop()

    def take(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes new weights by name; those that are the decoder's own tensors already need no copy."""
        super().take(weights, version)
        self._packed.drop()

    def reserve(self, need: MemoryNeed) -> int:
        """Nothing: slots grow with the longest request, and no draw depends on them."""
        return 0

    def drawn(self, ticket: int, start: int = 0) -> list[int]:
        """The tokens that a running request has drawn so far, from number `start` on; none of one that waits."""
        for slot, running in enumerate(self._slots.running):
            if running.ticket == ticket:
                tokens: list[int] = self._slots.rows.tokens[slot, start : running.generated].tolist()
                return tokens
        return []

    def cancel(self, ticket: int) -> None:
        """Forgets a request, however far it is."""
        self._forget(ticket)
        for running in self._slots.running:
            if running.ticket == ticket:
                running.is_cancelled = True  # its slot is free from the next step on
        self._drop_copies_if_idle()

    def _may_admit(self) -> bool:
        """Whether a slot is free for the request that waits longest, which may take new memory."""
        if not self._waiting:
            return False
        if longest(next(iter(self._waiting.values()))) <= self._slots.cache.length:
            return self._slots.free > 0
        if self._slots.running:
            return False
        needed = max(map(longest, self._waiting.values()))
        rounded = -(-needed // _LENGTH_UNIT) * _LENGTH_UNIT
        self._slots = Slots(0, 0, self._decoder.device)  # lets go of the old memory first
        self._slots = Slots(self._num_slots, min(rounded, self._decoder.context or rounded), self._decoder.device)
        return True

    def _admit(self) -> Tensor:
        """Starts waiting requests in free slots, reading each distinct prompt once; logits [new, V] of what follows."""
        slots, started = self._slots, len(self._slots.running)
        prompts: dict[tuple[int, ...], list[int]] = {}
        new: list[Running] = []
        budget = self._prefill_tokens
        while self._waiting and len(new) < slots.free:
            ticket, request = next(iter(self._waiting.items()))
            if longest(request) > slots.cache.length:
                break
            if request.prompt_tokens not in prompts:
                if prompts and len(request.prompt_tokens) > budget:
                    break
                budget -= len(request.prompt_tokens)
            del self._waiting[ticket]
            prompts.setdefault(request.prompt_tokens, []).append(started + len(new))
            new.append(Running(ticket, request, self.version))
        layout = PrefillLayout([len(prompt) for prompt in prompts], list(prompts.values()), slots.cache)
        slots.start(new)
        device = self._decoder.device
        row = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts]).to(device)
        hidden = self._decoder.hidden(row, positions, layout)
        ends = torch.cumsum(torch.tensor([len(prompt) for prompt in prompts]), 0) - 1
        # Every slot of a group draws its first token from its prompt's last hidden state.
        source = torch.zeros(len(new), dtype=torch.int64)
        for end, group in zip(ends, prompts.values(), strict=True):
            source[torch.tensor(group) - started] = end
        return self._logits(hidden[source.to(device)])

    def _decode(self) -> Tensor:
        """Reads each running slot's last token; logits [n, V] of the next."""
        running, rows = self._slots.running, self._slots.rows
        positions = rows.position[: len(running)]
        layout = DecodeLayout(self._slots.cache, positions, max(one.length for one in running))
        with self._packed.used(len(running)) as packed_rows:
            read = rows.last_token[: len(running)], positions, layout
            if self._lean is None or not packed_rows:
                hidden = self._decoder.hidden(*read)
            else:
                hidden = self._lean.hidden(*read, packed_rows)
            if not packed_rows:
                return self._logits(hidden)
            logits, _ = scaled(self._decoder.head(hidden)[: len(running)], 1.0, self._decoder.softcap)
            return logits

    def _logits(self, hidden: Tensor) -> Tensor:
        logits, _ = scaled_logits(hidden, self._decoder.head_weight, 1.0, self._decoder.softcap)
        return logits

    def _draw(self, logits: Tensor, first: int) -> None:
        """Draws a token for slots `first` and after, and notes it."""
        state, drawing = self._slots.rows, self._slots.running[first:]
        if not is_finite(logits):
            raise self._not_finite(logits, drawing)
        rows = slice(first, first + len(drawing))
        sorts = any(r.request.params.top_k > 0 or r.request.params.top_p < 1 for r in drawing)
        filters = Filters(state.temperature[rows], state.top_k[rows], state.top_p[rows], sorts)
        state.position[rows] += 1
        noise = uniform(state.noise_key[rows], state.position[rows])
        tokens, logprobs = draw(logits, filters, noise)
        state.last_token[rows] = tokens
        row_index = torch.arange(rows.start, rows.stop, device=tokens.device)
        column = torch.tensor([r.generated for r in drawing], device=tokens.device)
        state.tokens[row_index, column] = tokens
        state.logprobs[row_index, column] = logprobs
        for running in drawing:
            running.generated += 1

    def _not_finite(self, logits: Tensor, drawing: Sequence[Running]) -> UnsupportedModel:
        broken = [running for running, row in zip(drawing, logits, strict=True) if not is_finite(row)]
        first, counts = broken[0], (len(broken), len(drawing))
        return not_finite(first.request, first.ticket, first.generated, counts, self._decoder, self.version)

    def _collect_finished(self) -> None:
        """Takes finished requests out of their slots."""
        slots = self._slots
        stopped = torch.isin(slots.rows.last_token[: len(slots.running)], self._stop_tokens).tolist()
        gone: list[int] = []
        for slot, running in enumerate(slots.running):
            finish = self._finish(slot, running, stopped[slot])
            if finish is not None:
                self._finished.append((running.ticket, self._completion(slot, running, finish)))
                gone.append(slot)
        slots.drop(gone)

    def _finish(self, slot: int, running: Running, stopped: bool) -> Finish | None:
        if stopped:
            return "stop"
        if stops := stop_strings(running.request, self._renderer):
            last = slice(max(0, running.generated - reach(stops)), running.generated)
            if says(self._slots.rows.tokens[slot, last].tolist(), stops, self._renderer):
                return "stop"
        return "length" if running.generated >= running.request.params.max_tokens else None

    def _completion(self, slot: int, running: Running, finish: Finish) -> Completion:
        tokens = self._slots.rows.tokens[slot, : running.generated].tolist()
        logprobs = self._slots.rows.logprobs[slot, : running.generated].tolist()
        return completion(running.request, self._renderer, tokens, logprobs, finish, running.version)
