"""The native sampler: continuous batching on the policy's own network, in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reasonmill.activity import beat
from reasonmill.errors import UnsupportedModel
from reasonmill.model.decoder import Decoder
from reasonmill.protocols import FollowUp, Renderer
from reasonmill.sample.cache import DecodeLayout, PrefillLayout, SlotCache
from reasonmill.sample.drawing import Filters, draw, uniform
from reasonmill.types import Completion, Finish, Request


@dataclass
class _Running:
    """What the host knows of a running request."""

    index: int
    request: Request
    generated: int = 0
    version: int = 0


@dataclass
class _Slots:
    """State of the slots on the device; the first n rows are running."""

    last_token: Tensor
    position: Tensor  # of the token that the next step reads
    noise_key: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    tokens: Tensor  # [slots, longest completion] drawn so far
    logprobs: Tensor
    running: list[_Running] = field(default_factory=list)

    @classmethod
    def empty(cls, num_slots: int, completion_length: int, device: torch.device) -> _Slots:
        integers = torch.zeros(num_slots, dtype=torch.int64, device=device)
        reals = torch.zeros(num_slots, dtype=torch.float32, device=device)
        shape = (num_slots, completion_length)
        return cls(
            last_token=integers.clone(),
            position=integers.clone(),
            noise_key=integers.clone(),
            temperature=reals.clone(),
            top_k=integers.clone(),
            top_p=reals.clone(),
            tokens=torch.zeros(shape, dtype=torch.int64, device=device),
            logprobs=torch.zeros(shape, dtype=torch.float32, device=device),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (
            self.last_token,
            self.position,
            self.noise_key,
            self.temperature,
            self.top_k,
            self.top_p,
            self.tokens,
            self.logprobs,
        )


class NativeSampler:
    """Runs requests on a decoder, as many at a time as there are slots; a freed slot is filled at once.

    Args:
        num_slots: sequences that run at the same time.
        prefill_tokens: prompt tokens that are read in one forward pass.
    """

    def __init__(
        self, decoder: Decoder, renderer: Renderer, *, num_slots: int = 512, prefill_tokens: int = 8192
    ) -> None:
        self.version = 0
        self._decoder = decoder
        self._renderer = renderer
        self._num_slots = num_slots
        self._prefill_tokens = prefill_tokens
        self._stop_tokens = torch.tensor(sorted(renderer.stop_tokens), device=decoder.device)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Takes new weights; those that are the decoder's own tensors already need no copy."""
        for name, parameter in self._decoder.network.named_parameters():
            if weights[name].data_ptr() != parameter.data_ptr():
                parameter.copy_(weights[name])
        self.version = version

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yields (index, completion) as completions finish.

        Raises:
            UnsupportedModel: a request does not fit into the model's context.
        """
        if not requests:
            return
        self._check_lengths(requests)
        waiting = deque(enumerate(requests))
        num_slots = min(self._num_slots, len(requests))
        length = max(len(r.prompt_tokens) + r.params.max_tokens for r in requests)
        cache = SlotCache(num_slots, length, self._decoder.device)
        slots = _Slots.empty(num_slots, max(r.params.max_tokens for r in requests), self._decoder.device)
        while waiting or slots.running:
            self._step(waiting, slots, cache)
            finished = self._collect_finished(slots, cache)
            if follow_up is not None and finished:
                finished.sort(key=lambda pair: pair[0])
                following = follow_up(finished)
                waiting.extend((i, request) for (i, _), request in zip(finished, following, strict=True) if request)
                finished = [pair for pair, request in zip(finished, following, strict=True) if request is None]
            yield from finished

    def stream(self, request: Request) -> Iterator[int]:
        """Yields the tokens of one completion as they are drawn; stop strings are not looked for."""
        self._check_lengths([request])
        waiting = deque([(0, request)])
        cache = SlotCache(1, len(request.prompt_tokens) + request.params.max_tokens, self._decoder.device)
        slots = _Slots.empty(1, request.params.max_tokens, self._decoder.device)
        while waiting or slots.running:
            self._step(waiting, slots, cache)
            yield int(slots.last_token[0])
            self._collect_finished(slots, cache)

    # The mode is entered for each step: a generator would leave its caller in inference mode between two of them.
    @torch.inference_mode()
    def _step(self, waiting: deque[tuple[int, Request]], slots: _Slots, cache: SlotCache) -> None:
        """Draws one token: the first of requests that are admitted, else the next of all that run."""
        beat()
        if waiting and len(slots.running) < cache.num_slots:
            logits = self._admit(waiting, slots, cache)
            self._draw(slots, logits, len(slots.running) - logits.shape[0])
        else:
            self._draw(slots, self._decode(slots, cache), 0)

    def _check_lengths(self, requests: Sequence[Request]) -> None:
        limit = getattr(self._decoder.config, "max_position_embeddings", None)
        for request in requests:
            needed = len(request.prompt_tokens) + request.params.max_tokens
            if limit is not None and needed > limit:
                raise UnsupportedModel(
                    f"a prompt of {len(request.prompt_tokens)} and a completion of {request.params.max_tokens} tokens "
                    f"do not fit into the model's {limit} positions",
                    fix="lower max_tokens, or shorten the prompts",
                )

    def _admit(self, waiting: deque[tuple[int, Request]], slots: _Slots, cache: SlotCache) -> Tensor:
        """Starts waiting requests in free slots, reading each distinct prompt once; logits [new, V] of what follows."""
        prompts: dict[tuple[int, ...], list[int]] = {}
        started = len(slots.running)
        budget = self._prefill_tokens
        while waiting and len(slots.running) < cache.num_slots:
            index, request = waiting[0]
            if request.prompt_tokens not in prompts:
                if prompts and len(request.prompt_tokens) > budget:
                    break
                budget -= len(request.prompt_tokens)
            waiting.popleft()
            prompts.setdefault(request.prompt_tokens, []).append(len(slots.running))
            slots.running.append(_Running(index, request, version=self.version))
        self._fill_rows(slots, started)
        device = self._decoder.device
        lengths = [len(prompt) for prompt in prompts]
        layout = PrefillLayout(lengths, list(prompts.values()), cache)
        row = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        hidden = self._decoder.hidden(row, positions, layout)
        ends = torch.cumsum(torch.tensor(lengths), 0) - 1
        # Every slot of a group draws its first token from its prompt's last hidden state.
        source = torch.zeros(len(slots.running) - started, dtype=torch.int64)
        for end, group in zip(ends, prompts.values(), strict=True):
            source[torch.tensor(group) - started] = end
        return self._logits(hidden[source.to(device)])

    def _fill_rows(self, slots: _Slots, started: int) -> None:
        new = [running.request for running in slots.running[started:]]
        rows = slice(started, len(slots.running))
        device = self._decoder.device
        # The first step reads the token drawn from the prompt, which stands right behind it.
        slots.position[rows] = torch.tensor([len(r.prompt_tokens) - 1 for r in new], device=device)
        slots.noise_key[rows] = torch.tensor([r.noise_key for r in new], device=device)
        slots.temperature[rows] = torch.tensor([r.params.temperature for r in new], device=device)
        slots.top_k[rows] = torch.tensor([r.params.top_k for r in new], device=device)
        slots.top_p[rows] = torch.tensor([r.params.top_p for r in new], device=device)

    def _decode(self, slots: _Slots, cache: SlotCache) -> Tensor:
        """Reads each running slot's last token; logits [n, V] of the next."""
        count = len(slots.running)
        positions = slots.position[:count]
        longest = max(len(r.request.prompt_tokens) + r.generated for r in slots.running)
        layout = DecodeLayout(cache, positions, longest)
        return self._logits(self._decoder.hidden(slots.last_token[:count], positions, layout))

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = (hidden @ self._decoder.head_weight.T).float()
        softcap = self._decoder.softcap
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def _draw(self, slots: _Slots, logits: Tensor, first: int) -> None:
        """Draws a token for rows `first` and after, and notes it."""
        rows = slice(first, len(slots.running))
        drawing = slots.running[rows]
        sorts = any(r.request.params.top_k > 0 or r.request.params.top_p < 1 for r in drawing)
        filters = Filters(slots.temperature[rows], slots.top_k[rows], slots.top_p[rows], sorts)
        slots.position[rows] += 1
        noise = uniform(slots.noise_key[rows], slots.position[rows])
        tokens, logprobs = draw(logits, filters, noise)
        slots.last_token[rows] = tokens
        row_index = torch.arange(rows.start, rows.stop, device=tokens.device)
        column = torch.tensor([r.generated for r in drawing], device=tokens.device)
        slots.tokens[row_index, column] = tokens
        slots.logprobs[row_index, column] = logprobs
        for running in drawing:
            running.generated += 1

    @torch.inference_mode()
    def _collect_finished(self, slots: _Slots, cache: SlotCache) -> list[tuple[int, Completion]]:
        """Takes finished requests out and moves the last running slots into their places."""
        count = len(slots.running)
        stopped = torch.isin(slots.last_token[:count], self._stop_tokens).tolist()
        finished: list[tuple[int, Completion]] = []
        gone: list[int] = []
        for slot, running in enumerate(slots.running):
            finish = self._finish(slots, slot, running, stopped[slot])
            if finish is not None:
                finished.append((running.index, self._completion(slots, slot, running, finish)))
                gone.append(slot)
        self._compact(slots, cache, gone)
        return finished

    def _finish(self, slots: _Slots, slot: int, running: _Running, stopped: bool) -> Finish | None:
        params = running.request.params
        if stopped:
            return "stop"
        if params.stop and any(text in self._text(slots, slot, running) for text in params.stop):
            return "stop"
        return "length" if running.generated >= params.max_tokens else None

    def _text(self, slots: _Slots, slot: int, running: _Running) -> str:
        return self._renderer.text(slots.tokens[slot, : running.generated].tolist())

    def _completion(self, slots: _Slots, slot: int, running: _Running, finish: Finish) -> Completion:
        tokens = slots.tokens[slot, : running.generated].tolist()
        text = self._renderer.text(tokens)
        # A stop string ends the text, though the tokens that spell it were drawn and stay.
        ends = [text.index(stop) for stop in running.request.params.stop if stop in text]
        return Completion(
            tokens=tuple(tokens),
            logprobs=tuple(slots.logprobs[slot, : running.generated].tolist()),
            sampled=(True,) * len(tokens),
            text=text[: min(ends)] if ends else text,
            finish=finish,
            policy_version=running.version,
        )

    def _compact(self, slots: _Slots, cache: SlotCache, gone: list[int]) -> None:
        kept = len(slots.running) - len(gone)
        holes = [slot for slot in gone if slot < kept]
        movers = [slot for slot in range(kept, len(slots.running)) if slot not in set(gone)]
        if holes:
            longest = max(len(slots.running[m].request.prompt_tokens) + slots.running[m].generated for m in movers)
            cache.move(movers, holes, min(longest, cache.length))
            source, target = torch.tensor(movers), torch.tensor(holes)
            for tensor in slots.tensors():
                tensor[target] = tensor[source]
            for mover, hole in zip(movers, holes, strict=True):
                slots.running[hole] = slots.running[mover]
        del slots.running[kept:]
