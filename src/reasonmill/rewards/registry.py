"""The rule rewards by name: every module of `rules` that defines `RULES` adds the rules in it."""

import importlib
import pkgutil

import reasonmill.rewards.rules
from reasonmill.rewards.rule import Rule


def _found() -> dict[str, Rule]:
    """The rules of all modules.

    Raises:
        TypeError: two of them have the same name.
    """
    found: dict[str, Rule] = {}
    for info in pkgutil.iter_modules(reasonmill.rewards.rules.__path__):
        module = importlib.import_module(f"reasonmill.rewards.rules.{info.name}")
        for rule in module.RULES:
            if rule.name in found:
                raise TypeError(f"{module.__name__} defines the reward {rule.name!r}, which there is already")
            found[rule.name] = rule
    return found


RULES = _found()
