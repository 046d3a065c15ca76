"""Fine-tuning: what is learned of a conversation, in which order, and that a stopped run ends in the same weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contexts import KEY, a_context
from reasonmill.errors import Interrupted, RecipeError
from reasonmill.recipe.reference import shipped_bases
from reasonmill.render import renderer_for
from reasonmill.stage import Input, Outcome
from reasonmill.stages.sft import Epochs, Settings, ce_example, run
from reasonmill.store.conversations import CONVERSATIONS_FILE, write_conversations
from reasonmill.store.home import Home
from reasonmill.types import Conversation, Message

BASE = shipped_bases()["tiny-base-weak"]
RESPONSE = "<think>{}</think><answer> {}</answer>"
CONVERSATIONS = [
    Conversation(
        (Message("user", f"make {n} from {n} 1 1 ."),), RESPONSE.format(" try" * (n % 3), n), "reasoning", str(n)
    )
    for n in range(2, 12)
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path: Path) -> Input:
    path = tmp_path / "data"
    path.mkdir()
    write_conversations(path / CONVERSATIONS_FILE, CONVERSATIONS)
    return Input(path, "d" * 64)


def settings(**changes: object) -> Settings:
    table = {"name": "tuned", "kind": "sft", "from": "tiny-base-weak", "data": ["curated"], "epochs": 4,
             "conversations_per_step": 4, "schedule": {"peak": 1e-3}, **changes}  # fmt: skip
    return Settings.model_validate(table)


def fine_tune(home: Path, data: Input, chosen: Settings, stop: Callable[[], bool] = lambda: False) -> Outcome:
    with Home.open(home) as opened:
        context = a_context(opened, stop_requested=stop)
        return run(chosen, {"from": Input(BASE, "b" * 64), "data[0]": data}, context)


def weights(outcome: Outcome, target: Path) -> dict[str, torch.Tensor]:
    target.mkdir()
    outcome.write(target)
    return load_file(target / "model.safetensors")


def test_only_the_response_and_its_end_are_learned() -> None:
    renderer = renderer_for(BASE)
    example = ce_example(CONVERSATIONS[0], renderer)
    prompt = renderer.render(CONVERSATIONS[0].messages)
    learned = [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]
    assert tuple(example.tokens[: len(prompt)]) == prompt
    assert renderer.text(learned[:-1]) == CONVERSATIONS[0].response
    assert learned[-1] in renderer.stop_tokens
    assert len(learned) == len(example.tokens) - len(prompt)


def test_every_epoch_reads_each_row_once_in_an_order_of_its_own() -> None:
    epochs = Epochs(range(10), 4, (0, "tuned"))
    assert epochs.steps_per_epoch == 3
    steps = list(epochs.feed(0, 9))
    orders = [[row for rows in steps[3 * e : 3 * e + 3] for row in rows] for e in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert list(Epochs(range(10), 4, (0, "tuned")).feed(4, 9)) == steps[4:]
    assert list(Epochs(range(10), 4, (1, "tuned")).feed(4, 9)) != steps[4:]


def test_the_model_learns_the_responses(tmp_path: Path, data: Input) -> None:
    outcome = fine_tune(tmp_path / "home", data, settings(epochs=8))
    with Home.open(tmp_path / "home") as home:
        steps = home.ledger.metrics(KEY)
    assert len(steps) == 24
    assert steps[-1]["loss/ce"] < 0.5 * steps[0]["loss/ce"]
    assert outcome.metrics["conversations"] == 10
    assert outcome.metrics["loss/ce"] == steps[-1]["loss/ce"]


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_stopped_run_ends_in_the_same_weights(lora: object, tmp_path: Path, data: Input) -> None:
    chosen = settings(lora=lora, schedule={"peak": 1e-2 if lora else 1e-3})
    whole = weights(fine_tune(tmp_path / "one", data, chosen), tmp_path / "whole")
    looks = iter([False] * 5)
    with pytest.raises(Interrupted):
        fine_tune(tmp_path / "two", data, chosen, stop=lambda: next(looks, True))
    resumed = weights(fine_tune(tmp_path / "two", data, chosen), tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with Home.open(tmp_path / "one") as home:
        steps = home.ledger.metrics(KEY)
    assert steps[-1]["loss/ce"] < steps[0]["loss/ce"]
    assert (tmp_path / "whole" / "adapter").is_dir() == bool(lora)
    base = load_file(BASE / "model.safetensors")
    assert any(not torch.equal(whole[name], base[name]) for name in base)


def test_long_conversations_are_left_out_and_counted(tmp_path: Path, data: Input) -> None:
    longest = max(len(ce_example(conversation, renderer_for(BASE)).tokens) for conversation in CONVERSATIONS)
    kept = sum(len(ce_example(c, renderer_for(BASE)).tokens) < longest for c in CONVERSATIONS)
    assert 0 < kept < 10
    outcome = fine_tune(tmp_path / "home", data, settings(max_tokens=longest - 1, epochs=1))
    assert (outcome.metrics["conversations"], outcome.metrics["too_long"]) == (kept, 10 - kept)
    with pytest.raises(RecipeError, match="none of the 10 conversations has at most 2 tokens"):
        fine_tune(tmp_path / "other", data, settings(max_tokens=2))
