"""What a program does in the jail: it runs on its standard input, or answers the calls of tests that run elsewhere.

All of this is in the program's reach. So nothing here is believed by anybody: it never knows what is expected, and
what leaves it are bytes and plain values, which others compare.
"""

from __future__ import annotations

import atexit
import builtins
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from . import wire

# What programs that answer calls find under this descriptor.
CHANNEL = 3
# A message is for a human.
_MAX_MESSAGE = 300
_OPERATIONS: dict[str, Callable[[Any], Any]] = {"iter": iter, "len": len, "bool": bool, "str": str}


def run(source: str) -> None:
    """Runs a program as Python runs a script: what it printed, what waits in threads and at its exit included."""
    module = _module("__main__")
    sys.argv = ["program.py"]
    code = 0
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does at its end
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code & 0xFF)


def serve(sources: Sequence[str]) -> None:
    """Loads the first of the sources that is Python, and answers calls until nobody asks any more."""
    try:
        module = _module("solution")
        code = _compiled(sources)
        exec(code, module.__dict__)
    except BaseException as error:
        wire.send(CHANNEL, ["refused", f"the program does not load: {_described(error)}"])
        return
    wire.send(CHANNEL, ["ready"])
    answers = _Answers(module.__dict__)
    while True:
        try:
            request = wire.receive(CHANNEL)
        except wire.Closed:
            return
        try:
            reply = answers.to(request)
        except (KeyboardInterrupt, SystemExit) as error:
            reply = ["ended", _described(error)]
        except BaseException as error:
            reply = ["raised", [kind.__name__ for kind in type(error).__mro__], _described(error)]
        try:
            wire.send(CHANNEL, reply)
        except wire.WireError as error:
            wire.send(CHANNEL, ["raised", ["ValueError", "Exception"], f"it returned {error}"])


class _Answers:
    """Answers to calls. What is no plain value stays here, and is spoken of by a number."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._kept: list[Any] = []

    def to(self, request: Any) -> Any:
        kind, about, *rest = request
        if kind == "call":
            return self._call(self._value(about), rest[0], rest[1])
        value = self._value(about)
        if kind == "get":
            return ["value", self._encoded(getattr(value, rest[0]))]
        if kind == "set":
            setattr(value, rest[0], self._value(rest[1]))
            return ["value", None]
        if kind == "next":
            return ["value", self._encoded(next(value))]
        return ["value", self._encoded(_OPERATIONS[kind](value))]

    def _call(self, function: Any, arguments: list[Any], named: list[Any]) -> Any:
        before = [self._value(argument) for argument in arguments]
        keywords = {name: self._value(argument) for name, argument in named}
        result = self._encoded(function(*before, **keywords))
        # Tests may look at what became of a list that they gave.
        after = {}
        for place, value in enumerate(before):
            if isinstance(value, list | dict | set | bytearray):
                encoded = self._encoded(value)
                if encoded != arguments[place]:
                    after[place] = encoded
        return ["value", result, list(after.items())]

    def _value(self, message: Any) -> Any:
        return wire.decode(message, self._referred)

    def _referred(self, message: Any) -> Any:
        if message[0] == "name":
            name = message[1]
            if name in self._names:
                return self._names[name]
            # Some sites ask for a method of a class of this name.
            if hasattr(self._names.get("Solution"), name):
                return getattr(self._names["Solution"](), name)
            raise NameError(f"name {name!r} is not defined")
        if message[0] == "builtin":
            return getattr(builtins, message[1])
        return self._kept[message[1]]

    def _encoded(self, value: Any) -> Any:
        return wire.encode(value, self._keep)

    def _keep(self, value: Any) -> Any:
        self._kept.append(value)
        return ["kept", len(self._kept) - 1, type(value).__name__[:_MAX_MESSAGE]]


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    return module


def _compiled(sources: Sequence[str]) -> Any:
    error: Exception | None = None
    for source in sources:
        try:
            return compile(source, "program.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as failed:
            error = error or failed
    raise error or ValueError("there is no code")


def _described(error: BaseException) -> str:
    """An error in a line."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:_MAX_MESSAGE]
