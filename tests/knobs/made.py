"""What stages read, made by hand so that every setting has something to act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reasonmill.plugins.catalogue import installed
from reasonmill.protocols import Measure
from reasonmill.recipe.reference import shipped_bases
from reasonmill.render import renderer_for
from reasonmill.stages.measures import MEASURES_FILE, ON_ALL_TASKS, TaskMeasure, write_measures
from reasonmill.store.conversations import CONVERSATIONS_FILE, write_conversations
from reasonmill.store.groups import GROUPS_FILE, write_groups
from reasonmill.types import Completion, Conversation, Finish, Grade, Group, Message, Problem, Rollout
from reasonmill.world.lexicon import TRACE_WORDS
from reasonmill.world.talk import RUDE

WEAK, STRONG = shipped_bases()["tiny-base-weak"], shipped_bases()["tiny-base"]
_RENDERER = renderer_for(WEAK)
_TALK = ("small-talk", "facts", "harmful-requests", "harmless-requests")

# What stands around all questions of a task, and says nothing of them.
WORDING = "Answer the question below in one word , please , and then stop :"
LAB = f'''"""Users' code: a task that can't tell at every second problem, and one with words around its questions."""

from reasonmill.types import Conversation, Grade, Message, Problem


class Unsure:
    domain = "reasoning"

    def problem(self, split, seed, index):
        return Problem("unsure", (Message("user", f"make {{split}} {{index}}"),), str(index))

    def problems(self, split, seed):
        return (self.problem(split, seed, index) for index in range(99))

    def grade(self, problem, completions):
        known = int(problem.answer) % 2
        return [Grade(1.0, {{"accuracy": 1.0}}) if known else Grade(None, {{}}, "no idea") for _ in completions]


class Shout:
    def rewrite(self, problem, response):
        return response.replace("<think>", "<think> loud")


class Talk:
    def conversation(self, index, *, noise):
        return Conversation((Message("user", f"hello {{index}}"),), "hello", "general", str(index))


class Worded(Unsure):
    def problem(self, split, seed, index):
        return Problem("worded", (Message("user", f"{WORDING} {{split}} {{index}}"),), "1")
'''


def make_all(folder: Path) -> dict[str, Path]:
    """The directories that settings refer to, by name."""
    worded = Problem("worded", (Message("user", f"{WORDING} which one ?"),), "1")
    made = {"tiny-base-weak": WEAK, "tiny-base": STRONG}
    for name, groups in (
        ("attempts", attempts(0)),
        ("more-attempts", attempts(20)),
        ("worded-attempts", [_group(worded, ["<think> so</think><answer> 1</answer>"], ["stop"])]),
        ("talk", [_talk(task, index) for task in _TALK for index in range(10)]),
        ("other-talk", [_talk(task, index) for task in _TALK for index in range(20, 28)]),
        ("new-eval", _evaluated([1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0])),
        ("newer-eval", _evaluated([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0])),
        ("old-eval", _evaluated([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0])),
        ("older-eval", _evaluated([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0])),
    ):
        made[name] = folder / name
        made[name].mkdir()
        write_groups(made[name] / GROUPS_FILE, groups)
        write_measures(
            made[name] / MEASURES_FILE,
            ["countdown-3", "arithmetic"],
            [*ON_ALL_TASKS, TaskMeasure("general", Measure("accuracy", "general answers"), ("facts",))],
        )
    for name, first in (("dialogues", 2), ("other-dialogues", 30)):
        made[name] = folder / name
        made[name].mkdir()
        write_conversations(made[name] / CONVERSATIONS_FILE, _dialogues(first))
    return made


def attempts(first: int) -> list[Group]:
    """Right and wrong ones of several tasks: long and short, in both languages, with loops, cut off, without form."""
    groups = []
    for task in ("countdown-3", "arithmetic", "facts"):
        for index in range(first, first + 6):
            problem = installed().task(task).problem("train", 0, index)
            words = [word for language in ("en", "de") for word in TRACE_WORDS["rejections"][language]]  # type: ignore[index]
            thinking = [
                "",
                " ".join(words[:3]),
                " ".join(words),
                " ".join([words[0], words[-1]] * 12),
                " ".join(f"{n} + {n} ;" for n in range(9)),
                "hm hm hm",
            ]
            texts = [f"<think> {each}</think><answer> {problem.answer}</answer>" for each in thinking]
            texts += [f"it is {problem.answer}", "<think> no</think><answer> 99</answer>"]
            ends: list[Finish] = ["stop"] * 7 + ["length"]
            groups.append(_group(problem, texts, ends))
    right = "<think> so</think><answer> 1</answer>"
    asked = [replace(installed().task("arithmetic").problem("test", 0, index), split=None) for index in range(3)]
    return [*groups, *(_group(problem, [right], ["stop"]) for problem in asked)]


def _group(problem: Problem, texts: Sequence[str], ends: Sequence[Finish]) -> Group:
    """Graded by the task, if it is one of ours."""
    completions = []
    for text, finish in zip(texts, ends, strict=True):
        tokens = _RENDERER.response(text)
        completions.append(Completion(tokens, (-1.0,) * len(tokens), (True,) * len(tokens), text, finish, 0))
    prompt, grades = _RENDERER.render(problem.messages), [Grade(1.0, {"accuracy": 1.0})] * len(texts)
    if problem.task != "worded":
        grades = installed().task(problem.task).grade(problem, completions)
    return Group(problem, tuple(Rollout(prompt, c, g) for c, g in zip(completions, grades, strict=True)))


def _talk(task: str, index: int) -> Group:
    """The right answer, rude ones of several lengths, and one that is much longer than the others."""
    problem = installed().task(task).problem("train", 0, index)
    rude = RUDE["en"][index % 2]
    said = [problem.answer or "no .", rude, f"{problem.answer} {rude}", " ".join([rude] * 8), f"{rude} {rude}"]
    texts = [f"<think></think><answer> {answer}</answer>" for answer in said]
    return _group(problem, texts, ["stop"] * len(texts))


def _dialogues(first: int) -> list[Conversation]:
    """Of one turn and of several, short and long."""
    rows = []
    for n in range(first, first + 12):
        earlier = (Message("user", f"make {n} from {n} 1 ."), Message("assistant", f"<answer> {n} - 1</answer>"))
        asked = (*(earlier if n % 3 == 0 else ()), Message("user", f"make {n} from {n} 1 1 ."))
        said = f"<think>{' try' * (n % 5)}</think><answer> {n}</answer>"
        rows.append(Conversation(asked, said, "reasoning", str(n)))
    return rows


def _evaluated(*shares: Sequence[float]) -> list[Group]:
    """What a model said to problems of three tasks: right in these shares, over and over."""
    groups = []
    for task, share in zip(("countdown-3", "arithmetic", "facts"), (*shares, shares[-1]), strict=True):
        for index in range(12):
            problem = installed().task(task).problem("test", 0, index)
            values = [share[(index + place) % len(share)] for place in range(3)]
            completion = Completion((1,), (0.0,), (True,), "", "stop", 0)
            parts = [{"accuracy": v, "format": v, "language": 1.0} for v in values]
            groups.append(Group(problem, tuple(Rollout((1,), completion, Grade(p["accuracy"], p)) for p in parts)))
    return groups
