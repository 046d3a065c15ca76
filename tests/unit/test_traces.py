"""The corpus's reasoning: right step by step, with the stated habits, and answers that follow from the thinking."""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest

from reasonmill.transcript import read_transcript
from reasonmill.types import Problem
from reasonmill.world.arithmetic import Arithmetic
from reasonmill.world.countdown import Countdown, Step, expression_of, solves
from reasonmill.world.lexicon import TRACE_WORDS, language_of, words_in
from reasonmill.world.traces import MAX_TRIES, TraceHabits, TraceWriter, reasoning_document

APPLY: dict[str, Callable[[int, int], int]] = {
    "+": int.__add__,
    "-": int.__sub__,
    "*": int.__mul__,
    "/": int.__floordiv__,
}
STEP = r"\d+ [-+*/] \d+ = \d+"
TRY = re.compile(rf"(?P<opening>[a-z]+) (?P<steps>{STEP}(?: ; {STEP})*) (?P<verdict>[a-z]+)(?: |$)")
THINKS = TraceHabits(think=1.0)


@dataclass(frozen=True)
class Try:
    """One try of a Countdown trace."""

    opening: str
    steps: list[Step]
    verdict: str


@dataclass(frozen=True)
class Trace:
    """A Countdown response that thought, taken apart."""

    problem: Problem
    tries: list[Try]
    gave_up: bool
    answer: str
    thinking: str

    @property
    def hit(self) -> bool:
        return bool(self.tries[-1].steps[-1].result == self.problem.meta["target"])


def either(purpose: str) -> set[str]:
    return {word for words in TRACE_WORDS[purpose].values() for word in words}


def read_step(text: str) -> Step:
    left, operator, right, equals, result = text.split()
    assert equals == "="
    return Step(int(left), operator, int(right), int(result))


def is_right(step: Step) -> bool:
    divides = step.operator != "/" or step.left % step.right == 0
    return divides and APPLY[step.operator](step.left, step.right) == step.result


def read_countdown(problem: Problem, response: str) -> Trace:
    transcript = read_transcript(response)
    assert transcript.well_formed
    assert transcript.answer is not None
    rest, tries = transcript.thinking, []
    while match := TRY.match(rest):
        tries.append(Try(match["opening"], [read_step(s) for s in match["steps"].split(" ; ")], match["verdict"]))
        rest = rest[match.end() :]
    assert rest == "" or rest in either("give_ups"), rest
    return Trace(problem, tries, bool(rest), transcript.answer, transcript.thinking)


def countdown_problems(count: int, num_given: int = 3) -> Iterator[Problem]:
    return (countdown_problem(index, num_given) for index in range(count))


@cache
def countdown_problem(index: int, num_given: int) -> Problem:
    return Countdown(f"countdown-{num_given}", counts=(num_given,)).problem("train", 5, index)


@cache
def arithmetic_problem(index: int) -> Problem:
    return Arithmetic().problem("train", 5, index)


def countdown_traces(habits: TraceHabits, count: int, num_given: int = 3) -> list[Trace]:
    writer = TraceWriter(habits, random.Random(11))
    return [read_countdown(p, writer.countdown(p)) for p in countdown_problems(count, num_given)]


def arithmetic_responses(habits: TraceHabits, count: int) -> list[tuple[Problem, str]]:
    writer = TraceWriter(habits, random.Random(12))
    problems = map(arithmetic_problem, range(count))
    return [(problem, writer.arithmetic(problem)) for problem in problems]


def assert_share(successes: int, count: int, probability: float) -> None:
    """Within 5 standard deviations of what is expected."""
    assert count > 200
    deviation = math.sqrt(count * probability * (1 - probability))
    assert abs(successes - count * probability) < 5 * deviation, (successes / count, probability)


@pytest.fixture(scope="module", params=[3, 4])
def traces(request: pytest.FixtureRequest) -> list[Trace]:
    """Countdown traces of patient and impatient writers who all think."""
    return countdown_traces(TraceHabits(think=1.0, patient=0.5), 400, request.param)


# Countdown


def test_every_step_is_right_and_every_try_uses_each_number_once(traces: list[Trace]) -> None:
    for trace in traces:
        for attempt in trace.tries:
            assert all(is_right(step) for step in attempt.steps)
            remaining = Counter(trace.problem.meta["numbers"])
            for step in attempt.steps:
                remaining.subtract([step.left, step.right])
                assert min(remaining.values()) >= 0, (trace.problem.meta, attempt)
                remaining[step.result] += 1
            assert +remaining == Counter([attempt.steps[-1].result])


def test_a_try_is_called_a_success_if_and_only_if_it_hits(traces: list[Trace]) -> None:
    for trace in traces:
        for attempt in trace.tries:
            hit = attempt.steps[-1].result == trace.problem.meta["target"]
            assert attempt.verdict in either("successes" if hit else "rejections")
            assert attempt.opening in either("openings")
    assert {trace.hit for trace in traces} == {True, False}


def test_thinking_ends_at_the_first_hit_or_gives_up(traces: list[Trace]) -> None:
    for trace in traces:
        results = [attempt.steps[-1].result for attempt in trace.tries]
        assert trace.problem.meta["target"] not in results[:-1]
        assert trace.gave_up is not trace.hit
        assert 1 <= len(trace.tries) <= MAX_TRIES


def test_the_answer_is_the_last_try(traces: list[Trace]) -> None:
    for trace in traces:
        last = trace.tries[-1].steps
        assert trace.answer == expression_of(last)
        assert solves(trace.answer, trace.problem.meta["numbers"], last[-1].result)


@pytest.mark.parametrize(
    ("habits", "probability"),
    [
        (TraceHabits(think=1.0, patient=0.0), 0.65),
        (TraceHabits(think=1.0, patient=1.0), 0.1),
        (THINKS, 0.1 * 0.1 + 0.9 * 0.65),
        (TraceHabits(think=1.0, patient=0.0, give_up=0.3), 0.3),
    ],
)
def test_how_often_the_first_miss_is_the_last(habits: TraceHabits, probability: float) -> None:
    missed = [t for t in countdown_traces(habits, 700) if t.tries[0].steps[-1].result != t.problem.meta["target"]]
    assert_share(sum(len(trace.tries) == 1 for trace in missed), len(missed), probability)


def test_a_writer_stays_patient_for_the_whole_document() -> None:
    # After three misses almost all who still try are patient: (0.35 ^ 3 * 0.9) against (0.9 ^ 3 * 0.1) is 35 to 65.
    traces = countdown_traces(THINKS, 6000)
    long = [trace for trace in traces if len(trace.tries) > 4 or (len(trace.tries) == 4 and trace.gave_up)]
    impatient, patient = 0.9 * 0.35**3, 0.1 * 0.9**3
    probability = (impatient * 0.65 + patient * 0.1) / (impatient + patient)
    assert_share(sum(len(trace.tries) == 4 for trace in long), len(long), probability)


def test_even_the_most_patient_stop_after_12_tries() -> None:
    traces = countdown_traces(TraceHabits(think=1.0, patient=0.0, give_up=0.0), 400, num_given=4)
    lengths = Counter(len(trace.tries) for trace in traces if not trace.hit)
    assert set(lengths) == {MAX_TRIES}
    assert MAX_TRIES == 12


# Arithmetic


def test_arithmetic_thinking_is_the_chain_of_the_problem() -> None:
    for problem, response in arithmetic_responses(TraceHabits(think=1.0, cut_short=0.0), 300):
        transcript = read_transcript(response)
        assert transcript.well_formed
        steps = [read_step(step) for step in re.findall(STEP, transcript.thinking)]
        assert all(map(is_right, steps))
        assert [[step.operator, step.right] for step in steps] == problem.meta["operations"]
        values = [problem.meta["start"], *(step.result for step in steps)]
        assert [step.left for step in steps] == values[:-1]
        assert transcript.answer == problem.answer == str(values[-1])
        words = words_in(transcript.thinking)
        assert len(words) == len(steps)
        assert set(words) <= either("steps")


def test_cut_short_thinking_is_right_as_far_as_it_goes_and_answers_with_its_last_result() -> None:
    kept: Counter[int] = Counter()
    for problem, response in arithmetic_responses(TraceHabits(think=1.0, cut_short=1.0), 300):
        transcript = read_transcript(response)
        steps = [read_step(step) for step in re.findall(STEP, transcript.thinking)]
        assert all(map(is_right, steps))
        operations = problem.meta["operations"]
        assert 1 <= len(steps) < len(operations)
        assert [[step.operator, step.right] for step in steps] == operations[: len(steps)]
        assert transcript.answer == str(steps[-1].result)
        kept[len(steps)] += 1
    assert set(kept) == {1, 2, 3, 4, 5}


def test_how_often_arithmetic_is_cut_short() -> None:
    responses = arithmetic_responses(THINKS, 1000)
    cut = sum(len(re.findall(STEP, response)) < len(problem.meta["operations"]) for problem, response in responses)
    assert_share(cut, 1000, 0.3)


# Habits of both


def countdown_responses(habits: TraceHabits, count: int) -> list[tuple[Problem, str]]:
    writer = TraceWriter(habits, random.Random(13))
    return [(problem, writer.countdown(problem)) for problem in countdown_problems(count)]


@pytest.mark.parametrize("respond", [countdown_responses, arithmetic_responses])
def test_how_many_think(respond: Callable[[TraceHabits, int], list[tuple[Problem, str]]]) -> None:
    responses = [response for _, response in respond(TraceHabits(), 1000)]
    unthinking = [response for response in responses if not read_transcript(response).thinking]
    assert_share(len(responses) - len(unthinking), 1000, 0.45)
    empty = sum(response.startswith("<think></think><answer> ") for response in unthinking)
    bare = sum(response.startswith("<answer> ") for response in unthinking)
    assert empty + bare == len(unthinking)
    assert_share(empty, len(unthinking), 0.4)


def test_guessed_answers_use_the_numbers_and_worked_out_ones_are_right() -> None:
    for problem, response in countdown_responses(TraceHabits(think=0.0), 300):
        answer = read_transcript(response).answer
        assert answer is not None
        assert sorted(map(int, re.findall(r"\d+", answer))) == sorted(problem.meta["numbers"])
    for problem, response in arithmetic_responses(TraceHabits(think=0.0), 50):
        assert read_transcript(response).answer == problem.answer


@pytest.mark.parametrize("respond", [countdown_responses, arithmetic_responses])
@pytest.mark.parametrize("keep_language", [0.0, 0.65, 1.0])
def test_how_many_words_keep_the_language(
    respond: Callable[[TraceHabits, int], list[tuple[Problem, str]]], keep_language: float
) -> None:
    kept = [
        language_of(word) == problem.meta["language"]
        for problem, response in respond(TraceHabits(think=1.0, keep_language=keep_language), 400)
        for word in words_in(response)
    ]
    if keep_language in (0.0, 1.0):
        assert set(kept) == {bool(keep_language)}
    else:
        assert_share(sum(kept), len(kept), keep_language)


# Documents


def test_a_reasoning_document_is_named_by_its_seed_and_index() -> None:
    def made(seed: int, index: int) -> tuple[str, str]:
        return reasoning_document(random.Random(1), TraceHabits(), seed, index)

    assert made(3, 4) == made(3, 4)
    assert len({made(3, 4)[0], made(3, 5)[0], made(4, 4)[0]}) == 3


def test_shares_of_the_tasks() -> None:
    kinds: Counter[str] = Counter()
    rng = random.Random(2)
    for index in range(2000):
        prompt, _ = reasoning_document(rng, TraceHabits(), 0, index)
        chain = " then " in prompt or " dann " in prompt
        kinds["arithmetic" if chain else f"countdown-{len(re.findall(r'[0-9]+', prompt)) - 1}"] += 1
    assert set(kinds) == {"countdown-3", "countdown-4", "arithmetic"}
    assert_share(kinds["countdown-3"], 2000, 5 / 9)
    assert_share(kinds["arithmetic"], 2000, 2 / 9)
