"""Instruction following in the manner of IFEval: what a reply must do is written beside the prompt, and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal

from reasonmill.errors import suggestion
from reasonmill.grading.instruction_checks import CHECKS, Arguments, InstructionError
from reasonmill.grading.reply import reply_of
from reasonmill.grading.verdict import Isolation, Verdict
from reasonmill.types import Problem

Instruction = tuple[str, Arguments]
Strictness = Literal["strict", "loose"]
_REPEATED = "prompt_to_repeat"


class InstructionsGrader:
    """Right if the reply follows each of the problem's instructions.

    The instructions stand in `meta` as in the rows of IFEval: `instruction_id_list` names them, `kwargs` has the
    arguments of each. Without these, `answer` is a JSON object with the two.

    Args:
        by: "strict" takes the reply as it is; "loose" is content if an instruction is followed by the reply without its
            first line, without its last line, or without asterisks, as people introduce and decorate what they say.
            Parts hold the shares of the instructions that are followed, and whether all are, in both ways.
    """

    isolation: Isolation = "none"
    asks = ""
    is_open = True

    def __init__(self, by: Strictness = "strict") -> None:
        self._by = by

    def judge(self, problem: Problem, response: str) -> Verdict:
        reply = reply_of(response) or ""
        versions = [version for version in _versions(reply) if version.strip()]
        try:
            instructions = instructions_of(problem)
            # The first version is the reply as it is. What an empty reply would follow is asked, too: an instruction
            # that can't be checked is no fault of this response.
            repeated = _repeated(instructions)
            followed = [[_follows(each, version, repeated) for version in versions or [""]] for each in instructions]
        except InstructionError as error:
            return Verdict.could_not_tell(str(error))
        strict = [bool(versions) and bool(reply) and each[0] for each in followed]
        loose = [bool(versions) and any(each) for each in followed]
        parts = {
            "strict": float(all(strict)),
            "loose": float(all(loose)),
            "strict_share": sum(strict) / len(strict),
            "loose_share": sum(loose) / len(loose),
        }
        counted = strict if self._by == "strict" else loose
        missed = [name for (name, _), is_followed in zip(instructions, counted, strict=True) if not is_followed]
        return Verdict.wrong(f"does not follow {', '.join(missed)}", parts) if missed else Verdict.right("", parts)


def instructions_of(problem: Problem) -> list[Instruction]:
    """The names and arguments of what a problem's reply must do.

    Raises:
        InstructionError: there are none, or they can't be read.
    """
    source: Mapping[str, Any] = problem.meta
    if "instruction_id_list" not in source:
        try:
            source = json.loads(problem.answer)
        except (ValueError, RecursionError):
            source = {}
    names = source.get("instruction_id_list") if isinstance(source, Mapping) else None
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise InstructionError("the problem names no instructions: its 'instruction_id_list' is missing or empty")
    given = source.get("kwargs") or [{}] * len(names)
    if not isinstance(given, Sequence) or len(given) != len(names):
        raise InstructionError(f"the problem has {len(names)} instructions, and 'kwargs' is no list of as many")
    for name in names:
        if name not in CHECKS:
            raise InstructionError(f"unknown instruction {name!r}; {suggestion(str(name), CHECKS)}".rstrip("; "))
    return [(name, arguments or {}) for name, arguments in zip(names, given, strict=True)]


def _repeated(instructions: Sequence[Instruction]) -> str:
    """What the reply has to repeat first, in whatever language it is; empty where that is nothing."""
    asked = next((arguments.get(_REPEATED) for _, arguments in instructions if arguments.get(_REPEATED)), "")
    return asked.strip() if isinstance(asked, str) else ""


def _follows(instruction: Instruction, reply: str, repeated: str) -> bool:
    name, arguments = instruction
    if name.startswith("language:") and repeated and reply.strip().lower().startswith(repeated.lower()):
        reply = reply.strip()[len(repeated) :]
    try:
        return CHECKS[name](reply, arguments)
    except InstructionError as error:
        raise InstructionError(f"instruction {name!r}: {error}") from error


def _versions(reply: str) -> list[str]:
    """The reply, and the reply without its first or last line or both, each also without asterisks."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(lines[first : len(lines) - last]).strip() for first, last in ((1, 0), (0, 1), (1, 1)))]
    return [text.replace("*", "") if plain else text for plain, text in product((False, True), cut)]
