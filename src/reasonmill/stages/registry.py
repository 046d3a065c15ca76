"""The kinds of stages: every module of this package except `context` and this one defines one."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import reasonmill.stages

_NOT_STAGES = {"registry"}


def kinds() -> dict[str, ModuleType]:
    """The stage modules by kind. Each has `KIND`, `MAKES` (the ArtifactKind of what it makes), `Settings` (a
    StageSettings) and `run(settings, inputs, context)`.

    Raises:
        TypeError: a module lacks one of the four, or two modules define the same kind.
    """
    found: dict[str, ModuleType] = {}
    modules = [importlib.import_module("reasonmill.world.pretrain")]
    for info in pkgutil.iter_modules(reasonmill.stages.__path__):
        if info.name in _NOT_STAGES:
            continue
        modules.append(importlib.import_module(f"reasonmill.stages.{info.name}"))
    for module in modules:
        missing = [name for name in ("KIND", "MAKES", "Settings", "run") if not hasattr(module, name)]
        if missing:
            raise TypeError(f"{module.__name__} is no stage: it does not define {', '.join(missing)}")
        if module.KIND in found:
            raise TypeError(f"{module.__name__} and {found[module.KIND].__name__} both define {module.KIND!r}")
        found[module.KIND] = module
    return found
