"""Functions of whole tensors that a GPU runs as few kernels: compiled on CUDA, and left as they are elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo.config as dynamo_config
from torch import Tensor

# Kinds of shapes and settings that one process may compile a piece of code for.
_KINDS = 64

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def strictly_compiled() -> AbstractContextManager[None]:
    """In the block, code is compiled for each kind of shape, or an error is raised.

    Beyond its limit torch would run it uncompiled, with other bits, and say so in a log only.
    """
    limits: AbstractContextManager[None] = dynamo_config.patch(recompile_limit=_KINDS, fail_on_recompile_limit_hit=True)
    return limits


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
