"""When training ends early: a rule over the points of a curve."""

from collections.abc import Sequence


def has_stalled(points: Sequence[float], patience: int) -> bool:
    """Whether none of the last `patience` points is above the best one before them.

    Points are noisy: with few problems a point, a patience of 1 ends many runs that would still have gained.
    """
    return len(points) > patience and max(points[-patience:]) <= max(points[:-patience])
