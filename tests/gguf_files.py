"""GGUF files as llama.cpp writes them, of tiny networks and of vocabularies made by hand."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

# Beside the 256 bytes: numbers of two and three digits, and words. The last two are control tokens.
MERGES = ["1 2", "12 8", "a d", "ad d", "Ġ a", "Ġa n", "Ġan d"]
CONTROL = ["<|im_start|>", "<|im_end|>"]
TOKENS = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), *CONTROL]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(path: Path, network: PreTrainedModel, *, kind: str = "F32", pre: str = "smollm", **changes: Any) -> Path:
    """Writes a network with the tokenizer of `TOKENS`.

    Args:
        kind: the type of its matrices.
        pre: how its tokenizer splits text.
        changes: other values of settings, by their whole names; None leaves one out.
    """
    config: Any = network.config
    name = config.model_type
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    settings: dict[str, Any] = {
        "general.name": "tiny",
        f"{name}.block_count": config.num_hidden_layers,
        f"{name}.context_length": config.max_position_embeddings,
        f"{name}.embedding_length": config.hidden_size,
        f"{name}.feed_forward_length": config.intermediate_size,
        f"{name}.attention.head_count": heads,
        f"{name}.attention.head_count_kv": groups,
        f"{name}.attention.key_length": width,
        f"{name}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{name}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3 if token in CONTROL else 1 for token in TOKENS],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": TOKENS.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": TOKENS.index("<|im_end|>"),
        "tokenizer.chat_template": TEMPLATE,
        **changes,
    }
    writer = gguf.GGUFWriter(path, changes.get("general.architecture", name))
    for key, value in settings.items():
        if value is None or key == "general.architecture":
            continue
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[bool] = writer.add_bool
        add[type(value)](key, value)
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name), 9)
    state = network.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    for key, tensor in state.items():
        values = tensor.float().numpy()
        if name == "llama" and (".q_proj." in key or ".k_proj." in key):
            values = rotated_as_neighbours(values, heads if ".q_proj." in key else groups)
        of = getattr(gguf.GGMLQuantizationType, kind if values.ndim > 1 else "F32")
        held = gguf.quantize(values, of)
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), held, raw_dtype=of)
    if config.rope_parameters["rope_type"] == "llama3":
        slowed = _waves(config, width) * network.get_decoder().rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (1 / slowed).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rotated_as_neighbours(values: Any, heads: int) -> Any:
    """Rows of queries or keys in the order of ggml: what transformers rotates together stands side by side."""
    rows = values.shape[0] // heads
    order = [head * rows + half * rows // 2 + at for head in range(heads) for at in range(rows // 2) for half in (0, 1)]
    return np.ascontiguousarray(values[order])


def _waves(config: Any, width: int) -> Any:
    return float(config.rope_parameters["rope_theta"]) ** (np.arange(0, width, 2) / width)
