"""Model directories that are prompted otherwise than their own files say, whoever reads them.

A template, a system message, examples and stop strings become files of the directory, in Hugging Face's formats, so
that samplers, stages, chats and other programs need not know of them, and a model that is trained from it keeps them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reasonmill.errors import UnsupportedModel
from reasonmill.model.directory import content
from reasonmill.model.tokenizer import STOP_STRINGS, model_tokenizer
from reasonmill.templates import CHAT_TEMPLATES, Prompting, with_turns

# Where Hugging Face keeps a chat template today, and where it kept it before.
_TEMPLATE, _TOKENIZER = "chat_template.jinja", "tokenizer_config.json"
_GENERATION = "generation_config.json"


def link_as_prompted(model: Path, target: Path, prompting: Prompting) -> None:
    """Makes `target` a model directory of links to the files of another one, which stays as it is, but for what says
    how the model is prompted.

    Raises:
        UnsupportedModel: a system message or examples are asked for, and the model has no template that shows them.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    template = _template(model, prompting)
    written = {
        **({_TOKENIZER: _without_template(model)} if template is not None else {}),
        **({_GENERATION: _with_stops(model, prompting.stop)} if prompting.stop else {}),
    }
    for file in model.iterdir():
        if file.name not in written and (template is None or "chat_template" not in file.name):
            (target / file.name).symlink_to(file.resolve())
    for name, table in written.items():
        if table or name == _GENERATION:
            (target / name).write_text(json.dumps(table, indent=2), encoding="utf-8")
    if template is None:
        return
    if prompting.named is not None:
        template = _beginning(target) + template
    (target / _TEMPLATE).write_text(template, encoding="utf-8")
    if prompting.system is None and not prompting.examples:
        return
    tokenizer = model_tokenizer(target)
    if prompting.system is not None and not tokenizer.shows(prompting.system):
        raise UnsupportedModel(
            "the model's chat template leaves the system message out",
            fix="give a template that shows it, or leave the system message out",
            where=str(model),
        )
    # Templates of reasoning models leave out what was thought in earlier turns.
    for number, (asked, said) in enumerate(prompting.examples, start=1):
        if not tokenizer.shows(asked) or not tokenizer.shows(said):
            raise UnsupportedModel(
                f"the model's chat template leaves out a part of example {number}",
                fix="give a template that shows whole turns, thinking included, or leave the examples out",
                where=str(model),
            )


@contextmanager
def as_prompted(model: Path, prompting: Prompting) -> Iterator[Path]:
    """The model's directory; within the block one of its own where it is prompted otherwise than its files say.

    Raises:
        UnsupportedModel: as of `link_as_prompted`.
    """
    if not prompting.content:
        yield model
        return
    with TemporaryDirectory(prefix="reasonmill-") as folder:
        target = Path(folder) / model.name
        link_as_prompted(model, target, prompting)
        yield target


def _template(model: Path, prompting: Prompting) -> str | None:
    """The template that the model gets; None where its own stays."""
    template = prompting.template if prompting.named is None else CHAT_TEMPLATES[prompting.named]
    if prompting.system is None and not prompting.examples:
        return template
    if template is None:
        own = model_tokenizer(model).plain.chat_template
        template = own.get("default") if isinstance(own, dict) else own
    if template is None:
        raise UnsupportedModel(
            "the model has no chat template that a system message or examples could stand in",
            fix="give it a template, too",
            where=str(model),
        )
    return with_turns(template, prompting.system, prompting.examples)


def _without_template(model: Path) -> dict[str, Any]:
    """The tokenizer's settings, in which older models keep their templates."""
    return {name: value for name, value in content(model / _TOKENIZER).items() if name != "chat_template"}


def _with_stops(model: Path, stop: tuple[str, ...]) -> dict[str, Any]:
    settings = content(model / _GENERATION)
    own = settings.get(STOP_STRINGS) or []
    return {**settings, STOP_STRINGS: list(dict.fromkeys([*([own] if isinstance(own, str) else own), *stop]))}


def _beginning(model: Path) -> str:
    """What the model's tokenizer puts before any text, which a chat template has to say itself."""
    if not any(model.glob("tokenizer*")):
        return ""
    tokenizer = model_tokenizer(model)
    beginning: str = tokenizer.plain.decode(tokenizer.prefix, skip_special_tokens=False)
    return beginning
