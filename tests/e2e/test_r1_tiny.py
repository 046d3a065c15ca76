"""The whole recipe at reduced size: every stage runs, is cached, and makes the same again when its artifact is gone."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.content import directory_digest
from reasonmill.mill.pipeline import RunResult, run_recipe
from reasonmill.mill.planning import plan
from reasonmill.plugins.catalogue import installed
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.reference import StageSource, shipped_bases
from reasonmill.store.conversations import CONVERSATIONS_FILE, read_conversations
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.types import Artifact, Group

RL = {"steps": "1", "problems_per_step": "6", "group_size": "4", "updates_per_step": "2", "sampling.max_tokens": "32"}
COLLECT = {"tasks": "{arithmetic=30}", "samples": "2", "sampling.max_tokens": "96"}
ASKED = "{arithmetic=4, facts=4, harmful-requests=3, harmless-requests=3}"
SMALLER: dict[str, dict[str, str]] = {
    "zero": RL,
    "cold-rollouts": COLLECT,
    "cold-data": {"keep": "{min_language=0.5}", "decontaminate": ASKED},
    "dev1": {"epochs": "1"},
    "dev2": RL,
    "sampled": COLLECT,
    "sft-data": {"keep": "{per_problem=1}", "decontaminate": ASKED, "general.conversations": "40"},
    "dev3": {"epochs": "1"},
    "general-rollouts": {
        "tasks": "{facts=24, small-talk=12, harmful-requests=8, harmless-requests=8}",
        "samples": "4",
        "sampling.max_tokens": "32",
    },
    "helpfulness-rm": {"held_out": "0.5", "min_margin": "0.05", "epochs": "1"},
    "safety-rm": {"held_out": "0.4", "epochs": "1"},
    "r1": RL
    | {
        "steps": "2",
        "problems_per_step": "12",
        "tasks": "{arithmetic=0.4, facts=0.3, harmful-requests=0.3}",
    },
    "small-data": {"keep": "{per_problem=1}", "decontaminate": ASKED},
    "small-sft": {"epochs": "1"},
    "small-distill": RL,
    "small-rl": RL,
    **{
        f"{model}-eval": {"tasks": ASKED, "samples": "2", "sampling.max_tokens": "16"}
        for model in ("dev3", "base", "zero", "dev1", "dev2", "r1")
    },
    **{
        f"small-{model}-eval": {"tasks": "{countdown-3=2}", "samples": "2", "sampling.max_tokens": "16"}
        for model in ("base", "rl", "sft", "distill")
    },
    "gate": {"better": '["arithmetic"]'},
}
OVERRIDES = [f"{stage}.{key}={value}" for stage, settings in SMALLER.items() for key, value in settings.items()]


def run(recipe: Recipe, home: Home, until: str | None = None) -> RunResult:
    return run_recipe(recipe, home, KeptProgress(), until=until, backend=BACKEND, stop_requested=lambda: False)


@dataclass(frozen=True)
class Mill:
    """A home in which the recipe was run."""

    home: Home
    recipe: Recipe
    first: RunResult

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """What the first run made, by the names of the stages."""
        return {stage.name: stage.artifact for stage in self.first.stages}

    def metrics(self, stage: str) -> Mapping[str, Any]:
        return self.artifacts[stage].metrics

    def file(self, stage: str, name: str) -> Path:
        return self.home.objects.path(self.artifacts[stage].digest) / name

    def groups_of_steps(self, stage: str) -> list[list[Group]]:
        """The groups that each step of a stage was trained on."""
        ledger, objects = self.home.ledger, self.home.objects
        key = next(result.key for result in self.first.stages if result.name == stage)
        digests = [ledger.step_groups(key, entry["step"]) for entry in ledger.metrics(key)]
        return [read_groups(objects.path(str(digest)) / GROUPS_FILE) for digest in digests]


@pytest.fixture(scope="module")
def mill(without_charts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    recipe = load_recipe("r1-tiny", OVERRIDES)
    with Home.open(tmp_path_factory.mktemp("r1-tiny") / "home") as home:
        yield Mill(home, recipe, run(recipe, home))


def test_every_stage_runs_and_is_made_smaller(mill: Mill) -> None:
    names = [node.settings.name for node in mill.recipe.nodes]
    assert [stage.name for stage in mill.first.stages] == names
    assert set(names) == set(SMALLER)  # a stage that is new here would run at its full size
    assert not any(stage.cached for stage in mill.first.stages)


def test_a_second_run_is_all_cache_hits_and_rewrites_nothing(mill: Mill) -> None:
    files = [mill.first.directory / name for name in ("summary.json", "report.html", "model/config.json")]
    before = [path.stat().st_mtime_ns for path in files]
    again = run(mill.recipe, mill.home)
    assert all(stage.cached for stage in again.stages)
    assert [path.stat().st_mtime_ns for path in files] == before
    assert {stage.status for stage in plan(mill.recipe, mill.home, None)} == {"cached"}


@pytest.fixture
def require_made_again(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str]], None]:
    """Some artifacts are made again to the bit when they are deleted together, and nothing else is."""
    # Nobody looks at the report of these runs, and to draw it takes longer than all else.
    monkeypatch.setattr("reasonmill.mill.showcase.write_report", lambda *_: None)

    def require_made_again(names: set[str]) -> None:
        for name in names:
            shutil.rmtree(mill.home.objects.path(mill.artifacts[name].digest))
        for made in (names, set()):
            again = run(mill.recipe, mill.home)
            assert {stage.name for stage in again.stages if not stage.cached} == made
            assert {stage.name: stage.artifact for stage in again.stages} == mill.artifacts

    return require_made_again


def test_a_deleted_artifact_of_each_kind_is_made_again_to_the_bit_and_nothing_else_is(
    mill: Mill, require_made_again: Callable[[set[str]], None]
) -> None:
    first_of_each_kind: dict[str, str] = {}
    for node in mill.recipe.nodes:
        first_of_each_kind.setdefault(node.settings.kind, node.settings.name)
    assert len(first_of_each_kind) == 8
    require_made_again(set(first_of_each_kind.values()))


@pytest.mark.check
def test_every_deleted_artifact_is_made_again_to_the_bit_and_nothing_else_is(
    mill: Mill, require_made_again: Callable[[set[str]], None]
) -> None:
    for name in mill.artifacts:
        require_made_again({name})


def test_the_lineage_of_every_artifact_leads_to_the_shipped_bases(mill: Mill) -> None:
    bases = {directory_digest(path): name for name, path in shipped_bases().items()}
    for node in mill.recipe.nodes:
        name = node.settings.name
        read = [
            mill.artifacts[source.stage].digest
            if isinstance(source, StageSource)
            else directory_digest(shipped_bases()[getattr(node.settings, "from_", None) or "tiny-base"])
            for source in node.sources.values()
        ]
        assert list(mill.home.ledger.artifact(mill.artifacts[name].digest).parents) == read, name
    waiting, found = [mill.artifacts["gate"]], {}
    while waiting:
        artifact = waiting.pop()
        found[artifact.digest] = artifact
        waiting += mill.home.ledger.parents(artifact)
    ends = {artifact.digest for artifact in found.values() if not artifact.parents}
    assert {bases[digest] for digest in ends} == {"tiny-base"}
    # All but the small models, and the checkpoints whose evaluations do not count for the gate.
    apart = {"zero-eval", "dev1-eval", "dev2-eval", *(name for name in mill.artifacts if name.startswith("small-"))}
    assert {artifact.stage for artifact in found.values()} == set(mill.artifacts) - apart | {"tiny-base"}


@pytest.mark.parametrize(("data", "rollouts"), [("cold-data", "cold-rollouts"), ("sft-data", "sampled")])
def test_what_curation_dropped_and_kept_adds_up(mill: Mill, data: str, rollouts: str) -> None:
    counts = mill.metrics(data)
    samples = sum(len(group.rollouts) for group in read_groups(mill.file(rollouts, GROUPS_FILE)))
    assert counts["sampled"] == samples == 60
    assert counts["sampled"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["kept"] > 0
    assert counts["dropped"]["incorrect"] > 0
    general = counts.get("general", {"sampled": 0, "kept": 0, "dropped": {}})
    assert general["sampled"] == general["kept"] + sum(general["dropped"].values())
    sources = [row.source for row in read_conversations(mill.file(data, CONVERSATIONS_FILE))]
    assert sources.count("reasoning") == counts["kept"]
    assert sources.count("general") == general["kept"]
    assert len(sources) == counts["conversations"] == sum(counts["sources"].values())


def test_fine_tuning_reads_what_curation_kept(mill: Mill) -> None:
    for model, data in (("dev1", "cold-data"), ("dev3", "sft-data"), ("small-sft", "small-data")):
        read = mill.metrics(model)
        assert read["conversations"] + read["too_long"] == mill.metrics(data)["conversations"]


def test_what_reward_models_learn_from_adds_up(mill: Mill) -> None:
    groups = read_groups(mill.file("general-rollouts", GROUPS_FILE))
    domains = [installed().task(group.problem.task).domain for group in groups]
    drawn = {
        "helpfulness-rm": 6 * domains.count("helpfulness"),  # all pairs of four samples
        "safety-rm": 4 * domains.count("safety"),
    }
    for model, count in drawn.items():
        counts = {name: value for name, value in mill.metrics(model).items() if name.startswith("examples/")}
        assert counts.pop("examples/drawn") == count == sum(counts.values())
        assert counts["examples/train"] > 0
        assert counts["examples/held_out"] > 0
        accuracy = mill.metrics(model)["held_out/accuracy"]
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1


def test_reward_models_judge_general_prompts_in_the_last_steps_only(mill: Mill) -> None:
    before, after = mill.groups_of_steps("r1")
    assert {installed().task(group.problem.task).domain for group in before} == {"reasoning"}
    judges = {"reasoning": "accuracy", "helpfulness": "helpfulness", "safety": "safety"}
    assert {installed().task(group.problem.task).domain for group in after} == set(judges)
    weights = next(node.settings.model_dump()["rewards"] for node in mill.recipe.nodes if node.settings.name == "r1")
    for group in after:
        domain = installed().task(group.problem.task).domain
        for rollout in group.rollouts:
            counted = {"format", "language", judges[domain]}
            assert rollout.grade.reward == pytest.approx(
                sum(rollout.grade.parts[name] * weights[name] for name in counted)
            )


def test_training_and_evaluation_share_no_problem(mill: Mill) -> None:
    trained = {
        group.problem.messages
        for stage in ("zero", "dev2", "r1", "small-distill", "small-rl")
        for groups in mill.groups_of_steps(stage)
        for group in groups
    }
    for stage in ("cold-rollouts", "sampled", "general-rollouts"):
        trained |= {group.problem.messages for group in read_groups(mill.file(stage, GROUPS_FILE))}
    trained |= {row.messages for row in read_conversations(mill.file("sft-data", CONVERSATIONS_FILE))}
    evaluations = [name for name in mill.artifacts if name.endswith("-eval")]
    asked = {group.problem.messages for name in evaluations for group in read_groups(mill.file(name, GROUPS_FILE))}
    assert len(asked) == 4 + 4 + 3 + 3 + 2
    assert not trained & asked


def test_the_run_hands_over_the_model_of_the_verdict(mill: Mill) -> None:
    verdict = mill.metrics("gate")
    # After so little training nothing can be shown to be better.
    assert not verdict["promoted"]
    assert len(verdict["rules"]) == 6
    assert len(verdict["reasons"]) == 7  # the last one says how often such a verdict errs
    assert verdict["model"] == directory_digest(shipped_bases()["tiny-base"])
    assert directory_digest(mill.first.directory / "model") == verdict["model"]
