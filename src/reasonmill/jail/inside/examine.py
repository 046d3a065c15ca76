"""Tests of a program that runs in another jail: they call it over a wire, and get plain values.

What decides is here, in a process that the program has no way to: not its memory, not its files, not its processes.
What the program sends is decoded to values of Python's own classes, so that an `==` means what it always means.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from . import wire
from .program import CHANNEL

# Where the verdict goes.
_VERDICT = 4
_MAX_REASON = 400


class ProgramGone(BaseException):
    """The program ended, or sent what is no answer. No test may catch this, so it derives from BaseException."""


class Unsupported(Exception):
    """The tests ask for what does not go over the wire; no program can bring this about."""


class _Wire:
    """The wire to the program. Once it is broken it stays so, whatever a test makes of the exception."""

    def __init__(self) -> None:
        self.broken = ""
        self.closed = False
        self.asked = False

    def begin(self) -> None:
        """Waits until the program is loaded."""
        reply = self._received()
        if reply != ["ready"]:
            raise self.break_("the program does not load" if reply[0] != "refused" else str(reply[1]))

    def ask(self, kind: str, about: Any, *rest: Any) -> Any:
        if self.broken:
            raise ProgramGone(self.broken)
        if not self.asked:
            self.asked = True
            report("asked")
        try:
            wire.send(CHANNEL, [kind, about, *rest])
        except wire.Closed:
            raise self._gone() from None
        reply = self._received()
        if reply[0] == "raised":
            error = _exception(reply[1], str(reply[2]))
            if kind != "next" and isinstance(error, StopIteration | StopAsyncIteration):
                # It would end the loop of a test that calls the function within `map` or `zip`, and let the test pass.
                raise RuntimeError(f"the program raised {type(error).__name__}")
            raise error
        if reply[0] != "value":
            raise self.break_(f"the program ended itself: {reply[1:]}")
        return reply

    def break_(self, reason: str) -> ProgramGone:
        self.broken = self.broken or reason[:_MAX_REASON]
        return ProgramGone(self.broken)

    def _gone(self) -> ProgramGone:
        self.closed = True
        return self.break_("the program ended before it answered")

    def _received(self) -> list[Any]:
        try:
            reply = wire.receive(CHANNEL)
            if not isinstance(reply, list) or len(reply) < 1 or (reply[0] == "raised" and len(reply) != 3):
                raise wire.WireError("no answer")
        except wire.Closed:
            raise self._gone() from None
        except wire.WireError as error:
            raise self.break_(f"the program sent {error}") from None
        except MemoryError:
            raise self.break_("the program sent more than memory can hold") from None
        return reply


_wire = _Wire()


class _Remote:
    """Something in the program that is no plain value: a function, a class, an object. It equals nothing but itself."""

    __slots__ = ("_about", "_kind")

    def __init__(self, about: Any, kind: str) -> None:
        object.__setattr__(self, "_about", about)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        named = [[name, _encoded(value)] for name, value in keywords.items()]
        reply = _wire.ask("call", self._about, [_encoded(argument) for argument in arguments], named)
        value = _value(reply)
        try:
            for place, encoded in reply[2]:
                _put_back(arguments[place], wire.decode(encoded, _remote))
        except (wire.WireError, LookupError, TypeError, ValueError):
            raise _wire.break_("the program sent no answer") from None
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _value(_wire.ask("get", self._about, name))

    def __setattr__(self, name: str, value: Any) -> None:
        _wire.ask("set", self._about, name, _encoded(value))

    def __iter__(self) -> Iterator[Any]:
        iterator = _value(_wire.ask("iter", self._about))
        return iterator if isinstance(iterator, _Remote) else iter(iterator)

    def __next__(self) -> Any:
        return _value(_wire.ask("next", self._about))

    def __len__(self) -> int:
        return len(range(_value(_wire.ask("len", self._about))))

    def __bool__(self) -> bool:
        return _value(_wire.ask("bool", self._about)) is True

    def __str__(self) -> str:
        return str(_value(_wire.ask("str", self._about)))

    def __repr__(self) -> str:
        return f"<{self._kind} of the program>"


def _value(reply: Any) -> Any:
    try:
        return wire.decode(reply[1], _remote)
    except (wire.WireError, LookupError) as error:
        raise _wire.break_(f"the program sent {error}") from None


def _remote(message: Any) -> _Remote:
    if len(message) != 3 or message[0] != "kept" or not isinstance(message[1], int):
        raise wire.WireError("a value of no known kind")
    return _Remote(["kept", message[1]], str(message[2]))


def _encoded(value: Any) -> Any:
    return wire.encode(value, _referred)


def _referred(value: Any) -> Any:
    if isinstance(value, _Remote):
        return value._about
    name = getattr(value, "__name__", "")
    if isinstance(name, str) and name and getattr(builtins, name, None) is value:
        return ["builtin", name]
    raise Unsupported(f"the tests hand over a {type(value).__name__}, which can't leave their process")


def _put_back(given: Any, after: Any) -> None:
    """What the program made of a list that a test gave it."""
    if isinstance(given, list | bytearray):
        given[:] = after
    elif isinstance(given, dict | set):
        given.clear()
        given.update(after)
    else:
        raise TypeError("nothing that can change")


def _exception(names: Any, message: str) -> Exception:
    """An exception of Python's own classes, the nearest to that of the program."""
    for name in names if isinstance(names, list) else ():
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(message[:_MAX_REASON])
            except TypeError:  # a few take more than a message
                continue
    return RuntimeError(message[:_MAX_REASON])


def report(*words: str) -> None:
    """Says something about the tests to who ordered them."""
    os.write(_VERDICT, json.dumps(words).encode() + b"\n")


def examine(
    prompt: str,
    setup: Sequence[str],
    tests: Sequence[str],
    calls: Sequence[Sequence[Any]],
    entry: str,
    check: str,
) -> None:
    """Runs tests and reports what came of them: "passed", "failed" with the reason, "gone" where the program ended
    instead of answering, or "broken" where the tests are at fault.

    Args:
        prompt: what the program continues, where that is code: the tests may call what it defines.
        setup: code that comes before the tests.
        tests: code with assertions.
        calls: arguments of `entry`, and what it may return: one of several.
        entry: the function that is tested; may be empty, where the tests say it by themselves.
        check: the function among the tests that does the testing, given the tested one; may be empty.
    """
    silent = os.open("/dev/null", os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    random = sys.modules["random"]
    random.seed(0)
    try:
        _wire.begin()
        begun = _as_code(prompt)
        names = _names([begun, *setup, *tests], entry)
        for code in (begun, *setup, *tests):
            exec(compile(code, "tests", "exec", dont_inherit=True), names)
            if entry:
                names[entry] = _Remote(["name", entry], "function")
        if check:
            names[check](names[entry])
        for arguments, accepted in calls:
            _compare(names[entry](*arguments), accepted)
    except ProgramGone:
        pass
    except AssertionError as error:
        return report("failed", f"a test fails: {_line(error)}"[:_MAX_REASON])
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"[:_MAX_REASON]
        fault = _wire.asked and not isinstance(error, Unsupported)
        return report("failed", f"a test fails: {_line(error)}: {told}") if fault else report("broken", told)
    if _wire.broken:
        return report("gone" if _wire.closed else "failed", _wire.broken)
    return report("passed") if _wire.asked else report("broken", "the tests never call the program")


def _as_code(prompt: str) -> str:
    """A prompt that is the beginning of a program, with its last function left empty; nothing where it is no code."""
    for code in (f"{prompt}\n    pass\n", prompt):
        try:
            ast.parse(code)
        except (SyntaxError, ValueError):
            continue
        return code
    return ""


def _compare(result: Any, accepted: Sequence[Any]) -> None:
    if isinstance(result, tuple):
        result = list(result)
    if not any(_same(result, one) for one in accepted):
        raise AssertionError(f"it returned {result!r}, expected {accepted[0]!r}"[:_MAX_REASON])


def _same(result: Any, expected: Any) -> bool:
    """Equal, with tuples for lists: expected values come from JSON, which has no tuples."""
    if isinstance(result, list | tuple) and isinstance(expected, list):
        return len(result) == len(expected) and all(map(_same, result, expected))
    if isinstance(result, dict) and isinstance(expected, dict):
        # JSON has no keys but texts.
        named = {str(key): value for key, value in result.items()}
        return named.keys() == expected.keys() and all(_same(named[key], expected[key]) for key in named)
    if isinstance(expected, float) and isinstance(result, int | float):
        return math.isclose(result, expected, rel_tol=1e-6, abs_tol=1e-9)
    return bool(result == expected)


def _names(codes: Sequence[str], entry: str) -> dict[str, Any]:
    """What tests find: the program's functions under the names that tests call and nothing else defines.

    Python's own names and its library are never the program's, or it could bring an `isclose` that agrees to
    everything.
    """
    nodes = [node for code in codes for node in ast.walk(ast.parse(code))]
    defined = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    attributes = {
        node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    for name in {node.id for node in nodes if isinstance(node, ast.Name)} - defined:
        if name in attributes and name in sys.stdlib_module_names:
            names[name] = importlib.import_module(name)
        elif not hasattr(builtins, name):
            names[name] = _Remote(["name", name], "function")
    if entry:
        names[entry] = _Remote(["name", entry], "function")
    return names


def _line(error: BaseException) -> str:
    """Which line of the tests failed, in words."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests":
            line = trace.tb_lineno
        trace = trace.tb_next
    said = str(error).splitlines()[0] if str(error).strip() and isinstance(error, AssertionError) else ""
    return (f"line {line}" if line else "a call") + (f": {said}" if said else "")
