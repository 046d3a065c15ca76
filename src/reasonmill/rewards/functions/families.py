"""The families of reward functions, told apart by what they call the response: what each of them is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from reasonmill.protocols import Attempt
from reasonmill.rewards.functions.columns import GOLD, Form, asked, column, columns_of, prompt
from reasonmill.transcript import read_transcript


@dataclass
class Call:
    """One call of a function, and what it takes down in it.

    Attributes:
        attempts: those it is asked about: all of a group, or one.
        settings: the recipe's, those by name that are no parameter.
        metrics: what it logged by `log_metric`.
        extras: what it logged by `log_extra`, a value for each attempt.
    """

    attempts: Sequence[Attempt]
    form: Form
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def one(self) -> Attempt:
        """The attempt of a call about one."""
        return self.attempts[0]


Fill = Callable[[Call], Any]
_OfOne = Callable[[Call, Attempt], Any]


@dataclass(frozen=True)
class Family:
    """What functions of a kind take.

    Attributes:
        title: whose they are.
        batched: whether they are asked about all attempts at a problem at once, with a list for each parameter.
        fills: what its parameters are filled with, by their names; the first one is the response, which it is known by.
        columns: whether other parameters are columns of the row; otherwise they are left to the recipe.
        has_form: whether the response is text or messages, as the row's prompt is.
    """

    title: str
    batched: bool
    fills: Mapping[str, Fill]
    columns: bool = False
    has_form: bool = False

    @property
    def response(self) -> str:
        """The parameter that such functions are known by."""
        return next(iter(self.fills))

    def column(self, call: Call, name: str) -> Any:
        """A column as the function gets it: of each attempt, or of the one.

        Raises:
            MissingColumn: the problem has none of this name.
        """
        if not self.batched:
            return column(call.one.problem, name)
        return [column(attempt.problem, name) for attempt in call.attempts]

    def everything(self, call: Call) -> dict[str, Any]:
        """What a function with `**kwargs` gets beside its parameters."""
        if not self.columns:
            return dict(call.settings)
        known = dict.fromkeys(name for attempt in call.attempts for name in columns_of(attempt.problem))
        filled = {name: fill(call) for name, fill in self.fills.items()}
        rows = {name: self.column(call, name) for name in known if name not in filled}
        return {**rows, **filled, **call.settings}


def _each(of_one: _OfOne) -> Fill:
    return lambda call: [of_one(call, attempt) for attempt in call.attempts]


def _one(of_one: _OfOne) -> Fill:
    return lambda call: of_one(call, call.one)


def _said(call: Call, attempt: Attempt) -> Any:
    text = attempt.completion.text
    return text if call.form == "texts" else [{"role": "assistant", "content": text}]


def _text(call: Call, attempt: Attempt) -> str:
    return attempt.completion.text


def _tokens(call: Call, attempt: Attempt) -> list[int]:
    return list(attempt.completion.tokens)


def _prompt(call: Call, attempt: Attempt) -> Any:
    return prompt(attempt.problem, call.form)


def _prompt_text(call: Call, attempt: Attempt) -> str:
    text: str = prompt(attempt.problem, "texts")
    return text


def _prompt_messages(call: Call, attempt: Attempt) -> Any:
    return prompt(attempt.problem, "messages")


def _whole(call: Call, attempt: Attempt) -> str:
    return _prompt_text(call, attempt) + attempt.completion.text


def _held(name: str, *others: str) -> _OfOne:
    """The row's column of one of these names, or what the first one means."""

    def of_one(call: Call, attempt: Attempt) -> Any:
        held = columns_of(attempt.problem)
        found = next((key for key in (name, *others) if key in held), None)
        return held[found] if found else column(attempt.problem, name)

    return of_one


def _table(name: str) -> _OfOne:
    """A column that is a table; an empty one where the row has none."""
    return lambda call, attempt: columns_of(attempt.problem).get(name) or {}


def _extra_info(call: Call, attempt: Attempt) -> dict[str, Any]:
    return {"num_turns": 1, "rollout_reward_scores": {}, **_table("extra_info")(call, attempt)}


def _row(call: Call, attempt: Attempt) -> dict[str, Any]:
    """The row with the gold answer, and with what is asked."""
    problem = attempt.problem
    return {"question": asked(problem), **dict.fromkeys(GOLD[:2], problem.answer), **columns_of(problem)}


def _trainer_state(call: Call) -> Any:
    return SimpleNamespace(global_step=call.one.step)


def _state(call: Call, attempt: Attempt) -> dict[str, Any]:
    return {
        "prompt": _prompt(call, attempt),
        "completion": _said(call, attempt),
        "answer": column(attempt.problem, "answer"),
        "task": column(attempt.problem, "task"),
        "info": _table("info")(call, attempt),
        "turn": 1,
    }


class _Parser:
    """What rubrics ask for the answer: the text of the one <answer> block, or None."""

    def parse(self, text: str) -> Any:
        read = read_transcript(text)
        return SimpleNamespace(think=read.thinking, reasoning=read.thinking, answer=read.answer)

    def parse_answer(self, completion: Any) -> str | None:
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        return read_transcript(text).answer


def _sample(call: Call, attempt: Attempt) -> Any:
    completion, held = attempt.completion, columns_of(attempt.problem)
    return SimpleNamespace(
        prompt=_prompt_text(call, attempt) if call.form == "texts" else _prompt_messages(call, attempt),
        response=completion.text,
        label=_held("label")(call, attempt),
        metadata=held.get("metadata", held),
        tokens=list(completion.tokens),
        response_length=len(completion.tokens),
        status="truncated" if completion.finish == "length" else "completed",
        reward=None,
    )


def _record(call: Call, attempt: Attempt) -> Any:
    completion = attempt.completion
    prompt_messages = _prompt_messages(call, attempt)
    return SimpleNamespace(
        prompt=_prompt_text(call, attempt),
        completion=completion.text,
        final_answer=read_transcript(completion.text).answer,
        answer=column(attempt.problem, "answer"),
        messages=[*prompt_messages, {"role": "assistant", "content": completion.text}],
        tokens=list(completion.tokens),
        logprobs=None if completion.logprobs is None else list(completion.logprobs),
        loss_mask=[int(sampled) for sampled in completion.sampled],
        tool_calls=[],
        tool_results=[],
        source_record=_row(call, attempt),
        metadata=_table("metadata")(call, attempt),
    )


def _problem(call: Call, attempt: Attempt) -> Any:
    return attempt.problem


# In the order in which they are looked for.
FAMILIES: tuple[Family, ...] = (
    Family(
        "TRL and open-r1",
        True,
        {
            "completions": _each(_said),
            "prompts": _each(_prompt),
            "completion_ids": _each(_tokens),
            "trainer_state": _trainer_state,
            "log_extra": lambda call: call.extras.__setitem__,
            "log_metric": lambda call: call.metrics.__setitem__,
        },
        columns=True,
        has_form=True,
    ),
    Family(
        "verl, in batches",
        True,
        {
            "solution_strs": _each(_text),
            "data_sources": _each(_held("data_source")),
            "ground_truths": _each(_held("ground_truth")),
            "extra_infos": _each(_extra_info),
        },
    ),
    Family(
        "verl",
        False,
        {
            "solution_str": _one(_text),
            "data_source": _one(_held("data_source")),
            "ground_truth": _one(_held("ground_truth")),
            "extra_info": _one(_extra_info),
        },
    ),
    Family(
        "OpenRLHF",
        True,
        {
            "queries": _each(_whole),
            "prompts": _each(_prompt_text),
            "labels": _each(_held("label", "labels")),
        },
    ),
    Family(
        "slime, in batches", True, {"samples": _each(_sample), "args": lambda call: SimpleNamespace(**call.settings)}
    ),
    Family("slime", False, {"sample": _one(_sample), "args": lambda call: SimpleNamespace(**call.settings)}),
    Family(
        "verifiers",
        False,
        {
            "completion": _one(_said),
            "prompt": _one(_prompt),
            "answer": _one(_held("answer")),
            "state": _one(_state),
            "task": _one(_held("task")),
            "info": _one(_table("info")),
            "parser": lambda call: _Parser(),
        },
        columns=True,
        has_form=True,
    ),
    Family("AReno", False, {"record": _one(_record)}),
    Family(
        "open-instruct",
        False,
        {
            "prediction": _one(_text),
            "tokenized_prediction": _one(_tokens),
            "label": _one(_held("label", "ground_truth")),
            "query": _one(_prompt_text),
        },
    ),
    Family("rLLM", False, {"action": _one(_text), "task_info": _one(_row)}),
    *(
        Family(
            "plain", False, {name: _one(_text), "problem": _one(_problem), "prompt": _one(_prompt_text)}, columns=True
        )
        for name in ("text", "response")
    ),
)


def responses() -> Iterator[str]:
    """What functions may call the response."""
    return (family.response for family in FAMILIES)


def family_of(names: Sequence[str]) -> Family | None:
    """The family of a function with parameters of these names; None where none of them takes the response."""
    return next((family for family in FAMILIES if family.response in names), None)
