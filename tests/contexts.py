"""The surroundings of a stage that runs by itself, outside of any recipe."""

from collections.abc import Callable

from kept_progress import KeptProgress
from reasonmill.backends.native import NativeBackend
from reasonmill.placement import Placement
from reasonmill.plugins.catalogue import Catalogue, installed
from reasonmill.stage import StageContext
from reasonmill.store.home import Home

KEY = "k" * 64
BACKEND = NativeBackend(Placement("cpu"))


def a_context(
    home: Home,
    progress: KeptProgress | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    *,
    key: str = KEY,
    catalogue: Catalogue | None = None,
) -> StageContext:
    """The context of a stage on the CPU, with seed 0.

    Args:
        catalogue: what can be named; what there is without any recipe if None.
    """
    progress = KeptProgress() if progress is None else progress
    return StageContext(key, 0, BACKEND, home, progress, stop_requested, catalogue or installed())
