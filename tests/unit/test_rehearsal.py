"""The rehearsal before a stage's first step: what it runs, that it leaves nothing, and what is kept of it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from contexts import KEY, a_context
from kept_progress import KeptProgress
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import SHARED_FROM, pack
from reasonmill.backends.native import NativeBackend
from reasonmill.errors import OutOfMemory
from reasonmill.learn.layers import LearningLayers
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.rehearsal import rehearsal_batches
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.mill.out_of_memory import told_out_of_memory
from reasonmill.placement import Largest, Placement
from reasonmill.stage import StageContext
from reasonmill.store.home import Home
from reasonmill.store.steps import kept_memory, take_over_memory
from reasonmill.types import Example
from tiny_models import tiny_decoder

PLAIN = LossSettings()


@pytest.fixture
def home(home_path: Path) -> Iterator[Home]:
    with Home.open(home_path) as opened:
        yield opened


@pytest.mark.parametrize(("row", "text"), [(4096, 300), (300, 300), (64, 6), (4096, 66), (1000, 999), (16, 40), (8, 8)])
def test_the_first_batch_has_no_two_sizes_alike_and_none_is_too_large(row: int, text: int) -> None:
    batches = rehearsal_batches(Largest(row, text, "ce", PLAIN), 0)
    first, fullest, *smaller, last = (batch for batch in batches if not batch.continued)
    sizes = [first.num_tokens, max(first.lengths), len(first.lengths) + 1]
    assert len(set(sizes)) == 3
    assert all(size % 2 for size in sizes)
    assert fullest.num_tokens == max(row, 16)
    assert max(fullest.lengths) == min(text - 1, fullest.num_tokens)
    assert [batch.num_tokens for batch in smaller] == sorted({b.num_tokens for b in smaller}, reverse=True)
    for batch in (first, *smaller):
        assert batch.num_tokens <= fullest.num_tokens
        assert max(batch.lengths) < text
    assert last.lengths == fullest.lengths  # by code that was made for the smaller ones, maybe
    batches = rehearsal_batches(Largest(row, text, "ce", PLAIN), 100)
    sizes = [batch.num_tokens for batch in batches if not batch.continued]
    assert sizes == [size for size in sizes if size >= min(100, row - 1)]


@pytest.mark.parametrize(("row", "text"), [(4096, 400), (400, 400), (300, 256), (256, 256)])
def test_a_batch_full_of_texts_that_share_is_rehearsed_where_texts_are_long_enough(row: int, text: int) -> None:
    batches = list(rehearsal_batches(Largest(row, text, "pg", PLAIN), 0))
    sharing = [batch for batch in batches if batch.continued]
    assert len(sharing) == (text > SHARED_FROM)
    for batch in sharing:
        assert row - (text - SHARED_FROM) < batch.num_tokens <= row
        assert batch.longest < text


@pytest.mark.parametrize("kind", ["ce", "pg"])
def test_a_rehearsal_moves_no_bit_of_what_is_learned(kind: Any) -> None:
    loss = LossSettings(kl_coefficient=0.1, entropy_coefficient=0.1)
    example = Example([1, 2, 3, 4], [0.0, 1.0, 1.0, 1.0], "ce")
    ends: list[list[Tensor]] = []
    for rehearses in (False, True):
        learner = LocalLearner(tiny_decoder(), OptimizerSettings())
        if rehearses:
            learning, kept = learner.rehearse(Largest(64, 20, kind, loss, keeps_reference=True))
            assert learning >= kept == 4 * learner.num_parameters
            assert all(parameter.grad is None for parameter in learner.decoder.network.parameters())
        learner.forward_backward(pack([example], 8)[0], PLAIN, 3.0)
        assert learner.optim_step(1e-2)["optim/skipped"] == 0
        ends.append([parameter.detach().clone() for parameter in learner.decoder.network.parameters()])
    assert all(map(torch.equal, *ends))


def test_rows_are_filled_up_for_compiled_layers_and_nobody_else_sees_it() -> None:
    examples = [Example(tokens, [0.0, *[1.0] * (len(tokens) - 1)], "ce") for tokens in ([1, 2, 3, 4], [5, 6, 7])]
    (batch,) = pack(examples, 8)
    plain, compiled = (LocalLearner(tiny_decoder(), OptimizerSettings()) for _ in range(2))
    compiled._layers.compiled = True  # as on a GPU; nothing looks at what the layers are then
    compiled.rehearse(Largest(64, 20, "ce", PLAIN))
    rows: list[int] = []
    compiled.decoder.network.get_input_embeddings().register_forward_hook(
        lambda module, inputs, out: rows.append(inputs[0].shape[-1])
    )
    torch.testing.assert_close(compiled.logprobs(batch), plain.logprobs(batch))
    assert not compiled.logprobs(batch).requires_grad
    for learner in (plain, compiled):
        learner.forward_backward(batch, PLAIN, 5.0)
    assert rows == [64, 64, 64]
    gradients = [[p.grad for p in learner.decoder.network.parameters()] for learner in (plain, compiled)]
    torch.testing.assert_close(*gradients)


class OnCard:
    """A backend that is asked for rehearsals, and has memory for as many tokens as it is told."""

    placement = Placement("cuda")

    def __init__(self) -> None:
        self.asked: list[int | None] = []
        self.free = 1000

    def rehearse(self, learner: Any, largest: Any, sampler: Any, tokens: int | None) -> int:
        self.asked.append(tokens)
        return self.free if tokens is None else tokens


def on_card(home: Home, backend: OnCard) -> StageContext:
    return replace(a_context(home), backend=backend)


def test_the_samplers_memory_is_that_of_the_beginning_once_anything_is_committed(
    home: Home,
) -> None:
    backend = OnCard()
    largest: Callable[[], Largest] = lambda: Largest(64, 20, "ce", PLAIN)  # noqa: E731
    on_card(home, backend).rehearse(None, largest)  # type: ignore[arg-type]
    backend.free = 700
    on_card(home, backend).rehearse(None, largest)  # type: ignore[arg-type]
    home.ledger.commit_step(KEY, 0, "d" * 64)
    backend.free = 300
    for _ in range(2):
        on_card(home, backend).rehearse(None, largest)  # type: ignore[arg-type]
    assert backend.asked == [None, None, 700, 700]
    take_over_memory(home, "other", KEY)
    home.ledger.commit_step("other", 0, "d" * 64)
    assert kept_memory(home, "other") == 700


def test_on_a_cpu_nobody_asks_what_the_largest_step_is(home: Home) -> None:
    def largest() -> Largest:
        raise AssertionError

    a_context(home).rehearse(None, largest)  # type: ignore[arg-type]


def test_layers_that_are_not_found_are_said_to_be_uncompiled(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = SimpleNamespace(
        device=torch.device("cuda"), get_decoder=lambda: torch.nn.Linear(1, 1), get_input_embeddings=lambda: None
    )
    layers = LearningLayers(network)
    assert not layers.compiled
    assert "learns without compiled code" in layers.remarks[0]
    made = SimpleNamespace(remarks=layers.remarks)
    monkeypatch.setattr(NativeBackend, "learner", lambda self: made)
    context, progress = a_context(home, kept := KeptProgress()), kept
    context.learner()  # type: ignore[call-arg]
    assert progress.notes == list(layers.remarks)
    assert LearningLayers(tiny_decoder().network).remarks == ()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"recompute": False, "tokens_per_batch": 4096, "lora": None}, ["recompute = true", "below 4096", "lora"]),
        ({"recompute": True, "precision": "fp32"}, ['precision = "bf16"', "a smaller model"]),
        ({"sampling": SimpleNamespace(slots=8, max_tokens=99)}, ["sampling.slots below 8", "max_tokens below 99"]),
    ],
)
def test_a_full_card_names_the_settings_that_need_less(settings: dict[str, Any], told: list[str]) -> None:
    with (
        pytest.raises(OutOfMemory, match=r"2\.00 GiB more are needed") as caught,
        told_out_of_memory(SimpleNamespace(name="zero", **settings)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    assert caught.value.where == "stage 'zero'"
    assert all(part in caught.value.fix for part in told)
    assert ("recompute" in caught.value.fix) == (settings.get("recompute") is False)
