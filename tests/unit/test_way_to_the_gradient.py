"""The way from the command line to the gradient, which a newcomer should be able to walk in one sitting."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import reasonmill
from reasonmill.cli import main

MOST_CALLS = 8
PACKAGE = str(Path(reasonmill.__file__).parent)

RECIPE = """
name = "short"

[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base-weak"
steps = 1
problems_per_step = 2
group_size = 3
rewards = { accuracy = 1.0, random = 1.0 }
loss = { algorithm = "grpo", kl_coefficient = 0.1 }
schedule = { peak = 1e-3 }
tasks = { countdown-3 = 1.0 }
sampling = { max_tokens = 4 }
"""


def calls(frame: FrameType | None) -> Iterator[str]:
    """The package's functions on the stack, the innermost first; generators are calls, too."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            yield f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}: {frame.f_code.co_qualname}"
        frame = frame.f_back


def test_there_are_few_calls_between_the_command_line_and_the_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: set[tuple[str, ...]] = set()
    backward = torch.Tensor.backward

    def noted(tensor: torch.Tensor, *arguments: Any, **options: Any) -> None:
        ways.add(tuple(calls(sys._getframe()))[::-1])
        backward(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", noted)
    (tmp_path / "short.toml").write_text(RECIPE)
    with pytest.raises(SystemExit) as left:
        main(["run", str(tmp_path / "short.toml"), "--home", str(tmp_path / "home"), "--device", "cpu"])
    assert left.value.code == 0
    (way,) = ways
    assert way[0] == "cli.py: main"
    assert way[-1] == "learn/local.py: LocalLearner.forward_backward"
    assert len(way) <= MOST_CALLS, "\n".join(way)
