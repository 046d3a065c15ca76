"""What the tiny world offers to recipes, by name."""

from collections.abc import Mapping

from reasonmill.world.tables import table

OFFERS: Mapping[str, Mapping[str, str]] = table(__name__)
