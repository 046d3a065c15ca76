"""The tokenizer of a model directory: what ends a turn, what it puts before a text, and text that stays text."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reasonmill.errors import UnsupportedModel
from reasonmill.model.decoder import first_line
from reasonmill.model.directory import content, refuse_foreign_code
from reasonmill.transcript import TAGS

# The files that say how a model's texts are read, beside its config: its tokenizer and how it generates.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "*.model",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
)

# The setting of generation_config.json with the texts that end a turn.
STOP_STRINGS = "stop_strings"

# One for the same files, for as long as the process lives: the tokenizers library keeps the words that it has merged
# in memory of the thread, which outlives the tokenizer, so that one for each stage would fill it without end.
_TOKENIZERS: dict[str, ModelTokenizer] = {}

# Makes the text of a conversation from the contents of its messages.
Show = Callable[[Sequence[str]], str]

# In place of the function that tells templates the date. A text can't be called: a template that asks fails.
_NO_CLOCK = "no clock"
_RANDOM = re.compile(r"\|\s*random\b")
_PROBE = "reasonmill asks"
_TURN = "reasonmill says"


class ModelTokenizer:
    """A tokenizer with its chat template, which is asked only what can be seen in what it gives.

    Control tokens are those that end or structure a conversation: the special ones among the added tokens, and those
    that stop a completion. Tags are none, though they may be special tokens: a model writes them.

    Attributes:
        stop_tokens: the tokenizer's end token, those of generation_config.json, and what its template puts behind a
            turn of the assistant.
        stop_strings: texts that end a turn, too; those of generation_config.json.
        end_of_turn: the stop token that a turn is taught to end with: the template's, or else the tokenizer's own.
        opening: what a prompt says on behalf of the assistant, from a tag that opens thinking on; mostly nothing.
        prefix: what the tokenizer itself puts before any text, a beginning-of-text token for example.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: set[int], where: str, stop_strings: tuple[str, ...] = ()
    ) -> None:
        """`stops` and `stop_strings` are those that the files of the model name; `where` is its directory, for
        messages."""
        self.plain = tokenizer
        self.stop_strings = stop_strings
        self._where = where
        added = tokenizer.added_tokens_decoder
        self._control = {
            number: token.content
            for number, token in added.items()
            if (token.special or number in stops) and token.content not in TAGS
        }
        spelled = sorted(self._control.values(), key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, spelled)) if spelled else r"(?!)")
        of_template = self._end_of_shown_turn()
        self.stop_tokens = frozenset(stops if of_template is None else {*stops, of_template})
        if not self.stop_tokens:
            raise UnsupportedModel(
                "the tokenizer has no end-of-text token, so no completion would ever stop",
                fix="set eos_token in tokenizer_config.json",
                where=self._where,
            )
        own = tokenizer.eos_token_id
        self.end_of_turn = next(token for token in (of_template, own, min(self.stop_tokens)) if token is not None)
        self.opening = self._opening()
        self.prefix = self._prefix()

    def show(self, turns: Sequence[tuple[str, str]], *, goes_on: bool) -> str:
        """The conversation of (role, content) as the chat template has it.

        Raises:
            UnsupportedModel: the template refuses it, or is none.
        """
        messages = [{"role": role, "content": content} for role, content in turns]
        if _RANDOM.search(str(self.plain.chat_template)):
            raise UnsupportedModel(
                "the model's chat template draws by chance (`random`): the same conversation would be another text "
                "each time",
                fix="write into the template what it shall say",
                where=self._where,
            )
        try:
            text: str = self.plain.apply_chat_template(
                messages, add_generation_prompt=goes_on, tokenize=False, strftime_now=_NO_CLOCK
            )
        except Exception as error:  # whatever a template's own code comes to
            roles = ", ".join(role for role, _ in turns)
            why = f"it says: {str(error) or type(error).__name__}"
            if isinstance(error, TypeError) and "strftime_now" in str(self.plain.chat_template):
                why = "it writes the date (strftime_now) into prompts, which would be others each day"
            raise UnsupportedModel(
                f"the model's chat template can't show a conversation of {roles}: {why}",
                fix="leave out the role that it does not know, or correct the template, for example by a fixed date",
                where=self._where,
            ) from error
        return text

    def shows(self, text: str) -> bool:
        """Whether a conversation of one turn has this text in it, whoever says it."""
        return " ".join(text.split()) in " ".join(self.show([("user", _PROBE)], goes_on=True).split())

    def text(self, text: str) -> list[int]:
        """Tokens of a text: nothing in it becomes a control token, whatever it spells."""
        tokens: list[int] = self.plain.encode(text, add_special_tokens=False)
        return tokens if self._control.keys().isdisjoint(tokens) else self._without_control.encode(text).ids

    def shown(self, contents: Sequence[str], show: Show) -> list[int]:
        """Tokens of what `show` makes of the contents: its own marks are control tokens, the contents' are text.

        All is read in one go, as the tokenizer would read it: pieces would have other blanks at their ends.
        """
        return self.all_shown([(contents, show)])[0]

    def all_shown(self, conversations: Sequence[tuple[Sequence[str], Show]]) -> list[list[int]]:
        """`shown` of each of the contents, which are read together."""
        texts = [show(contents) for contents, show in conversations]
        marked = [any(self._marks.search(content) for content in contents) for contents, _ in conversations]
        read = iter(self.read([text for text, is_marked in zip(texts, marked, strict=True) if not is_marked]))
        found = []
        for (contents, show), text, is_marked in zip(conversations, texts, marked, strict=True):
            tokens = None if is_marked else next(read)
            # Otherwise the tokenizer took something else for a control token, full-width signs for example.
            if tokens is None or sum(token in self._control for token in tokens) != len(self._marks.findall(text)):
                tokens = self._shown_as_text(contents, show)
            found.append(tokens)
        return found

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts, whose marks are control tokens; fast tokenizers read them on all processors."""
        if len(texts) > 1 and self.plain.is_fast:
            together: list[list[int]] = self.plain(
                list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
            )["input_ids"]
            return together
        return [self.plain.encode(text, add_special_tokens=False) for text in texts]

    def _shown_as_text(self, contents: Sequence[str], show: Show) -> list[int]:
        """`shown` where contents spell control tokens."""
        spelled: list[str] = []
        nonce = secrets.token_hex(16)  # nobody can have written it into a content

        def hide(match: re.Match[str]) -> str:
            spelled.append(match[0])
            return f"<{nonce}-{len(spelled) - 1}>"

        text = show([self._marks.sub(hide, content) for content in contents])
        text = self._marks.sub(lambda match: self._aliases[match[0]], text)
        text = re.sub(f"<{nonce}-([0-9]+)>", lambda match: spelled[int(match[1])], text)
        return self._without_control.encode(text, add_special_tokens=False).ids

    @cached_property
    def _aliases(self) -> dict[str, str]:
        return {content: f"<{secrets.token_hex(16)}>" for content in self._control.values()}

    @cached_property
    def _without_control(self) -> Tokenizer:
        """The same tokenizer, but that its control tokens have other names, which no text has."""
        backend = getattr(self.plain, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UnsupportedModel(
                "a text spells a control token, and this tokenizer can't read it as text",
                fix="save the model's fast tokenizer (tokenizer.json) next to it",
                where=self._where,
            )
        state: dict[str, Any] = json.loads(backend.to_str())
        state |= {"post_processor": None, "truncation": None, "padding": None}
        for token in state["added_tokens"]:
            if token["content"] in self._aliases:
                token |= {"content": self._aliases[token["content"]], "normalized": False}
        model, named = state["model"], self._aliases.get
        if isinstance(model["vocab"], dict):
            model["vocab"] = {named(piece, piece): number for piece, number in model["vocab"].items()}
        else:
            model["vocab"] = [[named(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = named(model["unk_token"], model["unk_token"])
        if "merges" in model:
            pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
            model["merges"] = [pair for pair in pairs if self._aliases.keys().isdisjoint([*pair, "".join(pair)])]
        return Tokenizer.from_str(json.dumps(state))

    def _end_of_shown_turn(self) -> int | None:
        """The first control token behind a turn of the assistant; None in a template that ends none, or shows none."""
        try:
            _, shown, behind = self.show([("user", _PROBE), ("assistant", _TURN)], goes_on=False).rpartition(_TURN)
        except UnsupportedModel:
            return None
        tokens = self.plain.encode(behind, add_special_tokens=False) if shown else []
        return next((token for token in tokens if token in self._control), None)

    def _opening(self) -> str:
        try:
            _, _, behind = self.show([("user", _PROBE)], goes_on=True).rpartition(_PROBE)
        except UnsupportedModel:
            return ""
        opened, closed = behind.rfind(TAGS[0]), behind.rfind(TAGS[1])
        return behind[opened:] if opened > closed else ""

    def _prefix(self) -> tuple[int, ...]:
        bare = self.plain.encode(_PROBE, add_special_tokens=False)
        whole = self.plain.encode(_PROBE)
        starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
        return tuple(whole[: starts[0]]) if starts else ()


def model_tokenizer(model_dir: Path, *, trust_remote_code: bool = False) -> ModelTokenizer:
    """The tokenizer of a model directory.

    Args:
        trust_remote_code: whether code that comes with it may run.

    Raises:
        UnsupportedModel: the directory holds no tokenizer, or one that never ends a text.
    """
    hasher = hashlib.blake2b(digest_size=32)
    for pattern in ("config.json", *COMPANIONS):
        for file in sorted(model_dir.glob(pattern)):
            held = file.read_bytes()
            hasher.update(f"{file.name} {len(held)}\n".encode() + held)
    content_digest = hasher.hexdigest()
    if content_digest not in _TOKENIZERS:
        refuse_foreign_code(model_dir, "tokenizer_config.json", trust=trust_remote_code)
        try:
            tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
        except Exception as error:  # whatever transformers, tokenizers and a tokenizer's own code raise
            raise UnsupportedModel(
                f"no tokenizer can be loaded: {first_line(error)}",
                fix="save the tokenizer next to the model, its JSON files as UTF-8 without a byte order mark",
                where=str(model_dir),
            ) from error
        stops = _configured_stops(model_dir, tokenizer)
        texts = _configured_stop_strings(model_dir)
        _TOKENIZERS[content_digest] = ModelTokenizer(tokenizer, stops, str(model_dir), texts)
    return _TOKENIZERS[content_digest]


def _configured_stops(model_dir: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's end token and those of generation_config.json, which chat models use for the end of a turn."""
    file = model_dir / "generation_config.json"
    configured = content(file).get("eos_token_id")
    listed = configured if isinstance(configured, list) else [configured]
    stops = [stop for stop in (tokenizer.eos_token_id, *listed) if stop is not None]
    known = set(tokenizer.get_vocab().values())
    wrong = [stop for stop in stops if type(stop) is not int or stop not in known]
    if wrong:
        raise UnsupportedModel(
            f"eos_token_id names no token of the tokenizer: {json.dumps(wrong)}",
            fix="write the numbers of tokens that end a turn, or leave it out",
            where=str(file),
        )
    return set(stops)


def _configured_stop_strings(model_dir: Path) -> tuple[str, ...]:
    """The texts that generation_config.json ends a turn with."""
    file = model_dir / "generation_config.json"
    configured = content(file).get(STOP_STRINGS) or []
    listed = [configured] if isinstance(configured, str) else configured
    if not isinstance(listed, list) or not all(isinstance(text, str) and text for text in listed):
        raise UnsupportedModel(
            f"{STOP_STRINGS} is no list of texts: {json.dumps(configured)}",
            fix="write the texts that end a turn, or leave it out",
            where=str(file),
        )
    return tuple(listed)
