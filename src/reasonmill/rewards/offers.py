"""The rule rewards that this package offers for all tasks."""

from collections.abc import Mapping

OFFERS: Mapping[str, Mapping[str, str]] = {
    "rewards": {
        "format": "reasonmill.rewards.rules.format:FormatReward",
        "language": "reasonmill.rewards.rules.language:LanguageReward",
        "random": "reasonmill.rewards.rules.random:RandomReward",
    }
}
