"""The tiny world's tokenizer: byte-level BPE in which most numbers up to 99 are one token, and each tag is one."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reasonmill.transcript import TAGS
from reasonmill.world.tables import table

END, PAD, USER, ASSISTANT, SYSTEM = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (END, PAD, USER, ASSISTANT, SYSTEM)
# One or two digits, a word, a mark, each with the space before it.
_PIECES = r" ?\p{N}{1,2}| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s"

CHAT_TEMPLATE: str = table(__name__)["chat_template"]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns the merges from texts.

    Args:
        texts: the corpus, or a sample of it, without tags and special tokens.
        vocab_size: all tokens, the 256 bytes, tags and special tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    reserved = len(SPECIAL_TOKENS) + len(TAGS)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - reserved,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        clean_up_tokenization_spaces=False,
    )
    # Tags are single tokens, but no special ones: they are part of what the model says, and decoding keeps them.
    wrapped.add_tokens(list(TAGS), special_tokens=False)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    """Writes a tokenizer so that transformers 4 reads it, too, which does not know version 5's names of things."""
    tokenizer.save_pretrained(target)
    file = target / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = config.pop("extra_special_tokens", [])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
