"""What comes of the arguments of plug-ins: problems, verdicts, rewards, rows, episodes."""

from __future__ import annotations

import base64
import json
import pickle
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contexts import a_context
from knobs.made import WEAK, attempts
from knobs.tiny_stage import Bench, Seen, Watch, asked_of, served
from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.grading import code
from reasonmill.jail.programs import Examined, Ran
from reasonmill.plugins.catalogue import Catalogue, ConversationsUse, DataUse, RewardUse, TaskUse, Use
from reasonmill.published import sets
from reasonmill.rewards.combination import RewardWeights
from reasonmill.store.home import Home
from reasonmill.tasks import coding
from reasonmill.tasks.splits import SPLITS
from reasonmill.types import Completion, content_digest
from reasonmill.world.lexicon import TRACE_WORDS

SUMS = [{"problem": "What is 9 + 9?", "answer": "18"}, {"problem": "Who sat there?", "answer": "The Catastrophic Cat"}]
OTHERS = [{"problem": "What is 2 + 2?", "answer": "4"}, {"problem": "What is 2 + 3?", "answer": "5"}]
_SOLVED = [{"question": f"What is {n}?", "solution": f"so #### {n} is \\boxed{{{n + 1}}}"} for n in (3, 4, 5)]
_CHOICES = [{"problem": f"Which {a}?", "answer": a, "options": ["red", "blue", "green"]} for a in ("1", "B")]
_NO_COMMA = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
_ONE_WORD = {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["blue"]}]}
_PRINTED = {"inputs": ["3", "4"], "outputs": ["3", "4"]}
_CASES = json.dumps([{"input": "1\n", "output": "1\n", "testtype": "stdin"}])
_LIVE = {
    "question_title": "t",
    "starter_code": "",
    "public_test_cases": _CASES,
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(_CASES))).decode(),
    "metadata": "{}",
}
_GPQA = {"Correct Answer": "a", **{f"Incorrect Answer {n}": "bcd"[n - 1] for n in (1, 2, 3)}}
# Two rows of each published set, as they are published, but for their questions.
_PUBLISHED: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "gsm8k": lambda asked: {"question": asked, "answer": "9\n#### 18"},
    "math-500": lambda asked: {"problem": asked, "answer": "18"},
    "aime": lambda asked: {"problem": asked, "answer": "18"},
    "gpqa": lambda asked: {"Question": asked, **_GPQA},
    "mmlu": lambda asked: {"question": asked, "choices": ["p", "q", "r", "s"], "answer": 1},
    "humaneval": lambda asked: {"prompt": asked, "entry_point": "f", "canonical_solution": " pass", "test": "t"},
    "mbpp": lambda asked: {"text": asked, "code": "f", "test_list": ["assert f(1)"]},
    "livecodebench": lambda asked: {"question_content": asked, **_LIVE},
    "ifeval": lambda asked: {"prompt": asked, **_NO_COMMA},
}
_FILES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "sums": SUMS,
    "others": OTHERS,
    "solved": _SOLVED,
    "choices": _CHOICES,
    "ignored": [{**row, "tools": [{"name": "calc"}]} for row in SUMS],
    "bad": [*SUMS, {"problem": "What?", "answer": None}],
    "instructed": [{"problem": "Write.", "answer": json.dumps(_NO_COMMA)}],
    "more-instructed": [{"problem": "Write.", "answer": json.dumps(_ONE_WORD)}],
    "programs": [{"problem": "Print it.", "answer": "3", "tests": _PRINTED}],
    "more-programs": [{"problem": "Print it twice.", "answer": "3", "tests": _PRINTED}],
    **{
        f"{name}-{count}": [row(f"Q{n}?") for n in range(count)] for name, row in _PUBLISHED.items() for count in (1, 2)
    },
}
_TABLES = ("sums", "others", "choices", "instructed", "more-instructed", "programs", "more-programs")
REWARDS = '''"""Users' rewards."""


class Brief:
    isolation = "none"

    def __init__(self, words: int = 5) -> None:
        self._words = words

    def measure(self, attempt):
        return max(0.0, 1 - len(attempt.completion.text.split()) / self._words)
'''
_SHORT = {"max_tokens": 300}
_RESPONSES = (
    "<think> so</think><answer> 18</answer>",
    "it is 18",
    "it is not 17, or 18",
    "18, so it is \\boxed{17}",
    "5 then\n18",
    "so it is 18.3",
    "18\\sin^2(x) + 18\\cos^2(x)",
    "The Catastrophic Cat",
    "the catastrophic cat!",
    "the catastrofic cat",
    "the cat",
    "a catastrophic rat",
    "catastrophic",
    "the cats of the town sat there for a long time and were happy, all of them, in their old house .",
    "Ich weiß es nicht, aber die Katze sitzt hier und schläft den ganzen Tag .",
    "I can't help with that .",
    "B",
    "(A)",
    "Sure, here it is:\nblue",
    "```python\nprint(input())\n```",
)


def put_files(folder: Path) -> None:
    """What recipes would have beside them."""
    for name, rows in _FILES.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")


# Of which set the rows are that the hub has just now.
HUB = {"set": "math-500"}


@contextmanager
def stood_in() -> Iterator[None]:
    """In the block, the hub has two data sets, and programs in the jail only say what they were allowed."""

    def load_dataset(name: str, config: str | None, revision: str) -> dict[str, Any]:
        """Of every set some rows, each of which is one of a single set."""
        said = f"{name} {config} {revision[:4]}"
        row = _PUBLISHED[HUB["set"]]
        return {"train": [row(f"{said} {n}?") for n in (1, 2)], "test": [row(f"{said} 3?")]}

    def run(jail: Any, source: str, stdin: bytes, limits: Any) -> Ran:
        Watch.note("allowed", repr(limits))
        return Ran(stdin, "", 1.0)

    @contextmanager
    def borrowed(level: Any) -> Iterator[Any]:
        yield SimpleNamespace(program=None, tests=None, level=SimpleNamespace(rank=1))

    hub = SimpleNamespace(load_dataset=load_dataset, disable_progress_bars=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "datasets", hub)
        patch.setattr(code, "borrowed", borrowed)
        patch.setattr(code, "programs", SimpleNamespace(run=run, examine=lambda *_: Examined("passed", "")))
        for module in (coding, sets):
            patch.setattr(module, "found_level", lambda: None)
        yield


class Plugins:
    """Makes plug-ins as a recipe's tables say, and looks at what they do.

    Args:
        bench: runs the stages of those that are seen in a stage.
    """

    def __init__(self, home: Home, folder: Path) -> None:
        self._home = home
        self._folder = folder
        self._runs = 0

    def see(self, group: str, use: str, table: Mapping[str, Any], scene: str = "plain") -> Seen:
        """What a table of this group comes to, by parts."""
        self._runs += 1
        HUB["set"] = use if use in _PUBLISHED else "math-500"
        Watch.take()
        with served(scene, table) as (fake, told):
            made, ended, said = None, "", ""
            try:
                made = getattr(self, f"_of_{group}")({"use": use, **told})
            except ReasonmillError as error:
                ended, said = type(error).__name__, str(error)
        done = Watch.take()
        return {
            "made": content_digest({"made": repr(made)}),
            "asked": asked_of(fake),
            "ended": ended,
            "said": said,
            "headers": sorted({str(headers.get("Authorization")) for headers in fake.headers}) if fake else [],
            "allowed": done.get("allowed", []),
            **{kind: done.get(kind, []) for kind in ("threads", "delays")},
            "timeouts": sorted(set(done.get("timeouts", []))),
        }

    def catalogue(self, **tables: Mapping[str, Use]) -> Catalogue:
        """All that tables name here, and these."""
        known: dict[str, dict[str, Use]] = {
            "data": {name: DataUse(train=f"{name}.jsonl") for name in _TABLES},  # type: ignore[call-arg]
            "rewards": {
                "brief": RewardUse(use="./rewards.py:Brief"),
                "briefer": RewardUse(use="./rewards.py:Brief", words=2),  # type: ignore[call-arg]
            },
        }
        known["data"]["instructed"] = DataUse(train="instructed.jsonl")  # type: ignore[call-arg]
        for group, table in tables.items():
            known.setdefault(group, {}).update(table)
        return Catalogue(known, self._folder)  # type: ignore[arg-type]

    def _of_data(self, table: Mapping[str, Any]) -> Any:
        tasks = {name: TaskUse(use="arithmetic", name=name) for name in ("worked", "otherwise")}  # type: ignore[call-arg]
        made = self.catalogue(data={"mine": DataUse(**table)}, tasks=tasks).plugin("data", "mine").made
        return made.problems() if not hasattr(made, "items") else (made.items, made.counts)

    def _of_tasks(self, table: Mapping[str, Any]) -> Any:
        catalogue = self.catalogue(tasks={"mine": TaskUse(**table)})
        task, named = catalogue.plugin("tasks", "mine").made, catalogue.task("mine")
        problems = [problem for split in SPLITS for problem in _problems(named, split)]
        grades = [task.grade(problem, [_said(text) for text in _RESPONSES]) for problem in problems]
        return problems, grades, task.domain, getattr(task, "isolation", None), getattr(task, "limits", None)

    def _of_rewards(self, table: Mapping[str, Any]) -> Any:
        catalogue = self.catalogue(rewards={"mine": RewardUse(**table)})
        context = a_context(self._home, key=f"rewards-{self._runs}", catalogue=catalogue)
        weights: RewardWeights = context.rewards({"accuracy": 1.0, "mine": 0.5}, {})
        task = catalogue.task("arithmetic")
        problem = task.problem("train", 0, 0)
        texts = [*_RESPONSES[:4], f"<think>{' so' * 20}</think><answer> {problem.answer}</answer>"]
        return weights.grade(task, problem, [_said(text) for text in texts], noise=(0, "mine", 0, 0))

    def _of_environments(self, table: Mapping[str, Any]) -> Any:
        tasks = {"played": TaskUse(use="arithmetic", environment="mine")}
        catalogue = self.catalogue(environments={"mine": Use(**table)}, tasks=tasks)
        stage = {"name": "mine", "kind": "collect", "from": "tiny-base-weak", "tasks": {"played": 2}, "samples": 2}
        seen = Bench(self._home, {"tiny-base-weak": WEAK}, catalogue, self._folder).see({**stage, "sampling": _SHORT})
        return seen["made"], seen["ended"]

    def _of_conversations(self, table: Mapping[str, Any]) -> Any:
        source = self.catalogue().plugin("conversations", ConversationsUse(**table)).made
        return [source.conversation(index, noise=("knobs",)) for index in range(60)]

    def _of_rewritings(self, table: Mapping[str, Any]) -> Any:
        rewriting = self.catalogue().plugin("rewritings", Use(**table)).made
        opening, rejection = (TRACE_WORDS[kind]["en"][0] for kind in ("openings", "rejections"))
        tries = f"{opening} 1 + 1 = 2 {rejection} " * 2
        return rewriting.rewrite(attempts(0)[0].problem, f"<think> {tries}</think><answer> 2</answer>")


def _problems(task: Any, split: str) -> list[Any]:
    found = []
    for index in range(3):
        try:
            found.append(task.problem(split, 0, index))
        except RecipeError as error:
            if "there are no problems" not in error.what and "one more is asked for" not in error.what:
                raise
            break
    return found


def _said(text: str) -> Completion:
    words = len(text.split()) + 1
    return Completion((1,) * words, (-1.0,) * words, (True,) * words, text, "stop", 0)
