"""The tokenizer that a GGUF file describes, as Hugging Face's.

The file has the vocabulary, the merges or scores, and for byte-level BPE the name of the way in which text is split
before anything is merged (`tokenizer.ggml.pre`): one that is not known here is refused, because numbers, blanks or
words would be read otherwise than the model learned them, and nothing would say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reasonmill.errors import UnsupportedModel
from reasonmill.model.gguf_header import GgufHeader

# Kinds of tokenizers that are read, and what they need beside their tokens: byte-level BPE, and SentencePiece's BPE.
_NEEDED = {"gpt2": "merges", "llama": "scores"}
# Kinds of tokens, as ggml numbers them, that are taken out of a text before anything is split.
_CONTROL, _OF_USER = 3, 4
_BLANK = "▁"
_CHAT_TEMPLATE = "tokenizer.chat_template"

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# How text is split, by the names that llama.cpp gives the ways: what it splits at. None is GPT-2's, which tokenizers
# has; "digits" sets each digit apart, and then splits as GPT-2.
_SPLITS: dict[str, str | None] = {
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r"), "digits"),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), None),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), rf"{_ENGLISH}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"),
    **dict.fromkeys(("qwen2", "megrez"), rf"{_ENGLISH}|{_WORD}|\p{{N}}|{_REST}"),
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
# Ways whose tokenizers take a word that is a token as it is, whatever the merges would make of it.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
# Ways whose tokenizers put a beginning before a text where the file does not say.
_BEGINNING = ("llama-bpe", "llama3", "llama-v3")
# Ways whose tokenizers compose characters first.
_COMPOSED = ("qwen2",)


def refuse_tokenizer(header: GgufHeader) -> None:
    """Refuses a file whose tokenizer can't be made again.

    Raises:
        UnsupportedModel: it has none, or one of a kind that is not known.
    """
    kind, split = header.of_tokenizer("model"), header.of_tokenizer("pre")
    what = ""
    if not header.of_tokenizer("tokens"):
        what = "it has no tokenizer"
    elif kind not in _NEEDED:
        what = f"its tokenizer is of kind {kind!r}, and {', '.join(map(repr, _NEEDED))} are read"
    elif not header.of_tokenizer(_NEEDED[kind]):
        what = f"its tokenizer has no {_NEEDED[kind]}"
    elif kind == "gpt2" and split not in _SPLITS:
        what = f"its tokenizer splits text in a way that is not known here: {split!r}, none of {', '.join(_SPLITS)}"
    elif header.of_tokenizer("eos_token_id") is None:
        what = "it names no token that ends a text"
    if what:
        raise UnsupportedModel(
            f"the GGUF file can't be used: {what}",
            fix="give the checkpoint that it was made from, as a directory",
            where=str(header.path),
        )


def write_tokenizer(header: GgufHeader, target: Path, longest: int) -> None:
    """Writes the tokenizer and the chat template of a file that was not refused.

    Args:
        longest: tokens that a text may have.
    """
    from transformers import PreTrainedTokenizerFast

    named = {f"{role}_token": _token(header, of) for role, of in _ROLES.items()}
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=_backend(header),
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
        **{role: token for role, token in named.items() if token is not None},
    )
    template = header.settings.get(_CHAT_TEMPLATE)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(target)


def ends_of_turns(header: GgufHeader) -> list[int]:
    """The tokens that end a text or a turn, in order."""
    ends = (header.of_tokenizer(f"{name}_token_id") for name in ("eos", "eot", "eom"))
    return sorted({int(end) for end in ends if end is not None})


_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


def _token(header: GgufHeader, of: str) -> str | None:
    number = header.of_tokenizer(of)
    return None if number is None else str(header.of_tokenizer("tokens")[number])


def _backend(header: GgufHeader) -> Any:
    from tokenizers import AddedToken, processors

    tokens, kinds = header.of_tokenizer("tokens"), header.of_tokenizer("token_type") or []
    of_pieces = header.of_tokenizer("model") == "llama"
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = (_of_pieces if of_pieces else _bytewise)(header, vocabulary)
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if kind in (_CONTROL, _OF_USER) or number == header.of_tokenizer("eos_token_id"):
            backend.add_tokens([AddedToken(token, normalized=False, special=kind != _OF_USER)])
    begins = of_pieces or header.of_tokenizer("pre") in _BEGINNING
    before, behind = (
        [_token(header, f"{role}_token_id")] if header.of_tokenizer(f"add_{role}_token", otherwise) else []
        for role, otherwise in (("bos", begins), ("eos", False))
    )
    if before or behind:
        named = [(token, vocabulary[token]) for token in (*before, *behind) if token is not None]
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join([*map(str, before), "$A", *map(str, behind)]), special_tokens=named
        )
    return backend


def _bytewise(header: GgufHeader, vocabulary: dict[str, int]) -> Any:
    """Byte-level BPE without its added tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    split = header.of_tokenizer("pre")
    merges = [tuple(pair.split(" ", 1)) for pair in header.of_tokenizer("merges")]
    backend: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split in _WHOLE_WORDS))
    if split in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    how = _SPLITS[split]
    first: list[Any] = []
    if how == "digits":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif how is not None:
        first = [pre_tokenizers.Split(Regex(how), behavior="isolated")]
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=how in (None, "digits"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, bytewise])
    backend.decoder = decoders.ByteLevel()
    return backend


def _of_pieces(header: GgufHeader, vocabulary: dict[str, int]) -> Any:
    """SentencePiece's BPE without its added tokens: blanks are a sign of their own, and bytes stand for what has no
    piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    unknown = _token(header, "unknown_token_id")
    merges = _merges(vocabulary, header.of_tokenizer("scores"))
    backend: Any = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    starts_blank = header.of_tokenizer("add_space_prefix", True)
    first = [normalizers.Prepend(_BLANK)] if starts_blank else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", _BLANK)])
    last = [decoders.Strip(" ", 1, 0)] if starts_blank else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    return backend


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """What two pieces are merged into a third, the best third first: SentencePiece keeps the scores of pieces, where
    BPE has an order of pairs."""
    pairs = [
        (-scores[number], number, vocabulary[left], left, right)
        for piece, number in vocabulary.items()
        for left, right in ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        if left in vocabulary and right in vocabulary
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]
