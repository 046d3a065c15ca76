"""Reward models: a decoder with a scalar head on the last token of a text (R1 paper, reward models)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from reasonmill.algo.packing import TextRow, pack_texts
from reasonmill.errors import UnsupportedModel
from reasonmill.model.attention import NAME
from reasonmill.model.decoder import (
    first_line,
    load_decoder,
    load_network,
    refuse_beyond,
    refuse_not_finite,
    refuse_unsupported,
)
from reasonmill.model.packed import PackedLayout
from reasonmill.protocols import View


class RewardModel:
    """A network of transformers' sequence classification with one label, run on packed rows.

    Args:
        network: made with `attn_implementation="reasonmill"`.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        refuse_unsupported(network)
        head: object = getattr(network, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1 or head.bias is not None:
            raise UnsupportedModel(
                f"{type(network).__name__} has no scalar head: a reward model gives one number",
                fix="start from a decoder that transformers gives a linear score without bias, as Llama's or Qwen's",
            )
        self.network: PreTrainedModel = network
        self._head: nn.Linear = head
        network.eval()

    @property
    def device(self) -> torch.device:
        return self._head.weight.device

    @property
    def view(self) -> View:
        """What it was trained to look at."""
        view: View = self.network.config.reward_view
        return view

    def rewards(self, row: TextRow) -> Tensor:
        """Rewards [texts of the row], fp32, with gradient.

        Raises:
            UnsupportedModel: a text is longer than the model's positions, or has a token without a row.
        """
        refuse_beyond(self.network, row.tokens, max(row.lengths))
        output = self.network.get_decoder()(
            input_ids=row.tokens.to(self.device)[None],
            position_ids=row.positions.to(self.device)[None],
            use_cache=False,
            layout=PackedLayout(row.lengths, self.device),
        )
        last: Tensor = output.last_hidden_state[0].index_select(0, row.last.to(self.device))
        # In fp32: rewards rounded to bf16 tie where responses differ.
        rewards: Tensor = F.linear(last.float(), self._head.weight.float()).squeeze(1)
        return rewards

    @torch.no_grad()
    def score(self, texts: Sequence[Sequence[int]], tokens_per_batch: int) -> list[float]:
        """The reward of each text (token ids); packed rows hold at most `tokens_per_batch` positions."""
        scores = [0.0] * len(texts)
        for row in pack_texts([[text] for text in texts], tokens_per_batch):
            for unit, reward in zip(row.units, self.rewards(row).tolist(), strict=True):
                scores[unit] = reward
        return scores


def new_reward_model(
    policy_dir: Path,
    *,
    view: View,
    stop_tokens: Collection[int],
    device: str,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
) -> RewardModel:
    """The policy of a model directory with a scalar head of zeros in place of its language-model head.

    Args:
        stop_tokens: what texts end with. transformers takes the last token that is no padding for the last one, so a
            policy that pads with a stop token gives a reward model without a padding token, which scores one text at
            a time outside of reasonmill.

    Raises:
        UnsupportedModel: the policy can't be loaded, or transformers has no sequence classification for it.
    """
    decoder = load_decoder(policy_dir, device="cpu", dtype=dtype, trust_remote_code=trust_remote_code)
    body = decoder.network.base_model
    config = copy.deepcopy(body.config)
    config.num_labels = 1
    config.reward_view = view
    if config.pad_token_id in stop_tokens:
        config.pad_token_id = None
    with torch.random.fork_rng(devices=[]):  # random weights are made and thrown away
        try:
            network = AutoModelForSequenceClassification.from_config(config, attn_implementation=NAME, dtype=dtype)
        except ValueError as error:
            raise UnsupportedModel(
                f"no scalar head for {config.model_type}: {first_line(error)}",
                fix="start from a policy of an architecture that transformers classifies sequences with",
                where=str(policy_dir),
            ) from error
    network.base_model.load_state_dict(body.state_dict(), assign=True)
    nn.init.zeros_(network.score.weight)
    return RewardModel(network.to(device))


def load_reward_model(model_dir: Path, *, device: str, dtype: torch.dtype) -> RewardModel:
    """Loads the directory of a reward model.

    Raises:
        UnsupportedModel: there is no reward model of reasonmill in the directory, or it is not whole.
    """
    loaded = load_network(AutoModelForSequenceClassification, model_dir, dtype)
    if not hasattr(loaded.network.config, "reward_view"):
        raise UnsupportedModel(
            "the model in the directory is no reward model",
            fix="give a directory that a reward-model stage wrote",
            where=str(model_dir),
        )
    network = loaded.network.to(device)
    loaded.refuse_incomplete()
    refuse_not_finite(network, model_dir)
    return RewardModel(network)
