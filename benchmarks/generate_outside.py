"""Is a model that reasonmill made the same outside of it? Its directory is run by transformers alone, and compared.

MODEL is what was made of BASE; both are directories, shipped bases, or RUN/STAGE of --home. Compared with BASE are the
files beside the weights, the config, and the types of the weights. What `generate()` says, in a process that never
imports reasonmill (`outside_side.py`), is compared with what the sampler says: pass@1 at temperature 1 on the same
held-out problems, where reasonmill's graders grade both, and in fp32 the likeliest tokens. Exit code 1 if a bar is
missed.

    PYTHONPATH=src python benchmarks/generate_outside.py mill/runs/r1-zero-tiny/model tiny-base --task countdown-3
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import safe_open
from seeds import Verdict, conclude, figure, interval, number, print_json, say, values
from transformers import AutoConfig
from transformers.utils import logging

from reasonmill.algo.comparison import Comparison, paired_comparison
from reasonmill.algo.intervals import Estimate
from reasonmill.backends.native import NativeBackend
from reasonmill.jail.level import ACCEPTED
from reasonmill.mill.artifacts import find_model
from reasonmill.model.directory import beside_weights
from reasonmill.placement import Backend, Placement
from reasonmill.plugins.catalogue import installed
from reasonmill.protocols import Renderer
from reasonmill.recipe.load import load_recipe
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.rollouts import collect
from reasonmill.stages.measures import graded_part, values_of
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Group, Problem, Request, Rollout, SamplingParams

LEVEL = 0.01  # at which no single task may differ, in pass@1 and in lengths, for all of them together
# What a config says of the program that wrote it and of where it was read.
OF_THE_WRITER = ("transformers_version", "_name_or_path")
ACCURACY = graded_part("accuracy")
Tokens = Sequence[int]
Measured = Callable[[Problem, Rollout], float | None]


def main() -> int:
    logging.disable_progress_bar()
    options = _parser().parse_args()
    if options.accept_unisolated_code:
        os.environ[ACCEPTED] = "1"
    model, base = (find_model(text, options.home, say) for text in (options.model, options.base))
    catalogue = installed() if options.recipe is None else load_recipe(options.recipe).catalogue
    tasks = {name: catalogue.task(name) for name in dict.fromkeys(options.task)}
    problems = {
        name: [task.problem("test", options.seed, index) for index in range(options.problems)]
        for name, task in tasks.items()
    }
    of_each = math.ceil(options.greedy / len(tasks))
    continued = [task.problem("test", options.seed, index) for index in range(of_each) for task in tasks.values()]
    continued = continued[: options.greedy]
    backend = NativeBackend(Placement(options.device))
    renderer = backend.renderer(model)
    if renderer.stop_strings:
        raise SystemExit(f"turns of {model} end with texts, which is not compared here: {renderer.stop_strings}")

    every = [problem for of_task in problems.values() for problem in of_task]
    sampled, greedy = _outside(options, model, [_job(options, every, True), _job(options, continued, False)])
    prompts = [list(renderer.render(problem.messages)) for problem in every]
    verdicts = [
        files_verdict(model, base),
        config_verdict(model, base),
        prompts_verdict(prompts, sampled["prompts"]),
    ]
    parted = _partings(options, backend, model, [renderer.render(each.messages) for each in continued], greedy)
    verdicts.append(greedy_verdict(len(continued), parted))

    outside = _graded(options, tasks, every, renderer, sampled["answers"])
    inside = _sampled(options, backend, model, renderer, tasks, problems)
    found = {
        name: Both.of(*([g for g in side if g.problem.task == name] for side in (outside, inside))) for name in tasks
    }
    whole = Both.of(outside, inside)
    verdicts.append(same_verdict(whole, options.widest))
    of_lengths = {f"the length in {name}": both.p_of_length for name, both in found.items()}
    verdicts.append(each_verdict({name: both.p_value for name, both in found.items()} | of_lengths))
    rows = {**found, "all": whole}
    if options.json:
        content = {
            "model": str(model),
            "base": str(base),
            "device": options.device,
            "stops": {"generate()": sorted(sampled["stops"]), "sampler": sorted(renderer.stop_tokens)},
            "tasks": {name: both.as_json() for name, both in rows.items()},
            "parted": [asdict(each) for each in parted],
        }
        return print_json(content, verdicts)
    print(f"{'pass@1, %':16}{'generate()':>20}{'sampler':>20}{'difference':>20}{'ended, %':>16}{'tokens':>14}")
    for name, both in rows.items():
        cells = "".join(f"{interval(each):>20}" for each in (both.outside, both.inside, both.difference))
        ended, length = (" / ".join(pair) for pair in (map(number, both.ended), (f"{n:.0f}" for n in both.tokens)))
        print(f"{name:16}{cells}{ended:>16}{length:>14}")
    return conclude(verdicts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("base", help="what MODEL was made of: of a smaller student, what is left after `shorten`")
    parser.add_argument("--home", type=Path, default=Path("mill"))
    parser.add_argument("--task", action="append", required=True, help="repeatable")
    parser.add_argument("--recipe", help="a recipe whose own tasks may be named, too")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems of each task")
    parser.add_argument("--samples", type=int, default=4, help="answers of each side to each problem")
    parser.add_argument("--greedy", type=int, default=100, help="prompts that are continued greedily in fp32")
    parser.add_argument("--max-tokens", type=int, default=256, help="length limit of an answer")
    parser.add_argument("--seed", type=int, default=0, help="of the problems and of both draws")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="sampling: fp32 on cpu, bf16 on cuda")
    parser.add_argument("--batch-size", type=int, default=256, help="answers that `generate()` makes together")
    parser.add_argument("--widest", type=float, default=0.05, help="what the interval may reach to either side")
    parser.add_argument("--accept-unisolated-code", action="store_true", help="as of `reasonmill run`")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


# Files


def files_verdict(model: Path, base: Path) -> Verdict:
    """Whether the files beside config and weights are those of the base, with the same bytes."""
    ours, theirs = ({str(file.relative_to(root)): file for file in beside_weights(root)} for root in (model, base))
    wrong = [f"{name} is missing" for name in theirs if name not in ours]
    wrong += [f"{name} is new" for name in ours if name not in theirs]
    both = [name for name in theirs if name in ours]
    other = [name for name in both if ours[name].read_bytes() != theirs[name].read_bytes()]
    wrong += [f"{name} has other bytes" for name in other]
    said = "; ".join(wrong) or f"{', '.join(both)}: the same bytes"
    return Verdict("tokenizer, template, generation settings and all other files are the base's", not wrong, said)


def config_verdict(model: Path, base: Path) -> Verdict:
    """Whether config, names, shapes and types of the weights are those of the base, as transformers reads them."""
    wrong = []
    ours, theirs = (AutoConfig.from_pretrained(path).to_dict() for path in (model, base))
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in OF_THE_WRITER and ours.get(key) != theirs.get(key):
            wrong.append(f"{key} is {ours.get(key)!r}, and was {theirs.get(key)!r}")
    weights = [dict(_weights(path)) for path in (model, base)]
    other = sorted(name for name, what in weights[0].items() if weights[1].get(name, what) != what)
    apart = sorted(weights[0].keys() ^ weights[1].keys())
    wrong += [f"{len(other)} weights have another type or shape, {other[0]} for example"] if other else []
    wrong += [f"{len(apart)} weights are in one of them only, {apart[0]} for example"] if apart else []
    kinds = sorted({kind for kind, _ in weights[0].values()})
    said = "; ".join(wrong) or f"{len(weights[0])} weights of {', '.join(kinds)}, as in the base"
    return Verdict("config and types of the weights are the base's", not wrong, said)


def _weights(path: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Of each weight of a directory (name, (type, shape))."""
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no dictionary
                entry = opened.get_slice(name)
                yield name, (entry.get_dtype(), tuple(entry.get_shape()))


def prompts_verdict(ours: Sequence[Tokens], theirs: Sequence[Tokens]) -> Verdict:
    """Whether the chat template, as transformers applies it, gives the tokens that the sampler reads."""
    same = sum(list(mine) == list(other) for mine, other in zip(ours, theirs, strict=True))
    return Verdict("prompts have the same tokens", same == len(ours), f"{same} of {len(ours)}")


# What generate() says


def _job(options: argparse.Namespace, problems: Sequence[Problem], sampled: bool) -> dict[str, Any]:
    in_bf16 = sampled and options.device == "cuda"
    return {
        "dtype": "bfloat16" if in_bf16 else "float32",
        "conversations": [[asdict(message) for message in problem.messages] for problem in problems],
        "samples": options.samples if sampled else 1,
        "sampled": sampled,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
    }


def _outside(options: argparse.Namespace, model: Path, jobs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What transformers alone answers to jobs, in a process of its own; see `outside_side.py`."""
    with tempfile.TemporaryDirectory(prefix="generate-outside-") as work:
        asked, answers = Path(work) / "asked.json", Path(work) / "answers.json"
        table = {"model": str(model.resolve()), "device": options.device, "batch": options.batch_size, "jobs": jobs}
        asked.write_text(json.dumps(table), encoding="utf-8")
        side = str(Path(__file__).with_name("outside_side.py"))
        subprocess.run([sys.executable, side, str(asked), str(answers)], check=True, stdout=sys.stderr)
        found: list[Any] = json.loads(answers.read_text(encoding="utf-8"))
        return found


# Greedily


@dataclass(frozen=True)
class Parting:
    """Where the sampler and `generate()` say different tokens behind the same ones.

    Attributes:
        prompt: its number.
        place: of the token in the completion.
        sampler, generate: the token of each side; None where it had ended.
        prefix: all tokens before, the prompt's with them.
        likeliest: (token, log-prob) of the two likeliest ones, when transformers runs the prefix alone, not padded.
    """

    prompt: int
    place: int
    sampler: int | None
    generate: int | None
    prefix: tuple[int, ...]
    likeliest: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        (first, most), (second, less) = self.likeliest
        said = f"prompt {self.prompt}, token {self.place}: {self.sampler} of the sampler, {self.generate} of generate()"
        return f"{said}; alone {first}, {most - less:.2g} nats before {second}"


def partings(prompts: Sequence[Tokens], ours: Sequence[Tokens], theirs: Sequence[Tokens]) -> list[Parting]:
    """Where completions of the same prompts part, for those that do."""
    found = []
    for number_of, (prompt, mine, other) in enumerate(zip(prompts, ours, theirs, strict=True)):
        for place, (token, another) in enumerate(zip_longest(mine, other)):
            if token != another:
                found.append(Parting(number_of, place, token, another, (*prompt, *mine[:place])))
                break
    return found


def _partings(
    options: argparse.Namespace, backend: Backend, model: Path, prompts: Sequence[tuple[int, ...]], greedy: Any
) -> list[Parting]:
    """Where the sampler's greedy completions in fp32 part from those of `generate()`."""
    say(f"the sampler, {len(prompts)} prompts greedily in fp32 ...")
    params = SamplingParams(temperature=0.0, max_tokens=options.max_tokens)
    sampler = backend.sampler(model, precision="fp32")
    done = dict(sampler.generate([Request(prompt, params, 0) for prompt in prompts]))
    sampler.rest()
    ours = [done[place].tokens for place in range(len(prompts))]
    found = partings(prompts, ours, [answers[0]["tokens"] for answers in greedy["answers"]])
    if not found:
        return []
    (likeliest,) = _outside(options, model, [{"dtype": "float32", "prefixes": [each.prefix for each in found]}])
    return [replace(each, likeliest=tuple(map(tuple, two))) for each, two in zip(found, likeliest, strict=True)]


def greedy_verdict(prompts: int, parted: Sequence[Parting]) -> Verdict:
    said = "\n        ".join([f"{prompts - len(parted)} of {prompts}", *map(str, parted)])
    return Verdict("greedy completions in fp32 are the same", not parted, said)


# At temperature 1


def _sampled(
    options: argparse.Namespace,
    backend: Backend,
    model: Path,
    renderer: Renderer,
    tasks: Mapping[str, NamedTask],
    problems: Mapping[str, Sequence[Problem]],
) -> list[Group]:
    """What the sampler says to the problems, graded."""
    sampler, groups = backend.sampler(model), []
    params = SamplingParams(max_tokens=options.max_tokens)
    for name, task in tasks.items():
        say(f"the sampler, {name} at temperature 1 ...")
        noise = (options.seed, "outside", name)
        groups += collect(
            sampler,
            renderer,
            {name: task},
            problems[name],
            rewards=ACCURACY_ALONE,
            num_samples=options.samples,
            params=params,
            noise=noise,
        )
    return groups


def _graded(
    options: argparse.Namespace,
    tasks: Mapping[str, NamedTask],
    problems: Sequence[Problem],
    renderer: Renderer,
    answers: Sequence[Sequence[Mapping[str, Any]]],
) -> list[Group]:
    """The same of what `generate()` said."""
    say("grades what generate() said ...")
    groups = []
    for place, (problem, said) in enumerate(zip(problems, answers, strict=True)):
        completions = [
            Completion(
                tokens=tuple(each["tokens"]),
                logprobs=None,
                sampled=(True,) * len(each["tokens"]),
                text=renderer.opening + each["text"],
                finish="stop" if each["ended"] else "length",
                policy_version=0,
            )
            for each in said
        ]
        noise = (options.seed, "outside-graded", place)
        grades = ACCURACY_ALONE.grade(tasks[problem.task], problem, completions, noise=noise)
        pairs = zip(completions, grades, strict=True)
        groups.append(Group(problem, tuple(Rollout((0,), completion, grade) for completion, grade in pairs)))
    return groups


@dataclass(frozen=True)
class Both:
    """What both sides reach on the same problems.

    Attributes:
        outside, inside: pass@1 of `generate()` and of the sampler.
        difference: outside - inside, paired by problem.
        p_value, p_of_length: two-sided, that of no difference in pass@1, and in how long answers are.
        ended: share of the answers that ended by themselves, outside and inside.
        tokens: the mean number of tokens of an answer, outside and inside.
        ungraded: answers that no grader could tell, outside and inside.
    """

    outside: Estimate
    inside: Estimate
    difference: Estimate
    p_value: float
    p_of_length: float
    ended: tuple[float, ...]
    tokens: tuple[float, ...]
    ungraded: tuple[int, ...]

    @classmethod
    def of(cls, outside: Sequence[Group], inside: Sequence[Group]) -> Both:
        """The figures of groups of the same problems, in the same order.

        Raises:
            SystemExit: nothing could be graded.
        """
        sides = (outside, inside)
        drawn = [[rollout for group in groups for rollout in group.rollouts] for groups in sides]
        rates = [figure([values(groups, ACCURACY)]).by_problem for groups in sides]
        longest = max(len(rollout.completion.tokens) for side in drawn for rollout in side)

        def length(_: Problem, rollout: Rollout) -> float:
            return len(rollout.completion.tokens) / longest

        return cls(
            rates[0],
            rates[1],
            _compared(outside, inside, ACCURACY).difference,
            _two_sided(outside, inside, ACCURACY),
            _two_sided(outside, inside, length),
            tuple(fmean(rollout.completion.finish == "stop" for rollout in side) for side in drawn),
            tuple(fmean(len(rollout.completion.tokens) for rollout in side) for side in drawn),
            tuple(sum(rollout.grade.reward is None for rollout in side) for side in drawn),
        )

    @property
    def reach(self) -> float:
        """How far the difference's interval reaches, to its longer side."""
        return max(self.difference.high - self.difference.value, self.difference.value - self.difference.low)

    def as_json(self) -> dict[str, Any]:
        rates = {name: getattr(self, name).as_metric() for name in ("outside", "inside", "difference")}
        return {**asdict(self), **rates}


def _two_sided(outside: Sequence[Group], inside: Sequence[Group], measure: Measured) -> float:
    sides = ((outside, inside), (inside, outside))
    return min(1.0, 2 * min(_compared(*both, measure).p_value for both in sides))


def _compared(candidate: Sequence[Group], parent: Sequence[Group], measure: Measured) -> Comparison:
    rows = [
        (mine, other, group.problem.cluster)
        for group, another in zip(candidate, parent, strict=True)
        if (mine := values_of([group], measure)[0]) and (other := values_of([another], measure)[0])
    ]
    return paired_comparison(
        [mine for mine, _, _ in rows],
        [other for _, other, _ in rows],
        clusters=[cluster for _, _, cluster in rows],
        noise=("generate-outside",),
    )


def same_verdict(both: Both, widest: float) -> Verdict:
    """Whether pass@1 is the same: its interval holds 0, and is narrow enough to say something."""
    low, high = both.difference.low, both.difference.high
    said = f"{interval(both.outside)} and {interval(both.inside)} %, difference {interval(both.difference)} points"
    said += f", which reaches {number(both.reach)} to a side"
    if both.reach > widest:
        said += f": too wide, ask {(both.reach / widest) ** 2:.1f} times as many problems"
    bar = f"pass@1 is the same: the interval of the difference holds 0, and reaches at most {number(widest)} points"
    return Verdict(bar, low <= 0 <= high and both.reach <= widest, said)


def each_verdict(p_values: Mapping[str, float]) -> Verdict:
    """Whether nothing differs in any task (Bonferroni)."""
    lowest = min(p_values, key=lambda name: p_values[name])
    said = f"the least likely is {lowest}, p = {p_values[lowest]:.4f}, of {len(p_values)}"
    bar = f"pass@1 and lengths differ in no task, at {LEVEL:.0%} for all of them together"
    return Verdict(bar, p_values[lowest] * len(p_values) >= LEVEL, said)


if __name__ == "__main__":
    sys.exit(main())
