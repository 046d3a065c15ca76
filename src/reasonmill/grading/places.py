r"""Where the answer stands in a response: a tag, \boxed{}, a statement, the last line, the last number, a pattern.

The last final answer counts. Answers that are given beside each other ("\boxed{41} or \boxed{42}") are all found, so
that a grader sees that they differ; one that the response takes back or negates is none. Every search is linear in
the response's length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from reasonmill.errors import RecipeError
from reasonmill.transcript import THINK_CLOSE, THINK_OPEN

Place = Literal["auto", "answer", "boxed", "last-line", "last-number", "pattern"]
PLACES: tuple[Place, ...] = get_args(Place)
ASKS: dict[Place, str] = {
    "auto": r"Put your final answer in \boxed{}.",
    "answer": "Put your final answer between <answer> and </answer>.",
    "boxed": r"Put your final answer in \boxed{}.",
    "last-line": "Write your final answer, and nothing else, on the last line.",
    "last-number": "End with your final answer as a number.",
    "pattern": "",
}
# How much of a response is looked at around an answer for what is said of it.
_AROUND = 300
# How far back the last line is looked for.
_LAST_LINES = 10_000
# How many statements are looked at, and how much of each.
_STATEMENTS, _STATED = 20, 500
_HASHES = "####"
_CLOSE_BY = 40

_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s*((?:\\[A-Za-z]+(?:\{[^{}\n]{0,80}\}){0,2}|[-+]?[\d.,/]+|[A-Za-z])(?=[\s$.,)\\]|$))")
_TAG = re.compile(r"<answer>|</answer>", re.IGNORECASE)
_STATEMENT = re.compile(
    r"####|(?:\banswer\b|\bans\b)[ \t]*(?:to (?:the|this) (?:problem|question) )?(?:\([^)\n]{0,40}\))?[*_ \t]{0,6}"
    r"(?:is[*_ \t]{0,6}(?:therefore|then|thus|simply|just|given by|equal to)?[*_ \t]{0,6}:?|:|=)(?:\*\*|__)?",
    re.IGNORECASE,
)
# What leads from one statement to the next: "Final Answer: The final" answer is.
_LEADING = re.compile(r"(?:(?:so|and|thus|hence|then|therefore|the|my|our|final|correct|right)\b[, ]*)+", re.IGNORECASE)
_PROSE = re.compile(r"(?<!\\)\b[A-Za-z]{2,}\b")
_WORD = re.compile(r"(?<!\\)\b[A-Za-z]{3,}\b")
_FORMULA = re.compile(r"\$[^$\n]{1,400}(?<![= ])\$(?!\d)|\\\((?:(?!\\\)).){1,400}\\\)|\\\[(?:(?!\\\]).){1,400}\\\]")
_CALCULATED = re.compile(r"<<[^<>\n]{0,200}>>")
_SENTENCE_END = re.compile(r"(?<=[^\d\s.])\.(?=\s|$)|(?<=\d)\.(?=\s+[A-Z]|\s*$)|[.!?](?=\s+[A-Z])")
_CONNECTED = re.compile(
    r"\b(?:therefore|thus|hence|so|final|finally|wait|actually|correct(?:ion|ed|ing)?|sorry|no|instead|mistake|wrong|rather"
    r"|then|next|step|now|simplif\w+|which|because|since|add\w*|multipl\w+|divid\w+|subtract\w*|total)\b",
    re.IGNORECASE,
)
# What takes back the answer that it stands right behind: "No.", "is wrong", "(rejected)".
_TAKEN_BACK = re.compile(
    r"[\s$.,;:!?()*\]}\"'-]*(?:(?:oh|hm+|well|but|oops|sorry|er|uh)\b[\s,.!-]*)*"
    r"(?:(?:no|nope|nah|not|wrong|incorrect|false|rejected|extraneous|not (?:really|quite|exactly|right|correct|true)"
    r"|(?:just )?(?:kidding|joking)|never ?mind)(?=\s*(?:[.,!?;:)]|$))"
    r"|(?:is|was) (?:wrong|incorrect|false|mistaken|rejected|an? (?:mistake|error)"
    r"|not (?:right|correct|the (?:final |right |correct )?answer|it\b)))",
    re.IGNORECASE,
)
# What takes an answer back from further behind. What is said of another number ("17 would be wrong") takes back none.
_RETRACTED = re.compile(
    r"\b(?:(?P<what>that|this|it|which|answer|result|value|above|[-+]?\d[\d.,/]*)"
    r"(?:(?:'s| is| was) (?:wrong|incorrect|false|mistaken|an? (?:mistake|error)|"
    r"not (?:right|correct|the (?:final |right |correct )?answer|it\b))"
    r"|(?: isn't| wasn't) (?:right|correct|the answer|it\b))"
    r"|(?:scratch|disregard|ignore|forget|strike) (?:that|this|it|the above|my (?:last|previous))"
    r"|(?:take|taking) (?:that|it) back)\b",
    re.IGNORECASE,
)
_LATER = re.compile(
    r"(?:\b(?:it|that|this|answer) should (?:have been|be|read)|\bI meant"
    r"|\b(?:(?:actually|correction|sorry|rather|oops|nope)[,:.!]? |(?:no|wait)[,:.!] "
    r"|(?<!not )(?:really|no|wait|in (?:fact|truth|reality)),? "
    r"(?=it|that|the answer|no\b|wait|actually|sorry|I mean|make))"
    r"(?:(?:no|wait|actually|really|sorry|I mean|make (?:it|that)|it is|it's|that is|that's|the answer is)[,:]? ){0,4}"
    r"|####|\banswer is|\bfinal answer:)"
    r"[ \t:*$]*(?P<said>[-+]?(?:\\|\$|\d|\()[^\n]{0,200})",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\brather than|\binstead of|\bunlike|\bexcept)[ \t]+"
    r"(?:(?:be|equal(?: to)?|the|an?|correct|right|final|answer|is|simply|just|equals)[ \t]+){0,5}[ \t$:(*`]*$",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(
    r"^[\s$.)*,]{0,6}(?:or|alternatively)\s+(?:maybe\s+|perhaps\s+|possibly\s+|else\s+)?(?P<said>[-+]?(?:\\|\$|\d)\S{0,80})",
    re.IGNORECASE,
)
_BEFORE_OR = re.compile(
    r"(?P<said>[-+]?(?:\d[\d.,/]*|\.\d+))[$)]?\s+or\s+(?:maybe\s+|perhaps\s+|possibly\s+)?[\s$(*]{0,4}$", re.IGNORECASE
)
_NUMBER = re.compile(r"[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?%?")


@dataclass(frozen=True)
class Found:
    """What a response gives as its final answer.

    Attributes:
        texts: one answer; several where it gives several beside each other; none where there is none.
        reason: why there is none.
        prose: whether the text is a line in which the answer is not marked.
    """

    texts: tuple[str, ...] = ()
    reason: str = ""
    prose: bool = False


@dataclass(frozen=True)
class _Span:
    start: int
    stop: int
    text: str


def check_place(answer_in: str, pattern: str | None) -> re.Pattern[str] | None:
    """Checks the settings of a place; returns the compiled pattern.

    Raises:
        RecipeError: there is no such place, or its pattern is missing, wrong or without effect.
    """
    if answer_in not in PLACES:
        raise RecipeError(f"unknown answer_in {answer_in!r}", fix=f"use one of {', '.join(PLACES)}")
    if (answer_in == "pattern") != (pattern is not None):
        raise RecipeError(
            'answer_in = "pattern" and pattern = "..." need each other', fix="give both of them, or none of the two"
        )
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"pattern {pattern!r} is no regular expression: {error}") from error
    if compiled.groups > 1:
        raise RecipeError(
            f"pattern {pattern!r} has several groups", fix="mark the answer by one group, others as (?:...)"
        )
    return compiled


def find_answer(response: str, place: Place, pattern: re.Pattern[str] | None = None) -> Found:
    """The final answer of a response.

    Args:
        pattern: for the place "pattern": the last match's group, or all of it where there is no group.
    """
    said = after_thinking(response)
    if said is None:
        return Found(reason="its thinking does not end")
    if not said.strip():
        return Found(reason="the response is empty")
    if place == "pattern":
        assert pattern is not None
        matches = pattern.findall(said)
        return Found((matches[-1],)) if matches else Found(reason="nothing matches the pattern")
    if place == "last-line":
        return Found((_last_line(said),))
    if place == "last-number":
        numbers = _NUMBER.findall(_CALCULATED.sub("", said))
        return Found((numbers[-1],)) if numbers else Found(reason="there is no number")
    if place == "answer":
        return _tagged(said)
    if place == "boxed":
        return _boxed(said)
    return _anywhere(said)


def answer_text(found: Found) -> str | None:
    """What stands there, in one text; None where there is no answer."""
    return ", ".join(found.texts) or None


def after_thinking(response: str) -> str | None:
    """What is said after the thinking; None where the thinking does not end."""
    said = response.rpartition(THINK_CLOSE)[2]
    return None if THINK_OPEN in said else said


def takes_back(before: str, behind: str) -> bool:
    """Whether what stands around an answer says that it is none: "not" before it, "is wrong" or "no" behind it."""
    return bool(_NEGATED.search(before[-_AROUND:]) or _TAKEN_BACK.match(behind[:_AROUND]))


def _anywhere(said: str) -> Found:
    if _TAG.search(said):
        return _tagged(said)
    if "\\boxed" in said or "\\fbox" in said:
        return _boxed(said)
    spans = _statements(said)
    if spans:
        return _final(said, spans)
    line = _CALCULATED.sub("", _last_line(said))
    formulas = [match for match in _FORMULA.finditer(line) if not _WORD.search(match[0])]
    if formulas and (len(formulas) == 1 or not line[formulas[-1].end() :].strip(" .,;:!")):
        if _NEGATED.search(line[: formulas[-1].start()]):
            return Found(reason="the response says that this is not the answer")
        return Found((formulas[-1][0],))
    after = line.rpartition("=")[2].strip()
    return Found(
        (after if after and _NUMBER.search(after) and re.search(r"[A-Za-z]{2,} ", line) else line,),
        prose=bool(_PROSE.search(line)),
    )


def _statements(said: str) -> list[_Span]:
    """What the last statements such as "the answer is ..." say, each to the end of its sentence."""
    heads = list(_STATEMENT.finditer(said))[-_STATEMENTS:]
    if heads and heads[-1][0] == _HASHES:
        heads = [head for head in heads if head[0] == _HASHES]  # the mark of GSM8K says that nothing else is final
    ends = [*(head.start() for head in heads[1:]), len(said)]
    spans = []
    for head, end in zip(heads, ends, strict=False):
        rest = said[head.end() : min(end, head.end() + _STATED)]
        line = next((line for line in rest.splitlines() if line.strip(" \t*_:")), "")
        text = _to_sentence_end(line)
        if text and not _LEADING.fullmatch(text):
            spans.append(
                _Span(head.start(), head.end() + rest.index(line) + len(line.partition(text)[0]) + len(text), text)
            )
    return spans


def _tagged(said: str) -> Found:
    blocks: list[_Span] = []
    opened = -1
    for match in _TAG.finditer(said):
        if match[0][1] != "/":
            if opened >= 0:
                return Found(reason="an <answer> stands within another")
            opened = match.end()
        elif opened >= 0:
            blocks.append(_Span(opened, match.start(), said[opened : match.start()].strip()))
            opened = -1
    if opened >= 0 or not blocks:
        return Found(
            reason="there is no answer between <answer> and </answer>" if not blocks else "an <answer> does not end"
        )
    texts: list[str] = []
    for block in blocks:
        inside = _boxed(block.text) if "\\boxed" in block.text else Found((block.text,))
        if not inside.texts:
            return inside
        texts += inside.texts
    return _as_it_stands(texts, said[blocks[-1].stop + len("</answer>") :][:_AROUND])


def _boxed(said: str) -> Found:
    spans, unclosed = _boxes(said)
    if unclosed:
        return Found(reason=r"the last \boxed{} does not end")
    return _final(said, spans) if spans else Found(reason=r"there is no \boxed{}")


def _boxes(said: str) -> tuple[list[_Span], bool]:
    """The outermost boxes, in order, and whether one was still open at the end."""
    spans: list[_Span] = []
    stack: list[tuple[bool, int, int]] = []
    boxes = 0
    for match in _BRACES.finditer(said):
        brace = match[0]
        if (brace[0] == "\\" and brace[-1] != "{") or brace == r"\{":
            continue
        if brace != "}":
            is_box = brace != "{"
            boxes += is_box
            stack.append((is_box, match.start(), match.end()))
        elif stack:
            is_box, start, inside = stack.pop()
            boxes -= is_box
            if is_box and not boxes:
                spans.append(_Span(start, match.end(), said[inside : match.start()].strip()))
    spans += [_Span(match.start(), match.end(), match[1]) for match in _BARE_BOX.finditer(said)]
    return sorted(spans, key=lambda span: span.start), boxes > 0


def _final(said: str, spans: Sequence[_Span]) -> Found:
    """The last answer, with those that stand beside it, unless the response negates it or takes it back."""
    denied = {
        span.text for span in spans[-_STATEMENTS:] if _NEGATED.search(said[max(0, span.start - _AROUND) : span.start])
    }
    standing = [span for span in spans if span.text not in denied]
    if not standing:
        return Found(reason="the response says that this is not the answer")
    group = [standing[-1]]
    for span in reversed(standing[:-1]):
        between = said[span.stop : group[0].start]
        if len(between.strip()) > _CLOSE_BY or _CONNECTED.search(between):
            break
        group.insert(0, span)
    texts = [span.text for span in group]
    before = said[max(0, group[0].start - _AROUND) : group[0].start]
    behind = said[group[-1].stop : group[-1].stop + _AROUND]
    other = _BEFORE_OR.search(before[-_CLOSE_BY:])
    if other:
        texts.insert(0, other["said"])
    other = _ALTERNATIVE.search(behind)
    if other:
        texts.append(_to_sentence_end(other["said"]))
    return _as_it_stands(texts, behind)


def _as_it_stands(texts: list[str], behind: str) -> Found:
    """Answers, unless what is said behind them takes them back or puts another in their place."""
    retracted = _TAKEN_BACK.match(behind) is not None or any(
        not (match["what"] or "")[-1:].isdigit() or match["what"] in texts for match in _RETRACTED.finditer(behind)
    )
    later = list(_LATER.finditer(behind))
    if later:
        last = _to_sentence_end(later[-1]["said"])
        texts = (
            [last] if retracted or not later[-1][0].lower().startswith(("answer", "final", "####")) else [*texts, last]
        )
    elif retracted:
        return Found(reason="the response takes its answer back")
    return Found(tuple(dict.fromkeys(texts)))


def _to_sentence_end(text: str) -> str:
    """A statement's first sentence: a full stop within a number is none."""
    text = _CALCULATED.sub("", text).strip()
    match = _SENTENCE_END.search(text)
    return (text[: match.start()] if match else text).strip().strip("*_` ").rstrip(".").strip()


def _last_line(said: str) -> str:
    """The last line that has a letter or a digit; all of the text where none has."""
    lines = said[-_LAST_LINES:].splitlines()
    return next((line.strip() for line in reversed(lines) if re.search(r"\w", line)), said.strip())
