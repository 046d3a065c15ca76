"""What the process that samples does beside the device: milliseconds of its main thread for a rollout of `evaluate`.

    python benchmarks/host_cost.py MODEL                       # 512 problems, 4 samples each
    python benchmarks/host_cost.py MODEL --sentences 12        # longer completions

MODEL is a directory with a tokenizer; nothing is computed with the model. Problems and completions are sentences of
`language_sentences.toml` with words exchanged, so that hardly two are alike. All of them are there at once.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonmill.plugins.catalogue import Catalogue, DataUse, TaskUse
from reasonmill.protocols import Renderer
from reasonmill.render import renderer_for
from reasonmill.sample.requests import completion
from reasonmill.stages import evaluate
from reasonmill.stages.sampling import Surroundings
from reasonmill.types import Completion, Request

SENTENCES: list[str] = tomllib.loads(Path(__file__).with_name("language_sentences.toml").read_text("utf-8"))["en"]
WORDS = sorted({word.strip(",.") for sentence in SENTENCES for word in sentence.split()})
# What comes after what: the parts of the table.
PROMPTS, TEXTS, GRADING, FIGURES = "prompts", "texts", "grading", "figures"


def prose(chance: random.Random, sentences: int) -> str:
    """Sentences, of which every fourth word is another one."""
    said = (word for sentence in chance.choices(SENTENCES, k=sentences) for word in sentence.split())
    return " ".join(chance.choice(WORDS) if chance.random() < 0.25 else word for word in said)


class Clock:
    """Adds up what passes between its marks. It is the progress of the stage, too, which ends a part of it."""

    def __init__(self) -> None:
        self.wall: defaultdict[str, float] = defaultdict(float)
        self.thread: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter(), time.thread_time()

    def mark(self, part: str) -> None:
        """Gives to a part what passed since the last mark."""
        now = time.perf_counter(), time.thread_time()
        self.wall[part] += now[0] - self._last[0]
        self.thread[part] += now[1] - self._last[1]
        self._last = now

    def begin(self, stage: str, total: int, unit: str) -> None:
        self.mark(PROMPTS)

    def advance(self, done: int, metrics: Mapping[str, Any]) -> None:
        self.mark(GRADING)

    def end(self, metrics: Mapping[str, Any]) -> None:
        pass


class Scripted:
    """A sampler: what is said is known beforehand."""

    version, repeatable, in_fp32 = 0, True, True

    def __init__(self, renderer: Renderer, said: Sequence[tuple[int, ...]], clock: Clock) -> None:
        self._renderer = renderer
        self._said = iter(said)
        self._clock = clock

    def generate(self, requests: Sequence[Request], follow_up: Any = None) -> Iterator[tuple[int, Completion]]:
        self._clock.mark(PROMPTS)
        for index, request in enumerate(requests):
            tokens = next(self._said)
            done = completion(request, self._renderer, tokens, [-0.5] * len(tokens), "stop", 0)
            self._clock.mark(TEXTS)
            yield index, done
            self._clock.mark(GRADING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--workers", type=int, help="read languages from 4 on; one for each processor if unset")
    parser.add_argument("--sentences", type=int, default=6, help="of a completion's thinking")
    given = parser.parse_args()
    chance = random.Random(0)
    renderer = renderer_for(given.model)
    rollouts = given.problems * given.samples
    said = [
        renderer.response(f"<think>\n{prose(chance, given.sentences)}\n</think>\n<answer>{number % 7}</answer>")
        for number in range(rollouts)
    ]
    rows = [{"question": prose(chance, 4), "answer": str(number % 5)} for number in range(given.problems)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        use = TaskUse.model_validate({"use": "math", "data": "rows", "answer_in": "answer"})
        data = DataUse.model_validate({"test": "rows.jsonl"})
        catalogue = Catalogue({"tasks": {"sums": use}, "data": {"rows": data}}, folder)
        settings = evaluate.Settings.model_validate(
            {
                "name": "evaluation",
                "kind": "evaluate",
                "from": "tiny-base",
                "tasks": {"sums": given.problems},
                "samples": given.samples,
            },
            context={"catalogue": catalogue},
        )
        task = catalogue.task("sums")
        task.language_share(prose(chance, 1), "en")  # reads the model of languages
        clock = Clock()
        scripted: Any = Scripted(renderer, said, clock)
        with catalogue.workers.limited_to(given.workers):
            if task.read_ahead:
                task.read_ahead(prose(chance, given.sentences))()  # starts the workers
            clock.mark("start")
            found, _ = evaluate._evaluate(settings, {"sums": task}, 0, scripted, renderer, Surroundings(clock))
            clock.mark(FIGURES)
    language = found["tasks"]["sums"]["language"]["value"]
    print(f"{rollouts} rollouts, {sum(map(len, said)) / rollouts:.0f} tokens each, language {language:.6f}")
    print(f"{'ms a rollout':12} {'wall':>8} {'thread':>8}")
    for part in (PROMPTS, TEXTS, GRADING, FIGURES):
        print(f"{part:12} {1000 * clock.wall[part] / rollouts:8.3f} {1000 * clock.thread[part] / rollouts:8.3f}")
    walls, threads = (sum(times.values()) - times["start"] for times in (clock.wall, clock.thread))
    print(f"{'all':12} {1000 * walls / rollouts:8.3f} {1000 * threads / rollouts:8.3f}")


if __name__ == "__main__":
    main()
