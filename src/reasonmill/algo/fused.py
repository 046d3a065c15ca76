"""Functions of whole tensors that a GPU runs as few kernels: compiled on CUDA, and left as they are elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo.config as dynamo_config
import torch._inductor.config as inductor_config
import torch.compiler.config as compiler_config
from torch import Tensor

# Kinds of shapes and settings that one process may compile a piece of code for.
_KINDS = 64
# What compiled code was first met with, which what torch keeps of it on disk is told apart by.
_met = ""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def begin_compiling(meets: str) -> None:
    """Forgets all compiled code. What is compiled from now on is made for the shapes that it meets first.

    Code for lengths of any size still adds up in an order that the first length decides. So code that is to give the
    same bits in another process must meet the same shapes first there, and be none that torch kept on disk from others.

    Args:
        meets: names these shapes.
    """
    global _met
    torch.compiler.reset()
    _met = meets


@contextmanager
def strictly_compiled() -> Iterator[None]:
    """In the block, code is compiled for each kind of shape, or an error is raised.

    Beyond its limit torch would run it uncompiled, with other bits, and say so in a log only. Nothing is chosen by how
    long it takes.
    """
    with (
        dynamo_config.patch(recompile_limit=_KINDS, fail_on_recompile_limit_hit=True),
        inductor_config.patch(deterministic=True),
        compiler_config.patch(cache_key_tag=_met),  # type: ignore[attr-defined]
    ):
        yield


def fused(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function with what it does to a GPU's tensors fused.

    Its first argument is a tensor, whose device decides. All its tensors have the same first dimension, which may
    differ from call to call without being compiled again.
    """

    @cache
    def compiled() -> Callable[..., Result]:
        made: Callable[..., Result] = torch.compile(function)
        return made

    @wraps(function)
    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        first: Any = arguments[0]
        if first.device.type != "cuda":
            return function(*arguments, **named)
        for argument in arguments:
            if isinstance(argument, Tensor):
                torch._dynamo.maybe_mark_dynamic(argument, 0)
        with strictly_compiled():
            return compiled()(*arguments, **named)

    return run
