"""transformers' side of `generate_outside.py`, which this file is as a script: reasonmill is never imported here.

    python benchmarks/outside_side.py ASKED.json ANSWERS.json

ASKED names a model's directory, a device, how many texts are generated together, and jobs. A job samples or continues
greedily from conversations, or says which two tokens are the likeliest behind given ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging


def main() -> None:
    logging.disable_progress_bar()
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    answers = []
    for job in asked["jobs"]:
        dtype = getattr(torch, job["dtype"])
        model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=dtype).to(asked["device"]).eval()
        with torch.inference_mode():
            done = _likeliest(model, job) if "prefixes" in job else _generated(model, tokenizer, job, asked["batch"])
        answers.append(done)
        del model
    assert not any(name.partition(".")[0] == "reasonmill" for name in sys.modules)
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")


def _generated(model: Any, tokenizer: Any, job: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """The prompts' tokens, what stops a text, and of each prompt its answers."""
    torch.manual_seed(job["seed"])
    stops = _as_list(model.generation_config.eos_token_id)
    padding = next(token for token in (tokenizer.pad_token_id, *stops, 0) if token is not None)
    # Of the model's own settings only those count that stop a text; temperature, penalties and beams are put aside.
    drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if job["sampled"] else {}
    settings = {"do_sample": job["sampled"], "num_beams": 1, "max_new_tokens": job["max_tokens"], **drawn}
    model.generation_config = GenerationConfig(eos_token_id=stops or None, pad_token_id=padding, **settings)
    prompts = [
        tokenizer(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False),
            add_special_tokens=False,
        )["input_ids"]
        for messages in job["conversations"]
    ]
    rows = [prompt for prompt in prompts for _ in range(job["samples"])]
    answers: list[dict[str, Any]] = []
    for first in range(0, len(rows), batch):
        tokens, mask = _padded(rows[first : first + batch], padding, model.device)
        generated = model.generate(input_ids=tokens, attention_mask=mask)
        for row in generated[:, tokens.shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in stops), None)
            text = tokenizer.decode(row if end is None else row[:end], skip_special_tokens=False)
            answers.append({"tokens": row if end is None else row[: end + 1], "text": text, "ended": end is not None})
        print(f"generate(): {len(answers)}/{len(rows)}", file=sys.stderr, flush=True)
    samples = job["samples"]
    grouped = [answers[first : first + samples] for first in range(0, len(answers), samples)]
    return {"prompts": prompts, "stops": stops, "answers": grouped}


def _likeliest(model: Any, job: Mapping[str, Any]) -> list[list[tuple[int, float]]]:
    """The two likeliest next tokens of each sequence and their log-probs; each runs alone, without padding."""
    found = []
    for prefix in job["prefixes"]:
        logits = model(input_ids=torch.tensor([prefix], device=model.device)).logits[0, -1]
        best = torch.log_softmax(logits.double(), -1).topk(2)
        found.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
    return found


def _padded(rows: Sequence[Sequence[int]], padding: int, device: Any) -> Iterator[torch.Tensor]:
    """Tokens and mask [rows, longest], padded on the left."""
    longest = max(map(len, rows))
    yield torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows], device=device)
    yield torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else value


if __name__ == "__main__":
    main()
