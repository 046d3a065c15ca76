"""A reward that a function of the user's decides, whichever project it was written for."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, PydanticUserError, create_model
from pydantic.errors import PydanticUndefinedAnnotation

from reasonmill.errors import RecipeError, suggestion
from reasonmill.grading.verdict import Isolation
from reasonmill.protocols import Attempt, Measured
from reasonmill.randomness import key
from reasonmill.rewards.functions.columns import Form, MissingColumn, column, columns_of, form_of
from reasonmill.rewards.functions.families import Call, Family, family_of, responses
from reasonmill.rewards.functions.results import all_measured, measured, numbers_of
from reasonmill.tasks.named import JUDGED, NamedTask

# The settings of a function that are none of its own parameters.
FORM, SCORE_KEY = "completions_are", "reward_key"
_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def is_reward_function(candidate: Any) -> bool:
    """Whether it is called with responses, and gives rewards for them; a class or what makes a reward is not."""
    if inspect.isclass(candidate) or not callable(candidate) or hasattr(candidate, "measure"):
        return False
    return family_of(list(_parameters(candidate))) is not None


class FunctionReward:
    """A reward that a function decides: what it takes is filled by the names of its parameters.

    It is asked about all attempts at a problem together, or about each, as its family is. One that raises, or gives
    what is no number, could not tell.

    Args:
        name: what the recipe calls it.
        settings: what the recipe gives it, by name.

    Raises:
        RecipeError: none of its parameters takes the response.
    """

    isolation: Isolation = "worker"

    def __init__(self, function: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self._function = function
        self._parameters = _parameters(function)
        self._family = _require_family(function, f"reward {name!r}")
        own = {FORM, SCORE_KEY}
        self._settings = {key: value for key, value in settings.items() if key not in own or key in self._parameters}
        self._form: Form | None = settings.get(FORM) or _annotated_form(self._parameters.get(self._family.response))
        self._score_key: str | None = settings.get(SCORE_KEY)
        self._open = any(each.kind is each.VAR_KEYWORD for each in _signature(function).parameters.values())

    @property
    def of_groups(self) -> bool:
        """Whether it is asked about all attempts at a problem together."""
        return self._family.batched

    def measure(self, attempt: Attempt) -> Measured:
        """What it says of one attempt by itself."""
        return self.measure_group([attempt])[0]

    def measure_group(self, attempts: Sequence[Attempt]) -> list[Measured]:
        """What it says of each attempt at a problem. Where it can't tell for any of them, it is asked about each, so
        that what it can't grade spoils no other."""
        if self._family.batched:
            found = self._told([attempts])[0]
            if len(attempts) == 1 or not all(each.why_not for each in found):
                return found
        return [found for (found,) in self._told([[attempt] for attempt in attempts])]

    def require(self, task: NamedTask) -> None:
        """Refuses a task where nothing fills one of the function's parameters, in any of its first problems.

        Raises:
            RecipeError: a parameter without a default has no column, and no setting.
        """
        problems = list(islice(task.problems("train", 0), JUDGED))
        missing = [{name for name in self._needed if not _has(problem, name)} for problem in problems]
        absent = set.intersection(*missing) if missing else set()
        if not absent:
            return
        name = min(absent, key=list(self._parameters).index)
        columns = list(dict.fromkeys(found for problem in problems for found in columns_of(problem)))
        there = f"its problems have {', '.join(columns)}" if columns else "its problems have no columns"
        guess = suggestion(name, columns)
        raise RecipeError(
            f"reward {self.name!r}: {_shown(self._function)} takes {name!r}, and nothing fills that for task "
            f"{task.name!r}: {there}",
            fix=f"{guess + ' ' if guess else ''}map a column to that name, or give it in [rewards.{self.name}]",
        )

    @property
    def _needed(self) -> list[str]:
        """The parameters that only a row can fill."""
        return [
            name
            for name, parameter in self._parameters.items()
            if parameter.default is parameter.empty and name not in self._family.fills and name not in self._settings
        ]

    def _told(self, asked: Sequence[Sequence[Attempt]]) -> list[list[Measured]]:
        """What it says in each call; where it is a coroutine, all are awaited together."""
        calls = [Call(attempts, self._form_for(attempts[0]), self._unnamed) for attempts in asked]
        with _draws(key("function", *asked[0][0].noise)):
            answers = [self._answer(call) for call in calls]
            waiting = [place for place, answer in enumerate(answers) if inspect.isawaitable(answer)]
            if waiting:
                arrived = _runner(os.getpid()).run(_all_awaited([answers[place] for place in waiting]))
                for place, answer in zip(waiting, arrived, strict=True):
                    answers[place] = answer
        return [self._read(call, answer) for call, answer in zip(calls, answers, strict=True)]

    def _answer(self, call: Call) -> Any:
        """What the function gives back; what it raises is given back, too."""
        try:
            given, named = self._filled(call)
            return self._function(*given, **named)
        except (Exception, SystemExit) as error:
            return error

    def _read(self, call: Call, answer: Any) -> list[Measured]:
        count = len(call.attempts)
        try:
            if isinstance(answer, BaseException):
                raise answer
            if self._family.batched:
                found = all_measured(answer, count, self._score_key)
            else:
                found = [measured(answer, self._score_key)]
        except (Exception, SystemExit) as error:
            why = self._why(error, call, raised=error is answer)
            return [Measured(None, f"{_shown(self._function)}: {why}")] * count
        logged = [_logged(call, place) for place in range(count)]
        return [
            Measured(each.value, parts={f"{self.name}/{name}": value for name, value in {**row, **each.parts}.items()})
            for each, row in zip(found, logged, strict=True)
        ]

    def _why(self, error: BaseException, call: Call, *, raised: bool) -> str:
        """Why an error left it without a number."""
        if isinstance(error, MissingColumn):
            return f"the problem has nothing to fill {str(error)!r} with"
        said = str(error).split("\n", 1)[0]
        if not raised:
            return said
        why = f"it raised {type(error).__name__}" + (f": {said}" if said else "")
        if self._family.has_form and isinstance(error, TypeError | AttributeError | KeyError):
            other = next(form for form in get_args(Form) if form != call.form)
            why += f" (it was given {call.form}; {FORM} = {other!r} gives it {other})"
        return why

    def _filled(self, call: Call) -> tuple[list[Any], dict[str, Any]]:
        """Arguments by position, where a parameter has no name for callers, and by name."""
        family = self._family
        given: list[Any] = []
        named: dict[str, Any] = family.everything(call) if self._open else {}
        for name, parameter in self._parameters.items():
            if name in self._settings:
                value = self._settings[name]
            elif name in family.fills:
                value = family.fills[name](call)
            elif parameter.default is parameter.empty or (family.columns and name in columns_of(call.one.problem)):
                value = family.column(call, name)
            else:
                value = parameter.default
            named.pop(name, None)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                given.append(value)
            else:
                named[name] = value
        return given, named

    @property
    def _unnamed(self) -> dict[str, Any]:
        """The settings that are no parameter: those of `**kwargs`, or of slime's `args`."""
        return {name: value for name, value in self._settings.items() if name not in self._parameters}

    def _form_for(self, attempt: Attempt) -> Form:
        return self._form or form_of(attempt.problem)


def function_settings(function: Callable[..., Any], title: str) -> type[BaseModel]:
    """The settings that a recipe may give a function: its parameters that the rollout does not fill, all optional.

    Args:
        title: names it in messages.

    Raises:
        RecipeError: none of its parameters takes the response.
    """
    family = _require_family(function, title)
    fields: dict[str, Any] = {SCORE_KEY: (str | None, None)}
    if family.has_form:
        fields[FORM] = (Form | None, None)
    settable = {n: p for n, p in _parameters(function).items() if n not in family.fills and not n.startswith("_")}
    for name, parameter in settable.items():
        fields[name] = (_plain_type(name, parameter.annotation), None)
    kinds = {parameter.kind for parameter in _signature(function).parameters.values()}
    is_open = inspect.Parameter.VAR_KEYWORD in kinds or "args" in family.fills
    extra: Literal["allow", "forbid"] = "allow" if is_open else "forbid"
    return create_model("Settings", __config__=ConfigDict(extra=extra, frozen=True, protected_namespaces=()), **fields)


def _plain_type(name: str, annotation: Any) -> Any:
    """The type that a setting is checked against; Any where a function's own annotation is no type of a recipe."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return Any
    try:
        fields: dict[str, Any] = {name: (annotation | None, None)}
        create_model("Probe", **fields)
    except (TypeError, PydanticUserError, PydanticUndefinedAnnotation):
        return Any
    return annotation | None


def no_reward_function(function: Callable[..., Any], title: str) -> RecipeError:
    """What is wrong with a function of which no parameter takes the response.

    Args:
        title: names it in the message.
    """
    taken = ", ".join(_parameters(function)) or "nothing"
    return RecipeError(
        f"{title}: {_shown(function)} takes {taken}, none of which is what the model wrote",
        fix=f"call that parameter one of {', '.join(dict.fromkeys(responses()))}; or let the function make a reward, "
        "with a type for each parameter",
    )


def _require_family(function: Callable[..., Any], title: str) -> Family:
    family = family_of(list(_parameters(function)))
    if family is None:
        raise no_reward_function(function, title)
    return family


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, AttributeError, SyntaxError, TypeError):  # a type that is imported for type checkers only
        return inspect.signature(function)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        found = _signature(function).parameters.values()
    except ValueError:  # written in C, without a signature
        return {}
    return {parameter.name: parameter for parameter in found if parameter.kind in _NAMED}


def _annotated_form(response: inspect.Parameter | None) -> Form | None:
    """The form that the annotation of the response asks for; None where it says nothing of it."""
    if response is None or response.annotation is inspect.Parameter.empty:
        return None
    annotation = response.annotation if isinstance(response.annotation, str) else str(response.annotation)
    if any(word in annotation for word in ("dict", "Dict", "Message", "Mapping")):
        return "messages"
    return "texts" if "str" in annotation else None


def _has(problem: Any, name: str) -> bool:
    try:
        column(problem, name)
    except MissingColumn:
        return False
    return True


def _shown(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _logged(call: Call, place: int) -> dict[str, float]:
    """The numbers that it logged in a call, of the attempt at this place."""
    columns = {name: numbers_of(values, len(call.attempts)) for name, values in call.extras.items()}
    of_all = {name: numbers_of([value], 1)[0] for name, value in call.metrics.items()}
    found = {**of_all, **{name: values[place] for name, values in columns.items() if values}}
    return {name: value for name, value in found.items() if value is not None}


@cache
def _runner(process: int) -> asyncio.Runner:
    """The event loop of this process: what functions keep of one call, connections for example, serves the next."""
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner


async def _all_awaited(answers: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*map(_awaited, answers))


async def _awaited(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except (Exception, SystemExit) as error:
        return error


@contextmanager
def _draws(seed: int) -> Iterator[None]:
    """What a function draws from Python's and numpy's own generators is decided by the seed, and disturbs no other."""
    numpy: Any = sys.modules.get("numpy")
    before = random.getstate()
    numpy_before = numpy.random.get_state() if numpy else None
    random.seed(seed)
    if numpy:
        numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before)
        if numpy:
            numpy.random.set_state(numpy_before)
