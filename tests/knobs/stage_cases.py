"""For every setting of every stage kind: other values, and what has to come of them.

A kind has a table that all its runs begin with. A case names what else both of its runs are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knobs.flips import LEFT_OUT, Flip, admits, bounds, computes, decides, incidental, measures, names, refused
from knobs.made import WORDING
from knobs.tiny_stage import API_KEY

Cases = Mapping[str, Flip]
_ON_CPU = {"fp32": "auto is fp32 on a CPU"}


LEARNING: Cases = {
    "schedule.peak": decides(2e-2),
    "schedule.warmup_steps": decides(2),
    "schedule.decay": decides("cosine"),
    "schedule.final_share": decides(0.5).on(schedule__decay="cosine"),
    "optimizer.beta1": decides(0.5),
    "optimizer.beta2": decides(0.5),
    "optimizer.epsilon": decides(1e-2),
    "optimizer.weight_decay": decides(0.5),
    "optimizer.clip_norm": decides(1e-3).on(optimizer__epsilon=1e-2),
    "tokens_per_batch": computes(64, seen="batches"),
    "precision": decides("bf16", alike=_ON_CPU),
    "state_every": incidental(1, seen="states"),
}
POLICY: Cases = {
    **LEARNING,
    "from": decides("tiny-base"),
    "lora": decides({}),
    "lora.rank": decides(2).on(lora={}),
    "lora.alpha": decides(8.0).on(lora={}),
    "lora.targets": decides(["q_proj"]).on(lora={}),
    "recompute": computes(True, seen="layers"),
}
_CURVE = {"every": 1, "tasks": {"arithmetic": 4}}
_LONGER = {"curve": _CURVE, "sampling.max_tokens": 24}
ON_POLICY: Cases = {
    **POLICY,
    "name": decides("other"),
    "kind": refused("sft"),
    "tasks": decides({"countdown-3": 1.0}),
    "steps": decides(1),
    "problems_per_step": decides(6),
    "group_size": decides(4),
    "updates_per_step": decides(4),
    "sampling.temperature": decides(0.5),
    "sampling.max_tokens": decides(3),
    "sampling.slots": computes(2, seen="slots"),
    "curve": measures(_CURVE),
    "curve.every": measures(2).on(curve=_CURVE),
    "curve.tasks": measures({"countdown-3": 3}).on(curve=_CURVE),
    "curve.samples": measures(2).on(curve=_CURVE),
    "curve.split": measures("test").on(**_LONGER),
    "curve.patience": decides(1).on(curve=_CURVE),
    "models_every": measures(1, seen="kept"),
}
SERVER: Cases = {
    "url": decides("/other/v1"),
    "model": decides("larger"),
    "api_key_env": incidental(API_KEY, seen="headers"),
    "concurrency": incidental(3, seen="threads"),
    "timeout_s": incidental(7.0, seen="timeouts"),
    "retries": bounds(2, 0).at("fails once"),
    "retry_delay_s": incidental(3.0, seen="delays").at("fails once"),
    "patience_s": bounds(100.0, 1.0).at("busy once"),
    "parameters": decides({"temperature": False}),
    "finish_reasons": bounds({"whatever": "stop"}, {}).at("ends oddly"),
}
_REWARDED = {"accuracy": 1.0, "random": 1.0}
_GENERAL = {"tasks": {"arithmetic": 0.5, "harmful-requests": 0.5}, "rewards": {**_REWARDED, "safety": 1.0}}
_JUDGED = {**_GENERAL, "reward_models": {"safety": "safety-rm"}}
_ALARM = {"verifier": "format"}
# In half precision the ratios are against the learner, whatever the sampler says; a large mismatch ends no run here.
_APART = {"precision": "bf16", "max_mismatch": 9.0}
# Ratios that are far from 1 from the first update on.
_FAR = {**_APART, "old_policy": "sampler"}
_TOKENS = {**_APART, "loss.correction": {"level": "token", "rule": "truncate"}}
_MASKED = {**_APART, "loss.correction": {"level": "token", "rule": "mask"}}
RL: Cases = {
    **ON_POLICY,
    "preset": decides("r1"),
    "rewards": decides({"accuracy": 1.0, "random": 1.0, "format": 0.5}),
    "reward_models": decides({"safety": "other-safety-rm"}).on(**_JUDGED),
    "preference_share": decides(0.5).on(**_JUDGED),
    **{
        path: flip.at("apart").on(**_FAR)
        for path, flip in {
            "loss.algorithm": decides("dr_grpo", "dapo", "gspo", "gmpo", "cispo", "sapo", "dppo", "rloo", "reinforce"),
            "loss.clip_low": decides(0.1),
            "loss.clip_high": decides(0.1),
            "loss.dual_clip": decides(1.1),
            "loss.gate_positive": decides(3.0).on(loss__algorithm="sapo"),
            "loss.gate_negative": decides(3.0).on(loss__algorithm="sapo"),
            "loss.divergence": decides("kl").on(loss__algorithm="dppo", loss__divergence_bound=0.1),
            "loss.divergence_bound": decides(0.1).on(loss__algorithm="dppo"),
        }.items()
    },
    "loss.advantage": decides("group_centred", "leave_one_out", "batch_scaled", "per_reward").on(
        rewards={"random": 1.0, "language": 1.0}
    ),
    "loss.kl_coefficient": decides(0.1),
    "loss.kl_estimator": decides("k1", "k2", "unbiased").on(loss__kl_coefficient=0.1),
    "loss.drift_coefficient": decides(0.1),
    "loss.entropy_coefficient": decides(0.1),
    "loss.correction": decides({"level": "token", "rule": "truncate"}).at("apart").on(**_APART),
    "loss.correction.level": decides("sequence", "geometric").at("apart").on(**_TOKENS),
    "loss.correction.rule": decides("band", "mask").at("apart").on(**_TOKENS),
    "loss.correction.low": decides(1.0).at("apart").on(**_MASKED),
    "loss.correction.high": decides(1.0).at("apart").on(**_MASKED),
    "flat_groups": decides("drop", "refill").on(rewards={"format": 1.0}),
    "refill_limit": decides(1.1).on(flat_groups="refill", rewards={"format": 1.0}),
    "drop_overlong": decides(True),
    "soft_overlong": decides(3),
    "old_policy": decides("sampler", alike={"learner": "auto is the learner, but in fp32"}).at("apart").on(**_APART),
    "max_mismatch": bounds(5.0, 0.01).at("apart").on(**_APART),
    "reference_every": decides(1).on(loss__kl_coefficient=0.1),
    "max_ungraded": bounds(0.9, 0.0).on(tasks={"unsure": 1.0}, max_ungraded=1.0),
    "alarm": measures(_ALARM),
    "alarm.verifier": measures("language").on(alarm=_ALARM),
    "alarm.claims": measures({"random": 0.9}).on(alarm=_ALARM),
    "alarm.rollouts": measures(2).on(alarm=_ALARM),
    "alarm.allowed": measures(0.5).on(alarm=_ALARM),
    "alarm.false_alarms": measures(0.5).on(alarm=_ALARM),
    "alarm.then": bounds("stop").on(alarm={**_ALARM, "false_alarms": 0.999, "allowed": 1e-6}),
}
DISTILL: Cases = {**ON_POLICY, "teacher": decides("tiny-base-weak")}
SFT: Cases = {
    **POLICY,
    "name": decides("other"),
    "kind": refused("rl"),
    "data": decides(["other-dialogues"]),
    "epochs": decides(2),
    "conversations_per_step": decides(4),
    "max_tokens": decides(24),
    "turns": decides("all"),
}
_PAIRS = {"objective": "pairwise", "label": "helpful", "tasks": ["small-talk", "facts"]}
_JUDGE = {"url": "/v1", "model": "large", "concurrency": 1, "retry_delay_s": 1.0, "retries": 2}
_BY_JUDGE = {**_PAIRS, "label": LEFT_OUT, "judge": _JUDGE, "pairs_per_problem": 3}
_BY_JUDGE_ODDLY = {**_BY_JUDGE, "judge": {**_JUDGE, "finish_reasons": {"whatever": "stop"}}}


def _judged_by(given: Mapping[str, Any], oddly: Mapping[str, Any]) -> dict[str, Flip]:
    """The cases of the table `judge`."""
    cases = {**SERVER, "max_tokens": decides(100)}
    return {
        f"judge.{path}": flip.on(**(oddly if flip.scene == "ends oddly" else given)) for path, flip in cases.items()
    }


REWARD_MODEL: Cases = {
    **LEARNING,
    "name": decides("other").on(**_PAIRS),
    "kind": refused("rl"),
    "from": decides("tiny-base"),
    "data": decides(["other-talk"]),
    "objective": decides("pairwise").on(label="accuracy"),
    "label": decides("accuracy").on(**_PAIRS),
    "judge": decides(_JUDGE).in_place_of("label").on(**_PAIRS),
    **_judged_by(_BY_JUDGE, _BY_JUDGE_ODDLY),
    "tasks": decides(["harmful-requests"]),
    "pairs_per_problem": decides(3).on(**_PAIRS),
    "min_margin": decides(0.6).on(**_PAIRS),
    "centring": decides(0.5).on(**_PAIRS, examples_per_step=8),
    "held_out": decides(0.6),
    "epochs": decides(2),
    "examples_per_step": decides(10),
    "max_tokens": decides(30),
}
SHORTEN: Cases = {
    "name": names("other"),
    "kind": refused("rl"),
    "from": decides("deeper"),
    "layers": decides(3),
}
_BY_TEACHER = {"from_": LEFT_OUT, "teacher": _JUDGE, "sampling": {"max_tokens": 6}, "precision": LEFT_OUT}
_BY_TEACHER_ODDLY = {**_BY_TEACHER, "teacher": {**_JUDGE, "finish_reasons": {"whatever": "stop"}}}
_DRAWN: Cases = {
    "tasks": decides({"countdown-3": 3}),
    "samples": decides(3),
    "max_ungraded": bounds(0.9, 0.0).on(tasks={"unsure": 2}, samples=3, max_ungraded=1.0),
    "sampling.temperature": decides(0.5),
    "sampling.top_p": decides(0.5),
    "sampling.top_k": decides(2),
    "sampling.max_tokens": decides(3),
}
COLLECT: Cases = {
    **_DRAWN,
    "name": decides("other"),
    "kind": refused("rl"),
    "split": decides("dev"),
    "sampling.slots": computes(2, seen="slots"),
    "from": decides("tiny-base"),
    "teacher": decides(_JUDGE).in_place_of("from"),
    **{
        f"teacher.{path}": flip.on(**(_BY_TEACHER_ODDLY if flip.scene == "ends oddly" else _BY_TEACHER))
        for path, flip in {**SERVER, "instructions": decides("Be brief.")}.items()
    },
    "problems_per_commit": decides(2),
    "precision": decides("bf16", alike=_ON_CPU),
}
_BY_SERVER = {"from_": LEFT_OUT, "server": _JUDGE}
EVALUATE: Cases = {
    **_DRAWN,
    "name": names("other"),
    "kind": refused("rl"),
    "from": decides("tiny-base"),
    "server": decides(_JUDGE).in_place_of("from"),
    **{
        f"server.{path}": flip.on(
            **{**_BY_SERVER, **({"server": {**_JUDGE, "finish_reasons": {"whatever": "stop"}}} if odd else {})}
        )
        for path, flip in {**SERVER, "instructions": decides("Be brief.")}.items()
        for odd in [flip.scene == "ends oddly"]
    },
    # The model has 512 positions.
    "up_to_context": admits(False).on(up_to_context=True, sampling__max_tokens=600),
    "resume": computes("samples", seen="samples"),
    "sampling_seed": decides(5),
    "against": measures("earlier-eval").on(tasks={"small-talk": 3}),
    "split": decides("dev"),
}
CURATE: Cases = {
    "name": decides("other"),
    "kind": refused("rl"),
    "data": decides(["more-attempts"]),
    "keep.correct": decides(True),
    "keep.well_formed": decides(False),
    "keep.min_thinking_words": decides(4),
    "keep.max_thinking_words": decides(8),
    "keep.max_repetition": decides(0.3),
    "keep.repetition_words": decides(2).on(keep__max_repetition=0.3),
    "keep.min_language": decides(0.9),
    "keep.per_problem": decides(1),
    "judge": decides(_JUDGE),
    **_judged_by({"judge": _JUDGE}, {"judge": {**_JUDGE, "finish_reasons": {"whatever": "stop"}}}),
    "rewrite": decides({"use": "world-style"}),
    "rewrite.use": decides("./lab.py:Shout").on(rewrite={"use": "world-style"}),
    "decontaminate": decides({"arithmetic": 5}),
    "wording": decides([WORDING]).on(data=["attempts", "worded-attempts"], decontaminate={"worded": 2}),
    "max_conversations": decides(5),
    "general": decides({"use": "world-talk", "conversations": 4}),
    "general.use": decides("./lab.py:Talk").on(general={"use": "world-talk", "conversations": 4}),
    "general.conversations": decides(6).on(general={"use": "world-talk", "conversations": 4}),
}
GATE: Cases = {
    "name": decides("other"),
    "kind": refused("rl"),
    "candidate": decides("tiny-base").on(candidate_eval="newer-eval"),
    "candidate_eval": decides("newer-eval"),
    "parent": decides("tiny-base").on(parent_eval="older-eval"),
    "parent_eval": decides("older-eval"),
    # The verdict says its levels and margins in words: what counts is whether it promotes.
    "better": decides(["countdown-3", "arithmetic"], seen="promoted").on(task_margin=0.9),
    "alpha": decides(1e-4, seen="promoted").on(task_margin=0.9),
    "task_margin": decides(0.9, seen="promoted"),
    "not_worse": decides({"general": 0.2}, seen="promoted").on(task_margin=0.9),
}
_HABITS: Cases = {
    "think": decides(0.9),
    "empty_block": decides(0.9).on(habits__think=0.1),
    **{
        name: decides(value).on(habits__think=1.0)
        for name, value in {
            "patient": 0.9,
            "give_up": 0.1,
            "patient_give_up": 0.9,
            "keep_language": 0.1,
            "cut_short": 0.9,
        }.items()
    },
}
NETWORK = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
PRETRAIN: Cases = {
    **LEARNING,
    "tokens_per_batch": computes(256, seen="batches"),
    "name": names("other"),
    "kind": refused("rl"),
    "model_type": decides("qwen2"),
    "model": decides({**NETWORK, "intermediate_size": 32}),
    "tokenizer.vocab_size": decides(320),
    "tokenizer.sample_documents": decides(60),
    **{f"habits.{name}": flip for name, flip in _HABITS.items()},
    "steps": decides(1),
    "documents_per_step": decides(5),
}

_TRAINED = {"state_every": 9, "schedule": {"peak": 1e-2}, "from": "tiny-base-weak"}
_SAMPLES = {
    "steps": 2,
    "problems_per_step": 4,
    "group_size": 3,
    "updates_per_step": 2,
    "tasks": {"arithmetic": 1.0},
    "sampling": {"max_tokens": 6},
}
# What the runs of a kind begin with, and its cases.
KINDS: Mapping[str, tuple[Mapping[str, Any], Cases]] = {
    "rl": ({**_TRAINED, **_SAMPLES, "rewards": _REWARDED, "loss": {"algorithm": "grpo"}, "flat_groups": "keep"}, RL),
    "distill": ({**_TRAINED, **_SAMPLES, "teacher": "tiny-base"}, DISTILL),
    "sft": ({**_TRAINED, "data": ["dialogues"], "epochs": 1, "conversations_per_step": 6}, SFT),
    "reward-model": (
        {
            **_TRAINED,
            "data": ["talk"],
            "objective": "pointwise",
            "label": "accuracy",
            "held_out": 0.4,
            "examples_per_step": 24,
            "tasks": ["harmful-requests", "harmless-requests"],
        },
        REWARD_MODEL,
    ),
    "shorten": ({"from": "tiny-base", "layers": 2}, SHORTEN),
    "collect": (
        {"from": "tiny-base-weak", "tasks": {"arithmetic": 3}, "samples": 2, "sampling": {"max_tokens": 6}},
        COLLECT,
    ),
    "evaluate": (
        {"from": "tiny-base-weak", "tasks": {"arithmetic": 3}, "samples": 2, "sampling": {"max_tokens": 6}},
        EVALUATE,
    ),
    "curate": ({"data": ["attempts"], "keep": {"correct": False}}, CURATE),
    "gate": (
        {
            "candidate": "tiny-base-weak",
            "candidate_eval": "new-eval",
            "parent": "tiny-base-weak",
            "parent_eval": "old-eval",
            "better": ["countdown-3"],
            "task_margin": 0.5,
        },
        GATE,
    ),
    "pretrain": (
        {
            "state_every": 9,
            "schedule": {"peak": 1e-2},
            "model_type": "llama",
            "model": NETWORK,
            "tokenizer": {"vocab_size": 300, "sample_documents": 40},
            "steps": 2,
            "documents_per_step": 6,
            "tokens_per_batch": 1024,
        },
        PRETRAIN,
    ),
}
