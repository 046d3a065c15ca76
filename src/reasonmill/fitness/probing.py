"""Answers that a model is made to give: at once, without thinking, and after what it said without an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reasonmill.activity import each
from reasonmill.protocols import Progress, Renderer, Sampler
from reasonmill.randomness import Part, key
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import ANSWER_CLOSE, ANSWER_OPEN, TAGS, THINK_CLOSE, THINK_OPEN, read_transcript
from reasonmill.types import Completion, Grade, Group, Problem, Request, Rollout, SamplingParams

# Tokens of an answer that is given at once, at least; where the gold answer is long, twice as many as that has. More
# would let a model think within its answer.
ANSWER_TOKENS = 32
# Attempts at a problem that are made to answer after all: each is read once more.
CONTINUED = 2
# How a turn begins that leaves no room for thinking.
AT_ONCE = f"{THINK_OPEN}{THINK_CLOSE}{ANSWER_OPEN}"


@dataclass(frozen=True)
class Probed:
    """The attempts at a problem, and the answers that the model was made to give.

    Attributes:
        at_once: grades of answers without thinking; as many as there are attempts.
        continued: by the attempt's number, the grade of the answer that was to follow what it had said; of attempts
            that ended by themselves and have no answer, the first few.
    """

    group: Group
    at_once: tuple[Grade, ...]
    continued: dict[int, Grade]


@dataclass(frozen=True)
class _Asked:
    """A turn that the model is to end: what it has said so far, and for which attempt."""

    place: int
    sample: int
    begun: str
    at_once: bool


def said_before(text: str) -> str:
    """What a completion says before its answer, tags left out: its thinking, however it is marked. Without any tag, the
    last line is the answer."""
    if not any(tag in text for tag in TAGS):
        return text.strip().rpartition("\n")[0].strip()
    return _without_tags(text.partition(ANSWER_OPEN)[0])


def _without_tags(text: str) -> str:
    for tag in TAGS:
        text = text.replace(tag, "")
    return text.strip()


def probe(
    sampler: Sampler,
    renderer: Renderer,
    task: NamedTask,
    groups: Sequence[Group],
    *,
    params: SamplingParams,
    noise: tuple[Part, ...],
    progress: Progress,
) -> list[Probed]:
    """Asks for answers in R1's format whose thinking is empty, or what the model said without an answer.

    There are none where they could not be right: where an attempt is a conversation with an environment, and where the
    grader does not take most gold answers in this format.

    Args:
        params: those of the attempts.
        noise: names the draw.
    """
    if task.environment is not None or not _takes_golds(task, [group.problem for group in groups], noise):
        return [Probed(group, (), {}) for group in groups]
    asked = [turn for place, group in enumerate(groups) for turn in _turns(place, group)]
    requests = [_request(turn, groups[turn.place], renderer, params, noise) for turn in asked]
    todo = [(turn, request) for turn, request in zip(asked, requests, strict=True) if request is not None]
    progress.begin(f"{task.name}, answers at once", len(todo), "answers")
    said: dict[int, dict[_Asked, Completion]] = {}
    drawn = each("sampling", sampler.generate([request for _, request in todo]))
    for number, (index, completion) in enumerate(drawn, start=1):
        turn = todo[index][0]
        # Where it was cut off, the answer is what there is of it.
        text = completion.text.removeprefix(renderer.opening).partition(ANSWER_CLOSE)[0]
        whole = replace(completion, text=f"{turn.begun}{text}{ANSWER_CLOSE}", finish="stop")
        said.setdefault(turn.place, {})[turn] = whole
        progress.advance(number, {})
    progress.end({})
    return [_graded(task, group, said.get(place, {}), (*noise, place)) for place, group in enumerate(groups)]


def _takes_golds(task: NamedTask, problems: Sequence[Problem], noise: tuple[Part, ...]) -> bool:
    """Whether most gold answers are right where a model is made to answer."""
    right = 0
    for problem in problems:
        gold = Completion((), None, (), f"{AT_ONCE}{problem.answer}{ANSWER_CLOSE}", "stop", 0)
        (grade,) = ACCURACY_ALONE.grade(task, problem, [gold], noise=noise)
        right += grade.reward == 1.0
    return right > len(problems) / 2


def _turns(place: int, group: Group) -> list[_Asked]:
    at_once = [_Asked(place, sample, AT_ONCE, at_once=True) for sample in range(len(group.rollouts))]
    unanswered = [(n, rollout.completion.text) for n, rollout in enumerate(group.rollouts) if _can_continue(rollout)]
    continued = [
        _Asked(place, number, f"{THINK_OPEN}{_without_tags(text)}{THINK_CLOSE}{ANSWER_OPEN}", at_once=False)
        for number, text in unanswered[:CONTINUED]
    ]
    return at_once + continued


def _can_continue(rollout: Rollout) -> bool:
    text = rollout.completion.text
    has_no_answer = read_transcript(text).answer is None and ANSWER_OPEN not in text
    return has_no_answer and rollout.completion.finish == "stop" and bool(_without_tags(text))


def _request(
    turn: _Asked, group: Group, renderer: Renderer, params: SamplingParams, noise: tuple[Part, ...]
) -> Request | None:
    """What asks for the rest of a turn; None where the attempt's limit leaves no room for an answer."""
    begun = renderer.response(turn.begun)[:-1]
    room = params.max_tokens - (0 if turn.at_once else len(begun))
    if room < 1:
        return None
    limit = min(room, max(ANSWER_TOKENS, 2 * renderer.num_tokens([group.problem.answer])[0]))
    draws = replace(params, max_tokens=limit, stop=(*params.stop, ANSWER_CLOSE))
    name = "at once" if turn.at_once else "continued"
    prompt = (*group.rollouts[turn.sample].prompt_tokens, *begun)
    return Request(prompt, draws, key("sample", *noise, name, turn.place, turn.sample))


def _graded(task: NamedTask, group: Group, said: dict[_Asked, Completion], noise: tuple[Part, ...]) -> Probed:
    turns = list(said)
    grades = ACCURACY_ALONE.grade(task, group.problem, list(said.values()), noise=noise) if turns else []
    pairs = list(zip(turns, grades, strict=True))
    return Probed(
        group,
        tuple(grade for turn, grade in pairs if turn.at_once),
        {turn.sample: grade for turn, grade in pairs if not turn.at_once},
    )
