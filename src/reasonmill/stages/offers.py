"""The kinds of stages that this package offers for all models and tasks."""

from collections.abc import Mapping

OFFERS: Mapping[str, Mapping[str, str]] = {
    "stages": {
        "rl": "reasonmill.stages.rl",
        "collect": "reasonmill.stages.collect",
        "curate": "reasonmill.stages.curate",
        "sft": "reasonmill.stages.sft",
        "reward-model": "reasonmill.stages.reward_model",
        "distill": "reasonmill.stages.distill",
        "evaluate": "reasonmill.stages.evaluate",
        "gate": "reasonmill.stages.gate",
    }
}
