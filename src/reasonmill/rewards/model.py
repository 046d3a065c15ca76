"""Rewards that a model gives: how its numbers become scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from reasonmill.algo.preferences import sigmoid
from reasonmill.errors import RecipeError
from reasonmill.model.reward import load_reward_model
from reasonmill.protocols import Preference
from reasonmill.render import renderer_for
from reasonmill.rewards.views import VIEWS, shown
from reasonmill.types import Completion, Problem


class ModelScorer:
    """Scores completions with a reward model.

    A score is the sigmoid of the model's number, in (0, 1). The number itself has a scale of its own, and any scale
    would do as long as GRPO normalises a group's rewards; but here rewards are added up, and helpfulness, safety,
    format and language have to count alike where a recipe weighs them alike. The sigmoid also bounds what there is
    to gain by pushing one score to extremes.

    A completion without the answer that is looked at scores 0.0, the lower end: there is nothing to like, and the
    model has never seen the like.

    Args:
        tokens_per_batch: positions of one forward pass; long completions are never cut.

    Raises:
        UnsupportedModel: there is no reward model in the directory.
        RecipeError: the model looks at another part of responses than this preference is about.
    """

    def __init__(
        self, model_dir: Path, preference: Preference, *, device: str, dtype: torch.dtype, tokens_per_batch: int
    ) -> None:
        self._model = load_reward_model(model_dir, device=device, dtype=dtype)
        self._renderer = renderer_for(model_dir)
        self._view = VIEWS[preference]
        self._tokens_per_batch = tokens_per_batch
        if self._model.view != self._view:
            raise RecipeError(
                f"{preference} is about the {self._view} of a completion, but the model was trained on its "
                f"{self._model.view}",
                where=f"reward_models.{preference}",
                fix="pairwise models are for helpfulness, pointwise ones for safety",
            )

    def score(self, problem: Problem, completions: Sequence[Completion]) -> list[float]:
        """A score for each completion of the problem, from one packed pass over all of them; nan where the model's
        number is not finite."""
        visible = [(place, shown(completion.text, self._view)) for place, completion in enumerate(completions)]
        prompt = self._renderer.render(problem.messages)
        texts = {place: prompt + self._renderer.response(text) for place, text in visible if text is not None}
        scores = [0.0] * len(completions)
        numbers = self._model.score(list(texts.values()), self._tokens_per_batch)
        for place, number in zip(texts, numbers, strict=True):
            scores[place] = sigmoid(number) if math.isfinite(number) else math.nan
        return scores
