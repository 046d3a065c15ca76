"""Collection from a teacher and curation by a judge: the stages around the servers."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chat_server import Answer, ChatServerFake, chat_server, says
from contexts import BACKEND, KEY, a_context
from kept_progress import KeptProgress
from reasonmill.errors import Interrupted, RecipeError
from reasonmill.mill.pipeline import run_recipe
from reasonmill.plugins.catalogue import installed
from reasonmill.randomness import key
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.rewards import verdicts
from reasonmill.servers.settings import ServerError
from reasonmill.stage import Input, Outcome, StageContext
from reasonmill.stages import collect, curate
from reasonmill.store.conversations import CONVERSATIONS_FILE, read_conversations
from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.home import Home
from reasonmill.store.verification import verify_home
from reasonmill.types import Completion, Grade, Group, Rollout

COUNTDOWN = installed().task("countdown-3")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as opened:
        yield opened


def context(home: Home, stop: Callable[[], bool] = lambda: False) -> StageContext:
    return a_context(home, stop_requested=stop)


def server(fake: ChatServerFake) -> dict[str, Any]:
    return {"url": fake.url, "model": "large", "retries": 0, "concurrency": 2}


# Collection


def collecting(**changed: object) -> collect.Settings:
    chosen = {"name": "teacher-rollouts", "kind": "collect", "tasks": {"countdown-3": 4}, "problems_per_commit": 2}
    return collect.Settings.model_validate({**chosen, "samples": 3, "sampling": {"max_tokens": 64}, **changed})


# The teacher knows which problems the stage draws.
_SEED = key("problems", 0, "teacher-rollouts")
ANSWERS = {
    problem.messages[0].content: problem.answer
    for problem in (COUNTDOWN.problem("train", _SEED, index) for index in range(4))
}


def solves_every_second(body: dict[str, Any], number: int) -> Answer:
    """Gives the right answer where the seed is even."""
    answer = ANSWERS[body["messages"][-1]["content"]]
    return says(answer if body["seed"] % 2 == 0 else "1 + 1", reasoning_content="let me see")


def rollouts(outcome: Outcome, directory: Path) -> list[Group]:
    directory.mkdir()
    outcome.write(directory)
    return read_groups(directory / GROUPS_FILE)


def test_a_teacher_is_collected_from_like_any_other_model(home: Home, tmp_path: Path) -> None:
    with chat_server(solves_every_second) as fake:
        outcome = collect.run(collecting(teacher=server(fake)), {}, context(home))
    groups = rollouts(outcome, tmp_path / "rollouts")
    assert len(fake.bodies) == 12
    assert len({body["seed"] for body in fake.bodies}) == 12
    rights = [rollout.grade.parts["accuracy"] for group in groups for rollout in group.rollouts]
    assert 0 < sum(rights) < 12
    assert sum(rights) == sum(body["seed"] % 2 == 0 for body in fake.bodies)
    completion = groups[0].rollouts[0].completion
    assert completion.text.startswith("<think>let me see</think><answer>")
    assert (completion.tokens, completion.logprobs) == ((), None)
    assert outcome.metrics["collected"]["countdown-3"]["pass@1"]["value"] == pytest.approx(sum(rights) / 12)


def test_after_a_failure_only_what_was_not_committed_is_asked_again(home: Home, tmp_path: Path) -> None:
    with chat_server(lambda b, n: solves_every_second(b, n) if n < 6 else Answer({}, 503)) as fake:
        settings = collecting(teacher=server(fake))
        with pytest.raises(ServerError, match="HTTP 503"):
            collect.run(settings, {}, context(home))
        first = [body["seed"] for body in fake.bodies[:6]]
    with chat_server(solves_every_second) as fake:
        outcome = collect.run(collecting(teacher=server(fake)), {}, context(home))
        assert not set(first) & {body["seed"] for body in fake.bodies}
        assert len(fake.bodies) == 6
    assert len(rollouts(outcome, tmp_path / "rollouts")) == 4


def test_a_teacher_is_asked_once_more_for_committed_answers_that_are_lost(home: Home, tmp_path: Path) -> None:
    def gives_up(body: dict[str, Any], number: int) -> Answer:
        return solves_every_second(body, number) if number < 6 else Answer({}, 503)

    with chat_server(gives_up) as fake, pytest.raises(ServerError):
        collect.run(collecting(teacher=server(fake)), {}, context(home))
    lost = str(home.ledger.step_groups(KEY, 0))
    home.objects.delete(lost)
    with chat_server(lambda body, number: says(f"number {number}")) as fake:
        outcome = collect.run(collecting(teacher=server(fake)), {}, context(home))
        assert len(fake.bodies) == 12
    texts = {rollout.completion.text for group in rollouts(outcome, tmp_path / "new") for rollout in group.rollouts}
    assert len(texts) == 12
    assert home.ledger.step_groups(KEY, 0) not in (lost, None)
    assert [incident.done for incident in home.ledger.incidents()] == [
        "the groups of step 0 are sampled again",
        "the new ones take their place",
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "exactly one of from"),
        ({"from": "tiny-base", "teacher": {"url": "http://host/v1", "model": "large"}}, "exactly one of from"),
        ({"teacher": {"url": "http://host/v1", "model": "large"}, "sampling": {"top_k": 3}}, "no top_k"),
        ({"teacher": {"url": "http://host/v1", "model": "large"}, "sampling": {"slots": 512}}, "slots and precision"),
        ({"teacher": {"url": "http://host/v1", "model": "large"}, "precision": "auto"}, "slots and precision"),
        ({"teacher": {"url": "http://host/v1"}}, "model"),
    ],
)
def test_settings_of_a_teacher_that_make_no_sense_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        collecting(**changed)


# Curation


def curating(fake: ChatServerFake, **changed: object) -> curate.Settings:
    chosen = {"name": "judged-data", "kind": "curate", "data": ["rollouts"], "keep": {"correct": False}}
    return curate.Settings.model_validate({**chosen, "judge": server(fake), **changed})


@pytest.fixture
def collected(tmp_path: Path) -> Input:
    """Ten problems with one answer each: its own number. Graders call none of them right; two are not readable."""
    directory = tmp_path / "collected"
    directory.mkdir()
    groups = []
    for index in range(10):
        text = f"<think> hm {index}</think><answer> {index}</answer>" if index < 8 else f"aloud {index}"
        completion = Completion((), None, (), text, "stop", 0)
        rollout = Rollout((1,), completion, Grade(0.0, {"accuracy": 0.0}))
        groups.append(Group(COUNTDOWN.problem("train", 0, index), (rollout,)))
    write_groups(directory / GROUPS_FILE, groups)
    return Input(directory, "digest")


def by_number(body: dict[str, Any], number: int) -> Answer:
    """Calls 0 to 3 correct and 4 to 6 wrong, and talks about 7."""
    answer = int(body["messages"][-1]["content"].split("===== THE ANSWER TO CHECK\n")[1].split("\n")[0])
    return says("CORRECT" if answer < 4 else "INCORRECT" if answer < 7 else "Hard to say.")


def test_what_the_judge_calls_correct_is_kept_and_the_rest_is_counted(
    home: Home, tmp_path: Path, collected: Input
) -> None:
    with chat_server(by_number) as fake:
        outcome = curate.run(curating(fake), {"data[0]": collected}, context(home))
    (tmp_path / "dataset").mkdir()
    outcome.write(tmp_path / "dataset")
    rows = read_conversations(tmp_path / "dataset" / CONVERSATIONS_FILE)
    assert sorted(row.response for row in rows) == [f"<think> hm {n}</think><answer> {n}</answer>" for n in range(4)]
    dropped = {reason: count for reason, count in outcome.metrics["dropped"].items() if count}
    assert dropped == {"malformed": 2, "judged_wrong": 3, "not_judged": 1}
    assert (outcome.metrics["sampled"], outcome.metrics["kept"]) == (10, 4)
    assert len(fake.bodies) == 8  # what is not readable is not worth a request
    assert json.loads((tmp_path / "dataset" / curate.COUNTS_FILE).read_text()) == outcome.metrics


def test_grader_and_judge_can_both_be_asked_and_without_a_judge_no_reason_is_its_own(
    home: Home, collected: Input
) -> None:
    with chat_server(by_number) as fake, pytest.raises(RecipeError, match="10 incorrect"):
        curate.run(curating(fake, keep={"correct": True}), {"data[0]": collected}, context(home))
    assert fake.bodies == []
    outcome = curate.run(curating(fake, judge=None), {"data[0]": collected}, context(home))
    assert outcome.metrics["kept"] == 8
    assert not {"judged_wrong", "not_judged"} & outcome.metrics["dropped"].keys()


def test_saved_verdicts_are_not_asked_for_again(home: Home, collected: Input, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "AT_ONCE", 3)
    with chat_server(lambda b, n: by_number(b, n) if n < 3 else Answer({}, 503)) as fake:
        with pytest.raises(ServerError):
            curate.run(curating(fake), {"data[0]": collected}, context(home))
        first = {body["messages"][0]["content"] for body in fake.bodies[:3]}
    with chat_server(by_number) as fake:
        stops = iter([False, True])
        with pytest.raises(Interrupted, match="6 of 8 verdicts"):
            curate.run(curating(fake), {"data[0]": collected}, context(home, lambda: next(stops)))
        last = context(home)
        outcome = curate.run(curating(fake), {"data[0]": collected}, last)
        second = {body["messages"][0]["content"] for body in fake.bodies}
    assert len(fake.bodies) == len(second) == 5
    assert not first & second
    assert last.progress.done == [7, 8, 10]  # type: ignore[attr-defined]
    assert outcome.metrics["dropped"]["judged_wrong"] == 3


def test_a_dataset_that_the_judge_left_nothing_of_is_an_error(home: Home, collected: Input) -> None:
    with chat_server(lambda body, number: says("Well.")) as fake, pytest.raises(RecipeError, match="8 not_judged"):
        curate.run(curating(fake), {"data[0]": collected}, context(home))


# Both as a recipe


@pytest.fixture
def recipe_of_two(tmp_path: Path) -> Callable[[ChatServerFake], Recipe]:
    """A teacher's rollouts, and the dataset that the judge leaves of them."""

    def load(fake: ChatServerFake) -> Recipe:
        path = tmp_path / "two.toml"
        path.write_text(
            f"""name = "two"

[[stage]]
name = "teacher-rollouts"
kind = "collect"
teacher = {{ url = "{fake.url}", model = "teacher", concurrency = 1 }}
tasks = {{ countdown-3 = 4 }}
samples = 3
problems_per_commit = 2

[[stage]]
name = "judged-data"
kind = "curate"
data = ["teacher-rollouts"]
judge = {{ url = "{fake.url}", model = "judge", concurrency = 1 }}
keep = {{ correct = false }}
"""
        )
        return load_recipe(str(path))

    return load


@pytest.mark.parametrize("lost", ["judged-data", "teacher-rollouts"])
def test_a_deleted_artifact_is_made_again_exactly_without_asking_anybody(
    tmp_path: Path, recipe_of_two: Callable[[ChatServerFake], Recipe], lost: str
) -> None:
    """Although both servers would say something else by now."""

    def changes_its_mind(body: dict[str, Any], number: int) -> Answer:
        if body["model"] == "teacher":
            return says(f"{body['seed']} at {number}", reasoning_content=f"let me see {number}")
        return says(["CORRECT", "INCORRECT", "Who knows?"][number % 5 % 3])

    with chat_server(changes_its_mind) as fake:
        recipe = recipe_of_two(fake)

        def digests() -> dict[str, str]:
            with Home.open(tmp_path / "home") as home:
                made = run_recipe(
                    recipe, home, KeptProgress(), until=None, backend=BACKEND, stop_requested=lambda: False
                )
            return {stage.name: stage.artifact.digest for stage in made.stages}

        first = digests()
        assert len(fake.bodies) == 24
        with Home.open(tmp_path / "home") as home:
            home.objects.delete(first[lost])
        assert digests() == first
        assert len(fake.bodies) == 24


def test_a_run_says_which_of_its_stages_asked_a_server(
    tmp_path: Path, recipe_of_two: Callable[[ChatServerFake], Recipe]
) -> None:
    """Also where all that it asked was kept, and nobody is asked again."""

    def run() -> dict[str, Any]:
        with Home.open(tmp_path / "home") as home:
            progress = KeptProgress()
            made = run_recipe(recipe, home, progress, until=None, backend=BACKEND, stop_requested=lambda: False)
            assert "teacher-rollouts, judged-data asked" in (made.directory / "report.html").read_text()
            return {stage["name"]: stage for stage in made.summary["stages"]}

    with chat_server(says_its_number) as fake:
        recipe = recipe_of_two(fake)
        first = run()
        assert {name: stage["repeatable"] for name, stage in first.items()} == {
            "teacher-rollouts": False,
            "judged-data": False,
        }
        with Home.open(tmp_path / "home") as home:
            home.objects.delete(first["judged-data"]["digest"])
        asked = len(fake.bodies)
        assert not run()["judged-data"]["repeatable"]
        assert len(fake.bodies) == asked


Answers = Callable[[dict[str, Any], int], Answer]


def says_its_number(body: dict[str, Any], number: int) -> Answer:
    if body["model"] == "judge":
        return says("CORRECT")
    return says(f"{body['seed']} at {number}", reasoning_content="let me see")


@pytest.mark.parametrize(
    ("later", "why"),
    [
        (says_its_number, "they differ when they are sampled again"),
        (lambda body, number: Answer({}, 400), "they can't be sampled again"),
    ],
)
def test_a_finished_collection_does_without_answers_that_the_teacher_does_not_give_again(
    tmp_path: Path, recipe_of_two: Callable[[ChatServerFake], Recipe], later: Answers, why: str
) -> None:
    now: Answers = says_its_number
    with chat_server(lambda body, number: now(body, number)) as fake:
        run = runner(tmp_path / "home", recipe_of_two(fake))
        made, _ = run()
        lost = lose_groups(tmp_path / "home", made["teacher-rollouts"][0], 1)
        now = later
        asked = len(fake.bodies)
        assert run()[1][0].startswith(f"objects/{lost} is missing; stage teacher-rollouts stays finished without")
        assert run() == (made, [])
        assert len(fake.bodies) == asked
        again, (missing, given_up) = run(repair=True)
        assert again == made
        assert missing.startswith(f"objects/{lost} is missing; stage teacher-rollouts is run again")
        assert given_up.startswith(f"objects/{lost} is lost for good, the groups of step 1: {why}")
        assert verify_home(tmp_path / "home").problems == ()
        asked = len(fake.bodies)
        assert run(repair=True) == (made, [])
        assert len(fake.bodies) == asked


def test_a_missing_key_makes_no_answers_lost_for_good(
    tmp_path: Path, recipe_of_two: Callable[[ChatServerFake], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat_server(lambda body, number: says_its_number(body, 0)) as fake:
        recipe = recipe_of_two(fake)
        run = runner(tmp_path / "home", recipe)
        made, _ = run()
        lose_groups(tmp_path / "home", made["teacher-rollouts"][0], 1)
        settings: Any = recipe.nodes[0].settings
        keyed = settings.teacher.model_copy(update={"api_key_env": "NO_SUCH_KEY"})
        with monkeypatch.context() as patch:
            patch.setitem(settings.__dict__, "teacher", keyed)
            with pytest.raises(RecipeError, match="NO_SUCH_KEY holds no API key"):
                run(repair=True)
        again, told = run(repair=True)
        assert again == made
        assert not any("lost for good" in line for line in told)
        assert verify_home(tmp_path / "home").problems == ()


def test_a_collection_that_lost_its_artifact_and_answers_is_made_anew(
    tmp_path: Path, recipe_of_two: Callable[[ChatServerFake], Recipe]
) -> None:
    with chat_server(says_its_number) as fake:
        run = runner(tmp_path / "home", recipe_of_two(fake))
        made, _ = run()
        key, digest = made["teacher-rollouts"]
        lose_groups(tmp_path / "home", key, 1)
        with Home.open(tmp_path / "home") as home:
            home.objects.delete(digest)
        asked = len(fake.bodies)
        again, told = run()
        assert len([body for body in fake.bodies[asked:] if body["model"] == "teacher"]) == 6
        assert again["teacher-rollouts"] != made["teacher-rollouts"]
        assert any(note.endswith("the new ones take their place") for note in told)
        assert any("rebuilt with different content" in note for note in told)
        assert run() == (again, [])
        assert verify_home(tmp_path / "home").problems == ()


def runner(home_path: Path, recipe: Recipe) -> Callable[..., tuple[dict[str, tuple[str, str]], list[str]]]:
    """Runs the recipe in a newly opened home; returns key and digest of each stage, and what was told."""

    def run(*, repair: bool = False) -> tuple[dict[str, tuple[str, str]], list[str]]:
        progress = KeptProgress()
        with Home.open(home_path) as home:
            made = run_recipe(
                recipe, home, progress, until=None, backend=BACKEND, stop_requested=lambda: False, repair=repair
            )
        notes = [note for note in progress.notes if "cached" not in note]
        return {stage.name: (stage.key, stage.artifact.digest) for stage in made.stages}, notes

    return run


def lose_groups(home_path: Path, key: str, step: int) -> str:
    with Home.open(home_path) as home:
        digest = str(home.ledger.step_groups(key, step))
        home.objects.delete(digest)
    return digest


def test_a_home_that_lost_verdicts_is_sound_without_them(
    tmp_path: Path, recipe_of_two: Callable[[ChatServerFake], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "AT_ONCE", 5)

    def answer(body: dict[str, Any], number: int) -> Answer:
        return says(str(body["seed"]), reasoning_content="hm") if body["model"] == "teacher" else says("CORRECT")

    with chat_server(answer) as fake:
        run = runner(tmp_path / "home", recipe_of_two(fake))
        run()
        asked = len(fake.bodies)
        with Home.open(tmp_path / "home") as home:
            (beside,) = (key for key in home.ledger.begun_stages() if key.endswith("/verdicts"))
            (_, first), *later = home.ledger.steps(beside)
            assert later
            home.objects.delete(str(first))
        assert [note.split("; ")[1] for note in run()[1]] == ["the judge is asked again where they are needed"]
        assert verify_home(tmp_path / "home").problems == ()
        assert len(fake.bodies) == asked  # the dataset is there
