"""Rollouts on one GPU, side by side: reasonmill against vLLM, each in processes of its own, one after the other.

Random weights of the shapes of Qwen2.5. The requests are those of `rollouts.py`: `fixed`, 512 completions of 512
tokens, and `ragged`, 1,024 of 1 to 1,024 tokens, in groups of 8 behind prompts of 128. vLLM samples as many tokens for
each of them as reasonmill did. Exit code 1 if a bar is missed.

    PYTHONPATH=src python benchmarks/gpu/against_vllm.py --vllm-python VENV/bin/python
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from card import Card, floor_seconds
from children import lines_of
from shapes import COMMON, SIZES, write_config

HERE = Path(__file__).parent
PROMPT, GROUP = 128, 8
# How many times as many tokens a second reasonmill must make as vLLM at its best settings.
BARS = {
    "0.5b": {"ragged": 4.0, "fixed": 2.5},
    "1.5b": {"ragged": 4.0, "fixed": 2.5},
    "7b": {"ragged": 1.0, "fixed": 1.0},
}
# `best` is how somebody sets vLLM up who knows these loads: all requests at a time, a graph for each number of them,
# prompts of a group read once, no room for contexts that do not come.
VLLM: dict[str, dict[str, Any]] = {
    "best": {
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 16384,
        "max_model_len": 2048,
        "enable_prefix_caching": True,
        "gpu_memory_utilization": 0.9,
        "compilation_config": {"max_cudagraph_capture_size": 1024},
    },
    "defaults": {},
}
# What vLLM is asked for beside tokens. reasonmill always gives log-probs, as learning needs them.
ASKED = {"with_logprobs": "with log-probs", "without_logprobs": "no log-probs"}


@dataclass(frozen=True)
class Row:
    """One side's figures of one load.

    Attributes:
        rates: tokens a second of each warm call.
        start_s: from the command until everything is made that a warm call finds; None but for the first load.
        used_gib: what is taken of the card's memory in the end.
        memory_tokens: tokens whose keys and values have room.
    """

    size: str
    load: str
    side: str
    rates: list[float]
    start_s: float | None
    used_gib: float
    memory_tokens: int

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if shutil.which(options.vllm_python) is None:
        parser.error(f"there is no program {options.vllm_python!r}")
    card = Card(**lines_of([sys.executable, str(HERE / "card.py")])[0])
    print(
        f"{card.name}, torch {card.torch}: {card.bandwidth / 1e12:.2f} TB/s, {card.matrix_rate / 1e12:.0f} TFLOP/s",
        file=sys.stderr,
    )
    bars: list[dict[str, Any]] = []
    tables = []
    for size in options.size:
        rows, floors = _measured(size, card, options)
        tables.append({"rows": [asdict(row) for row in rows], "floors": floors})
        bars += _bars(size, rows)
        if not options.json:
            _print_table(rows, floors)
    if options.json:
        print(json.dumps({"card": asdict(card), "sizes": tables, "bars": bars}, indent=2))
    else:
        for bar in bars:
            verdict = "met   " if bar["met"] else "MISSED"
            print(f"{verdict}  {bar['name']}: {bar['ratio']:.2f}x, bar {bar['bar']:.1f}x")
    return 0 if all(bar["met"] for bar in bars) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["0.5b"])
    parser.add_argument("--load", nargs="+", choices=["fixed", "ragged"], default=["fixed", "ragged"])
    parser.add_argument("--settings", nargs="+", choices=VLLM, default=list(VLLM), help="of vLLM; both by default")
    parser.add_argument("--calls", type=int, default=3, help="of vLLM that are timed, of each kind (default: 3)")
    parser.add_argument("--vllm-python", default=sys.executable, help="an interpreter that has vLLM")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _measured(size: str, card: Card, options: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    """Rows of all sides, and the tokens a second of each load that the card could make at most."""
    with tempfile.TemporaryDirectory(prefix="against-vllm-") as work:
        requests, model = Path(work) / "requests.json", Path(work) / "model"
        write_config(model, size)
        began = time.time()
        command = [sys.executable, str(HERE / "rollouts.py"), "--size", size, "--write", str(requests)]
        rows = _rows_of_reasonmill(size, lines_of([*command, "--load", *options.load]), began, requests)
        for name in options.settings:
            order = {
                "model": str(model),
                "requests": str(requests),
                "loads": options.load,
                "settings": VLLM[name],
                "calls": options.calls,
            }
            began = time.time()
            command = [options.vllm_python, str(HERE / "vllm_side.py"), json.dumps(order)]
            rows += _rows_of_vllm(size, name, lines_of(command, own_path=True), began)
        shape, floors = {**COMMON, **SIZES[size]}, {}
        for load in options.load:
            lengths = _lengths(requests, load)
            floors[load] = sum(lengths) / floor_seconds(shape, lengths, PROMPT, GROUP, card)
    return rows, floors


def _lengths(requests: Path, load: str) -> list[int]:
    lengths: list[int] = json.loads(requests.read_text(encoding="utf-8"))[load]["lengths"]
    return lengths


def _rows_of_reasonmill(size: str, lines: Sequence[dict[str, Any]], began: float, requests: Path) -> list[Row]:
    rows: list[Row] = []
    for line in lines:
        rates = line["tokens_per_s"]
        # Graphs are captured in the first call, whose own work takes as long as a warm one.
        warm_s = sum(_lengths(requests, line["load"])) / statistics.median(rates)
        start_s = None if rows else line["first_end"] - began - warm_s
        side = "reasonmill, with log-probs"
        rows.append(Row(size, line["load"], side, rates, start_s, line["used_gib"], line["memory_tokens"]))
    return rows


def _rows_of_vllm(size: str, settings: str, lines: Sequence[dict[str, Any]], began: float) -> list[Row]:
    rows: list[Row] = []
    for line in lines:
        start_s = None if rows else line["first_end"] - began
        for kind, asked in ASKED.items():
            side = f"vLLM {settings}, {asked}"
            rows.append(Row(size, line["load"], side, line[kind], start_s, line["used_gib"], line["memory_tokens"]))
            start_s = None
    return rows


def _bars(size: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """reasonmill's rate over each of vLLM's at its best settings, and what it has to be."""
    bars = []
    ours = {row.load: row.rate for row in rows if row.side.startswith("reasonmill")}
    for row in rows:
        if row.side.startswith("vLLM best"):
            ratio, bar = ours[row.load] / row.rate, BARS[size][row.load]
            bars.append(
                {"name": f"{size}, {row.load}, over {row.side}", "ratio": ratio, "bar": bar, "met": ratio >= bar}
            )
    return bars


def _print_table(rows: Sequence[Row], floors: dict[str, float]) -> None:
    head = f"{'of the floor':>14}{'reasonmill over it':>20}{'start':>9}{'memory':>11}{'room for':>13}"
    for load, floor in floors.items():
        print(f"{rows[0].size}, {load}: the card could make {floor:,.0f} tokens/s")
        print(f"  {'':30}{'tokens/s':>10}{head}")
        found = [row for row in rows if row.load == load]
        for row in found:
            start = "" if row.start_s is None else f"{row.start_s:.0f} s"
            print(
                f"  {row.side:30}{row.rate:>10,.0f}{row.rate / floor:>14.1%}{found[0].rate / row.rate:>19.2f}x"
                f"{start:>9}{row.used_gib:>7.1f} GiB{row.memory_tokens:>13,}"
            )
        print(flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"against_vllm.py: {error}")
