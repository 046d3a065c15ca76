"""The surroundings that tests give a stage: the native backend on the CPU."""

from collections.abc import Callable

from kept_progress import KeptProgress
from reasonmill.backends.native import NativeBackend
from reasonmill.placement import Placement
from reasonmill.protocols import Progress
from reasonmill.stage import StageContext
from reasonmill.store.home import Home

BACKEND = NativeBackend(Placement("cpu"))


def native_context(
    home: Home, progress: Progress | None = None, stop: Callable[[], bool] = lambda: False, *, key: str = "k" * 64
) -> StageContext:
    return StageContext(key, 0, BACKEND, home, progress or KeptProgress(), stop)
