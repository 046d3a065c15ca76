"""One step of the running rows: the network, the draw, and the CUDA graphs that run both without the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reasonmill.model.decoder import Decoder
from reasonmill.sample.cuda.draw import Draw
from reasonmill.sample.cuda.forward import logits_of
from reasonmill.sample.cuda.memory import Memory
from reasonmill.sample.cuda.rows import IDLE, Rows

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Filtered:
    """Which filters any of the rows has."""

    top_k: bool
    top_p: bool


class Steps:
    """Runs steps for up to `num_rows` rows, a multiple of a bucket at a time.

    Each bucket has a graph for each kind of draw. They are captured when a kind is first asked for, all of them.
    """

    def __init__(self, decoder: Decoder, draw: Draw, rows: Rows, memory: Memory) -> None:
        self._decoder, self._draw, self._rows, self._memory = decoder, draw, rows, memory
        self._logits = logits_of(decoder, memory, rows)
        self._buckets = _buckets(rows.running.shape[0])
        self._captures = rows.running.device.type == "cuda" and not looks_at_experts(decoder)
        self._graphs: dict[tuple[Filtered, int], torch.cuda.CUDAGraph] = {}
        self._captured = self._places()

    def bucket(self, count: int) -> int:
        """How many rows are computed where the first `count` are in use."""
        return next(bucket for bucket in self._buckets if bucket >= count)

    def run(self, count: int, filtered: Filtered, times: int) -> None:
        """Draws up to `times` tokens for each of the first `count` rows, without waiting for the device."""
        bucket = self.bucket(count)
        if not self._captures:
            for _ in range(times):
                self._step(bucket, filtered)
            return
        self.prepare(filtered)
        for _ in range(times):
            self._graphs[filtered, bucket].replay()

    def prepare(self, filtered: Filtered) -> None:
        """Captures the graphs of a kind of draw, if there are to be any and they are not there yet."""
        if self._captures and (filtered, self._buckets[0]) not in self._graphs:
            self._capture(filtered)

    def check(self) -> None:
        """Begins anew if weights lie elsewhere than when graphs were captured: those would read the old ones."""
        if self._captured != (places := self._places()):
            self._graphs.clear()
            self._logits = logits_of(self._decoder, self._memory, self._rows)
            self._captured = places

    def _places(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._decoder.network.parameters()]

    def _step(self, bucket: int, filtered: Filtered) -> None:
        logits = self._logits(bucket)
        self._draw(logits, self._rows, self._memory, top_k=filtered.top_k, top_p=filtered.top_p)

    def _capture(self, filtered: Filtered) -> None:
        running = self._rows.running.clone()
        self._rows.running.fill_(IDLE)  # what is tried out must move nobody on
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        for bucket in reversed(self._buckets):
            with torch.cuda.stream(stream):
                self._step(bucket, filtered)  # compiles kernels and makes workspaces, which a capture may not
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                self._step(bucket, filtered)
            self._graphs[filtered, bucket] = graph
        torch.cuda.current_stream().wait_stream(stream)
        self._rows.running.copy_(running)


def has_experts(decoder: Decoder) -> bool:
    """Whether tokens of a batch go to different experts."""
    return any(getattr(decoder.config, name, None) for name in _EXPERTS)


def looks_at_experts(decoder: Decoder) -> bool:
    """Whether the host looks at which experts tokens go to, which a graph can't do."""
    config = decoder.config
    if not has_experts(decoder):
        return False
    # For grouped products of bf16 the card reads where groups end; for those of other types, torch asks it for that.
    groups = getattr(config, "_experts_implementation", None) == "grouped_mm" and decoder.dtype == torch.bfloat16
    return not groups or torch.cuda.get_device_capability(decoder.device) < (9, 0)


def _buckets(num_rows: int) -> list[int]:
    """Fine enough that few rows are computed in vain, and few enough that their graphs are captured in a second."""
    return [bucket for bucket in (1, 4, 16, 32, *range(64, num_rows, 64)) if bucket < num_rows] + [num_rows]
