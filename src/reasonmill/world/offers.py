"""What the tiny world offers to recipes, by name."""

from collections.abc import Mapping

OFFERS: Mapping[str, Mapping[str, str]] = {
    "tasks": {
        "arithmetic": "reasonmill.world.arithmetic:Arithmetic",
        "countdown": "reasonmill.world.countdown:countdown",
        "countdown-3": "reasonmill.world.countdown:countdown_3",
        "countdown-4": "reasonmill.world.countdown:countdown_4",
        "facts": "reasonmill.world.general:facts",
        "small-talk": "reasonmill.world.general:small_talk",
        "harmful-requests": "reasonmill.world.general:harmful_requests",
        "harmless-requests": "reasonmill.world.general:harmless_requests",
    },
    "environments": {"second-try": "reasonmill.world.second_try:SecondTry"},
    "stages": {"pretrain": "reasonmill.world.pretrain"},
    "conversations": {"world-talk": "reasonmill.world.general_mix:GeneralMix"},
    "rewritings": {"world-style": "reasonmill.world.rewriting:WorldStyle"},
}
