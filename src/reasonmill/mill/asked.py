"""The problems that a recipe's evaluations ask."""

from collections.abc import Iterator

from reasonmill.curation.asked import Asked
from reasonmill.recipe.graph import Recipe
from reasonmill.stages.curve import curve_problems
from reasonmill.stages.on_policy import OnPolicySettings
from reasonmill.stages.sampling import SampledSettings
from reasonmill.types import Problem


def asked_by(recipe: Recipe) -> Asked:
    """Those of all its stages that make evaluations, each asked for once, and those of held-out curves."""
    return Asked(_problems(recipe))


def _problems(recipe: Recipe) -> Iterator[tuple[str, Problem]]:
    asked: dict[tuple[str, str], int] = {}
    for node in recipe.nodes:
        settings = node.settings
        if node.module.MAKES == "evaluation" and isinstance(settings, SampledSettings):
            for name, count in settings.tasks.items():
                task, first = recipe.catalogue.task(name), asked.get((name, settings.split), 0)
                yield from ((settings.name, task.problem(settings.split, recipe.seed, i)) for i in range(first, count))
                asked[name, settings.split] = max(first, count)
        if isinstance(settings, OnPolicySettings) and settings.curve is not None:
            found = curve_problems(settings.curve, recipe.seed, settings.name, recipe.catalogue.task)
            yield from ((settings.name, problem) for problem in found)
