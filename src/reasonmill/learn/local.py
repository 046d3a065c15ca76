"""The learner of one process: forward and backward on packed rows, AdamW, fp32 master weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from reasonmill.activity import beat
from reasonmill.algo.fused import begin_compiling
from reasonmill.algo.logprobs import is_large_on_cpu, token_logprobs, token_logprobs_and_entropies
from reasonmill.algo.losses import LossSettings, token_losses
from reasonmill.algo.packing import Batch
from reasonmill.algo.reverse_kl import Head, reverse_kl
from reasonmill.learn.deterministic import deterministic
from reasonmill.learn.layers import LearningLayers
from reasonmill.learn.rehearsal import filled, rehearsal_batches
from reasonmill.learn.routers import Routers
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.learn.trained import TrainedNetwork
from reasonmill.model.decoder import Decoder, refuse_beyond
from reasonmill.model.lora import Adapter
from reasonmill.model.packed import PackedLayout
from reasonmill.peak_memory import begin_peak, peak_bytes, used_bytes
from reasonmill.placement import Largest
from reasonmill.protocols import Sampler

Made = TypeVar("Made")

# Compiled layers see rows of so many positions at least, or as many as the longest one of the stage. torch compiles
# them once more for rows shorter than some thousands, which takes as long again.
_LEAST = 4096


class LocalLearner(TrainedNetwork):
    """Trains the decoder's own weights or its adapter: a sampler in the same process sees each step without a copy.

    Args:
        companions: the model directory whose tokenizer a saved model keeps; None for a model without one.
        temperature: that of the distribution that is scored; the sampler's, for policy gradients.
        teacher: what "kl" batches are trained towards, by the reverse KL at each of their positions; it is frozen, and
            must read the same tokens as the decoder.
        recompute: whether a layer's activations are computed once more in the backward pass, instead of kept.
        adapter: the decoder's, which is trained in place of its weights.
    """

    def __init__(
        self,
        decoder: Decoder,
        optimizer: OptimizerSettings,
        *,
        companions: Path | None = None,
        temperature: float = 1.0,
        teacher: Decoder | None = None,
        recompute: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(decoder.network, optimizer, companions, adapter)
        self.decoder = decoder
        self._temperature = temperature
        self._teacher = teacher
        self._layers = LearningLayers(decoder.network, recompute=recompute)
        self._routers = Routers(decoder.network)
        self._least = 0  # positions of a row that layers see
        embeddings: Any = decoder.network.get_input_embeddings()
        if is_large_on_cpu(decoder.head_weight) and embeddings.weight is decoder.head_weight:
            # The gradient of the tokens that were read is added to the head's, and not filled up with zeros before.
            embeddings.sparse = True

    @property
    def in_fp32(self) -> bool:
        return self.decoder.in_fp32

    def forward_backward(self, batch: Batch, loss: LossSettings, denominator: float) -> dict[str, float]:
        """Adds the gradient of sum(weights * token losses) / denominator to the gathered gradients.

        Returns:
            Weighted sums over the batch: "loss", and the loss's statistics by metric name. If something of them was
            not finite, `optim_step` refuses the update that this is a part of.

        Raises:
            UnsupportedModel: a sequence is longer than the model's positions, or has a token without a row.
        """
        beat()
        refuse_beyond(self._network, torch.maximum(batch.inputs, batch.targets), batch.longest)
        moved, places = batch.to(self.decoder.device), self._places(batch)
        if not self._rows:
            self._routers.forget()  # what was scored before
        with deterministic(self.decoder.device), self._routers.counted(), self._layers.used():
            with self._gradients_aside():
                losses, statistics, policy_logprobs = self._token_losses(moved, loss, places)
            total = (losses * moved.weights).sum() / denominator
            total.backward()
        sums = {name: float((values * moved.weights).sum()) for name, values in statistics.items()}
        summed = float(total.detach()) * denominator
        # The batch on the CPU, which needs no copy to be looked at.
        self._gather(
            batch,
            advantages=batch.advantages,
            sampler_logprobs=batch.sampler_logprobs,
            old_logprobs=batch.old_logprobs,
            ref_logprobs=batch.ref_logprobs,
            policy_logprobs=policy_logprobs,
            loss=summed,
        )
        return {"loss": summed, **sums}

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """One AdamW step, as `TrainedNetwork` makes it; and how evenly experts were chosen in its batches."""
        return {**super().optim_step(learning_rate), **self._routers.balance()}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Says where layers are not compiled on a GPU."""
        return self._layers.remarks

    def rehearse(self, largest: Largest) -> tuple[int, int]:
        """Gathers the gradients of the largest batches that there will be, scores them, and forgets all of it.

        On a CPU, whose memory gives way and whose code is not compiled, there is no need for it.

        Returns:
            Bytes that learning takes beyond what is in use now, and those of them that stay taken between steps, which
            are a reference's.
        """
        device = self.decoder.device
        self._least = min(largest.row, _LEAST) if self._layers.compiled else 0
        begin_compiling(f"{largest.row} {largest.text} {largest.kind}")
        begin_peak(device.type)
        before = used_bytes(device.type) or 0
        for batch in rehearsal_batches(largest, self._least):
            self.forward_backward(batch, largest.loss, float(batch.num_tokens))
            self.logprobs(batch)
            if largest.keeps_reference and self._adapter is not None:  # whose reference is other code
                self.reference_logprobs([batch])
        needed = max(0, (peak_bytes(device.type) or 0) - before)
        self._forget()
        kept = self._reference.num_bytes if largest.keeps_reference else 0
        return needed + kept, kept

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities [N] of the batch's targets under the current weights. For context, which the loss does not
        weigh, 0 on a GPU and for large vocabularies, and its own elsewhere."""
        beat()
        # With the kernels of the forward pass that is differentiated: before an update the two must not differ. Layers
        # that are compiled without gradients would be others.
        device = self.decoder.device
        with deterministic(device), self._routers.counted(), self._layers.used(), self._gradients_aside():
            return self._scored(token_logprobs, batch.to(device), self._places(batch)).detach()

    def _token_losses(
        self, batch: Batch, loss: LossSettings, places: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Loss of each position, its statistics, and the policy's log-probs if the loss was made from them."""
        if batch.loss == "kl" and self._teacher is not None:
            with torch.no_grad():
                teacher_hidden = _hidden(self._teacher, batch)
            divergence = reverse_kl(
                _hidden(self.decoder, batch, self._least),
                _head(self.decoder),
                teacher_hidden,
                _head(self._teacher),
                temperature=self._temperature,
            )
            return divergence, {"loss/kl": divergence.detach()}, None
        entropies = None
        if loss.entropy_coefficient and batch.loss == "pg":
            policy_logprobs, entropies = self._scored(token_logprobs_and_entropies, batch, places)
        else:
            policy_logprobs = self._scored(token_logprobs, batch, places)
        return *token_losses(policy_logprobs, batch, loss, entropies), policy_logprobs.detach()

    def _places(self, batch: Batch) -> Tensor | None:
        """Where the head is much of the work, the positions of a batch on the CPU that its loss weighs; None for all.

        That is so on a GPU, and of a large vocabulary.
        """
        if self.decoder.device.type != "cuda" and not is_large_on_cpu(self.decoder.head_weight):
            return None
        places = batch.weights.nonzero().squeeze(1)
        return places.to(self.decoder.device) if 0 < len(places) < batch.num_tokens else None

    def _scored(self, score: Callable[..., Made], batch: Batch, places: Tensor | None) -> Made:
        if torch.is_grad_enabled() or not self._layers.compiled:
            hidden = _hidden(self.decoder, batch, self._least)
        else:
            # Nothing goes backward from here, so that nothing is kept for it.
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_forget, _forget):
                hidden = _hidden(self.decoder, batch, self._least)
        return score(
            hidden,
            self.decoder.head_weight,
            batch.targets,
            temperature=self._temperature,
            softcap=self.decoder.softcap,
            places=places,
        )

    def keep_reference(self) -> None:
        """Makes the current weights the reference; that of an adapter is always the network without it."""
        self._reference.keep()

    def reference_logprobs(self, batches: Sequence[Batch]) -> Tensor:
        """Log-probabilities of all positions of the batches under the reference, joined in order, on the CPU."""
        with self._reference.lent():
            return torch.cat([self.logprobs(batch).cpu() for batch in batches])

    def publish(self, sampler: Sampler, version: int) -> None:
        """Makes the sampler draw from the current weights; one that shares the decoder has them already."""
        sampler.take(((name, p.detach()) for name, p in self._parameters.items()), version)


def _hidden(decoder: Decoder, batch: Batch, least: int = 0) -> Tensor:
    """[N, H]. A row of fewer positions than the least is filled up with other sequences while layers see it."""
    missing, longest = max(0, least - batch.num_tokens), max(batch.lengths)
    if not missing:
        layout = PackedLayout(batch.lengths, decoder.device, batch.continued)
        return decoder.hidden(batch.inputs, batch.positions, layout)
    lengths = filled(missing, longest)
    inputs = torch.cat([batch.inputs, batch.inputs.new_zeros(missing)])
    positions = torch.cat([batch.positions, torch.arange(missing, device=batch.positions.device) % longest])
    layout = PackedLayout([*batch.lengths, *lengths], decoder.device, batch.continued)
    return decoder.hidden(inputs, positions, layout)[: batch.num_tokens]


def _forget(kept: Any) -> Any:
    return None


def _head(decoder: Decoder) -> Head:
    return Head(decoder.head_weight, decoder.softcap)
