"""How models are prompted otherwise than by their own files: chat templates, system messages, stop strings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What stands before the question in R1-Zero's template (paper, Table 1), in words of our own.
R1_ZERO_PREAMBLE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process and then gives the answer. The reasoning is enclosed in <think> </think> "
    "and the answer in <answer> </answer>, that is, <think> reasoning here </think> <answer> answer here </answer>."
)

# Jinja as tokenizers keep it, by the name that a recipe gives it. A single question reads like the plain template. What
# the model's tokenizer puts before any text is set before the template where it is given to a model.
CHAT_TEMPLATES: Mapping[str, str] = {
    "r1-zero": (
        R1_ZERO_PREAMBLE + "{% for message in messages %}"
        "{% if message.role == 'assistant' %} Assistant: {{ message.content }}"
        "{% else %} User: {{ message.content }}.{% endif %}"
        "{% endfor %}{% if add_generation_prompt %} Assistant:{% endif %}"
    )
}


@dataclass(frozen=True)
class Prompting:
    """How a model is prompted otherwise than by its own files say.

    Attributes:
        named: the name of one of this package's templates.
        template: the text of another one.
        system: the system message of conversations that begin without one.
        examples: turns that stand before every conversation, behind its system message: what a user asks, and what the
            model says.
        stop: texts that end a turn, beside the model's stop tokens.

    Raises:
        ValueError: a system message has no place in the template.
    """

    named: str | None = None
    template: str | None = None
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.named is not None and self.system is not None:
            raise ValueError(f"the template {self.named!r} says itself what is to be done: leave system out")
        if self.named is not None and self.examples:
            raise ValueError(f"the template {self.named!r} is for a single question: leave examples out")
        if self.system == "" or "" in self.stop:
            raise ValueError("an empty system message has no effect, and an empty stop string ends every reply at once")

    @property
    def content(self) -> dict[str, Any]:
        """What it says, as JSON; empty where it says nothing."""
        template = self.template if self.named is None else CHAT_TEMPLATES[self.named]
        told = {"template": template, "system": self.system, "examples": self.examples, "stop": list(self.stop)}
        return {name: value for name, value in told.items() if value}


def read_template(text: str, folder: Path) -> str:
    """The chat template in a file.

    Args:
        text: its path.
        folder: what the path is relative to.

    Raises:
        ValueError: there is no such file.
    """
    file = folder / Path(text).expanduser()
    if not text.endswith(".jinja") or not file.is_file():
        known = " or ".join(map(repr, CHAT_TEMPLATES))
        raise ValueError(f"{text!r} is no template: write {known}, or the path of a .jinja file that is there")
    return file.read_text(encoding="utf-8-sig")


def with_turns(template: str, system: str | None, examples: Sequence[tuple[str, str]]) -> str:
    """A chat template that shows conversations with this system message where they begin without one, and with these
    turns of user and assistant before their own."""
    shown = template
    if examples:
        turns = [turn for user, said in examples for turn in (_message("user", user), _message("assistant", said))]
        listed = f"[{', '.join(turns)}]"
        shown = (
            "{% if messages and messages[0].role == 'system' %}"
            f"{{% set messages = [messages[0]] + {listed} + messages[1:] %}}"
            f"{{% else %}}{{% set messages = {listed} + messages %}}{{% endif %}}{shown}"
        )
    if system is not None:
        shown = (
            "{% if not messages or messages[0].role != 'system' %}"
            f"{{% set messages = [{_message('system', system)}] + messages %}}"
            f"{{% endif %}}{shown}"
        )
    return shown


def _message(role: str, content: str) -> str:
    return json.dumps({"role": role, "content": content}, ensure_ascii=False)
