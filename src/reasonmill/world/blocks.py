"""The corpus as token ids, made by all cores ahead of the training that reads it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from reasonmill.world.corpus import documents
from reasonmill.world.traces import TraceHabits

TokenRow = npt.NDArray[np.int64]

# How long a worker that was sent SIGTERM works on.
_GRACE_S = 30.0


@dataclass(frozen=True)
class EncodedBlocks:
    """Blocks of tokenized documents; block b holds documents b * size to (b + 1) * size - 1.

    Args:
        tokenizer: its JSON, so that other processes can make it.
    """

    tokenizer: str
    seed: int
    habits: TraceHabits
    size: int

    def read(self, start: int, stop: int) -> Iterator[list[TokenRow]]:
        """Blocks `start` to `stop` - 1 in order, each a list of documents' tokens. A few blocks are made ahead."""
        workers = os.cpu_count() or 1
        # "spawn": a fork would copy torch's threads in a state in which they can't run.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker) as pool:
            pending: deque[Future[tuple[TokenRow, TokenRow]]] = deque()
            try:
                for block in range(start, stop):
                    pending.append(pool.submit(self._encode, block))
                    if len(pending) > 2 * workers:
                        yield _rows(*pending.popleft().result())
                while pending:
                    yield _rows(*pending.popleft().result())
            finally:
                for future in pending:
                    future.cancel()

    def _encode(self, block: int) -> tuple[TokenRow, TokenRow]:
        """All tokens of a block end to end and the documents' lengths; two arrays travel fast between processes."""
        tokenizer = Tokenizer.from_str(self.tokenizer)
        first = block * self.size
        texts = [document.text for document in documents(self.seed, first, first + self.size, self.habits)]
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        return np.concatenate([np.asarray(row, np.int64) for row in rows]), np.array(
            [len(row) for row in rows], np.int64
        )


def _rows(tokens: TokenRow, lengths: TokenRow) -> list[TokenRow]:
    return np.split(tokens, np.cumsum(lengths)[:-1])


def _prepare_worker() -> None:
    # Every core has a process already; a tokenizer's own threads would only get in their way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C and the SIGHUP of a closed terminal reach the whole process group; the parent alone decides when to stop.
    # SIGTERM may come to all, too, and a parent that lost its workers could not finish its step; but it is also how an
    # executor ends what is broken.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _end_later())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_later() -> None:
    timer = threading.Timer(_GRACE_S, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
