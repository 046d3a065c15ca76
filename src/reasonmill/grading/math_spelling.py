"""One spelling for mathematics: Unicode signs, LaTeX layout and markdown become what `math_reader` reads.

Only the spelling changes here; nothing is computed. Words keep a mark, because `5 \\text{m}` are metres and `5 m` need
not be: `\\text{m}` becomes `⟦m⟧`.
"""

from __future__ import annotations

import re
import unicodedata

from reasonmill.grading.math_notations import usual_notation

WORD_OPEN, WORD_CLOSE = "⟦", "⟧"
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi"
    " psi omega"
)
# Written apart: the Greek block has two sigmas, and the second one ends words.
_GREEK_LETTERS = dict(zip("αβγδεζηθικλμνξοπρστυφχψω", _GREEK.split(), strict=True))
_SIGNS = {
    **{letter: f"\\{name} " for letter, name in _GREEK_LETTERS.items()},
    **{letter.upper(): f"\\{name.capitalize()} " for letter, name in _GREEK_LETTERS.items()},
    "ϕ": r"\phi ",
    "ϑ": r"\theta ",
    "ϵ": r"\epsilon ",
    "Ω": r"\Omega ",
    "∆": r"\Delta ",
    **dict.fromkeys("−–—‒‐‑﹣", "-"),
    **dict.fromkeys("×✕✖⋅·∙•∗⨯", r"\cdot "),
    **dict.fromkeys("÷∕⁄", "/"),
    "√": r"\sqrt ",
    "∛": r"\sqrt[3]",
    "∜": r"\sqrt[4]",
    "∞": r"\infty ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∅": r"\emptyset ",
    "∈": r"\in ",
    "ℝ": r"\reals ",
    "≤": "<=",
    "≥": ">=",
    "⩽": "<=",
    "⩾": ">=",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≅": r"\approx ",
    "∼": r"\sim ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "˚": r"^\circ ",
    "∘": r"\circ ",
    "′": "'",
    "’": "'",
    "‘": "'",
    "…": r"\ldots ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "⟶": r"\to ",
    "→": r"\to ",
    "∫": r"\int ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "“": '"',
    "”": '"',
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "〈": r"\langle ",
    "〉": r"\rangle ",
    "，": ", ",
    "、": ", ",
    "；": "; ",
    "。": ".",
    "≡": r"\equiv ",
    "¢": "⟦cents⟧",
    "€": "⟦euros⟧",
    "£": "⟦pounds⟧",
    "ⅈ": "i",
    "ⅇ": "e",
    "⅓": r" \frac{1}{3}",
}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "0123456789+-=()nix", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_PLAIN = re.compile(r"[\x20-\x7e]*")

# LaTeX that is layout only.
_LAYOUT = re.compile(
    r"\\(?:left|right|middle|hat|widehat|vec|overrightarrow|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|phantom\{[^{}]*\}|rm|bf|it"
    r"|mathstrut|strut|vphantom\{[^{}]*\}|hspace\{[^{}]*\}|hfill|boldmath|label\{[^{}]*\}|tag\{[^{}]*\})(?![A-Za-z])\.?"
)
_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:align|aligned|equation|gathered|split)\*?\}")
_COLOURED = re.compile(
    r"\\(?:color|textcolor|style|class)\s*\{[^{}]*\}|\\(?:measured)?angle(?![A-Za-z])|\\triangle(?![A-Za-z])"
)
_ROW_SKIP = re.compile(r"\\\\\s*\[[-\d.]+\s*(?:pt|em|ex|mm|cm)\]")
_GROUPS_OF_DIGITS = re.compile(r"(-?\d{1,3}(?: \d{3})+(?:\.\d+)?)")
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b")
_SIGN_WORD = re.compile(r"^(?:negative|minus)\s+(?=[\d.\\]|infinity)", re.IGNORECASE)
_FIRST_OF_SIGN_WORDS = frozenset("nmpNMP")
_PLUS_WORD = re.compile(r"^(?:positive|plus)\s+(?=infinity|\\infty)", re.IGNORECASE)
_SPACE_IN_NUMBER = re.compile(r"(?<=\d)(?:\\[,;:! ]|~|\{,\}|\{\\,\}|\\thinspace)\s*(?=\d{3}(?!\d))")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d)(?:,\s*\\!|\\!\s*,|,\s*\\!\s*|\{,\})\s*(?=\d{3}(?!\d))")
_SPACES = re.compile(r"\\(?:[,;:!> ]|(?:quad|qquad|thinspace|enspace|space|newline|linebreak|par)(?![A-Za-z]))|~")
_COLON = re.compile(r"(?<![A-Za-z])\{:\}")
_DOLLARS = re.compile(r"\\\$|\\textdollar(?![A-Za-z])|\\text\{\s*\\?\$\s*\}|\bUS\$")
_WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|sc)?|mbox|hbox|fbox|mathrm|mathit|mathsf|mathtt|mathbf|boldsymbol|bm"
    r"|operatorname\*?|emph|underline|mathcal|mathnormal|pmb|textsuperscript)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "sfrac", "nicefrac", "over"), "frac"),
    **dict.fromkeys(("tbinom", "dbinom"), "binom"),
    **dict.fromkeys(("leq", "leqslant", "le", "leqq"), "<="),
    **dict.fromkeys(("geq", "geqslant", "ge", "geqq"), ">="),
    "lt": "<",
    "gt": ">",
    "neq": r"\ne ",
    "not=": r"\ne ",
    "times": "*",
    "cdot": "*",
    "ast": "*",
    "div": "/",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "lbrack": "[",
    "rbrack": "]",
    "lparen": "(",
    "rparen": ")",
    "vert": "|",
    "mid": "|",
    "lvert": "|",
    "rvert": "|",
    "varnothing": r"\emptyset ",
    "backslash": r"\setminus ",
    "colon": ":",
    "degree": r"^\circ ",
    "degrees": r"^\circ ",
    "textdegree": r"^\circ ",
    "dots": r"\ldots ",
    "cdots": r"\ldots ",
    "Reals": r"\reals ",
    "R": r"\reals ",
    "land": ", ",
    "lor": "⟦or⟧",
    "cdotp": "*",
    "textbackslash": r"\setminus ",
    "varphi": r"\phi ",
    "vartheta": r"\theta ",
    "varepsilon": r"\epsilon ",
    "bullet": "*",
    "infin": r"\infty ",
    "iff": "⟦iff⟧",
    "simeq": r"\approx ",
    "cong": r"\approx ",
    "doteq": r"\approx ",
    "percent": "%",
    "bar": r"\overline",
    "ln": r"\ln ",
    "arcsin": r"\arcsin ",
    "euro": "⟦euros⟧",
    "pounds": "⟦pounds⟧",
    "textpercent": "%",
}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_BLACKBOARD = re.compile(r"\\mathbb\s*(?:\{\s*([A-Z])\s*\}|([A-Z]))|\\mathbf\{R\}")
_MARKDOWN = re.compile(r"^(\*\*|__|`+|\*|_)(.+?)\1$", re.DOTALL)
_MATH_SIGNS = re.compile(r"\\[()\[\]]|\$")
_NESTED = 8


def plain_signs(text: str) -> str:
    """Unicode as ASCII and LaTeX: minus signs, fractions, digits of all scripts, superscripts; invisible signs go."""
    if _PLAIN.fullmatch(text):
        return text
    text = _RAISED.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m[0]) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + "".join(_SUBSCRIPTS[c] for c in m[0]) + "}", text)
    return "".join(map(_plain_sign, text))


def _plain_sign(sign: str) -> str:
    if " " <= sign <= "~":
        return sign
    if sign in _SIGNS:
        return _SIGNS[sign]
    kind = unicodedata.category(sign)
    if kind == "Nd":
        return str(unicodedata.digit(sign))
    if kind in ("Cf", "Mn") or sign in (WORD_OPEN, WORD_CLOSE):
        return ""
    if kind in ("Zs", "Zl", "Zp", "Cc"):
        return " "
    fraction = re.fullmatch(r"<fraction> ((?:003\d ?)+)2044 ((?:003\d ?)+)", unicodedata.decomposition(sign))
    if fraction:
        above, below = ("".join(chr(int(code, 16)) for code in part.split()) for part in fraction.groups())
        return f" \\frac{{{above}}}{{{below}}}"
    # Fullwidth and other forms of a sign; what it stands for may be a sign of the table.
    plain = unicodedata.normalize("NFKC", sign)
    return sign if plain == sign else "".join(map(_plain_sign, plain))


def without_markup(text: str) -> str:
    """A text without the markdown and the dollars that stand around all of it."""
    text = text.strip()
    for _ in range(_NESTED):
        match = _MARKDOWN.match(text)
        if match is None:
            break
        text = match[2].strip()
    return text


def plain_mathematics(text: str) -> str:
    """Mathematics in one spelling: layout is gone, `\\dfrac` is `\\frac`, words stand in marks, dollars are a word."""
    text = plain_signs(without_markup(text))
    if "\\" in text or "~" in text or "{" in text:
        text = _COLON.sub(":", text) if "{:}" in text else text
        text = _DOLLARS.sub("⟦dollars⟧", text)
        text = _ALIGNED.sub(" ", _COLOURED.sub(" ", text))
        text = _LAYOUT.sub(" ", text)
        text = _COMMA_IN_NUMBER.sub(",", text)
        text = _SPACE_IN_NUMBER.sub("", text)
        text = _ROW_SKIP.sub(r"\\\\", text).replace(r"\\", "\x00")
        text = _SPACES.sub(" ", text)
        text = _BLACKBOARD.sub(lambda m: {"R": r"\reals ", "Z": "⟦integers⟧"}.get(m[1] or m[2] or "R", m[0]), text)
        for _ in range(_NESTED):
            text, changed = _WORDS.subn(_marked, text)
            if not changed:
                break
        text = _MATH_SIGNS.sub(" ", text)
        text = _COMMAND.sub(_plain_command, text).replace("\x00", r"\\")
        text = text.replace(r"\%", "%").replace(r"\#", "#").replace(r"\|", "|").replace(r"\_", "_")
    if text.count("$") % 2:
        text = re.sub(r"\$(?=\s*[-+]?\s*[\d.])", "⟦dollars⟧", text)
    text = _ORDINAL.sub("", text.replace("$", " ").replace("**", "^"))
    text = " ".join(text.split())
    if text[:1] in _FIRST_OF_SIGN_WORDS:
        text = _PLUS_WORD.sub("", _SIGN_WORD.sub("-", text))
    text = usual_notation(text)
    return text.replace(" ", "") if _GROUPS_OF_DIGITS.fullmatch(text) else text


def _marked(match: re.Match[str]) -> str:
    """Words in marks; a part that is mathematics itself, such as a number, needs none."""
    inside = match[1].replace(WORD_OPEN, " ").replace(WORD_CLOSE, " ").strip()
    if re.fullmatch(r"[-+\d.,:\s/%]*(?:(?<=\d)(?:st|nd|rd|th))?", inside):
        return f" {inside} "
    if re.fullmatch(r"[A-Za-z]", inside) and not match[0].startswith(("\\text", "\\mbox", "\\mathrm")):
        return f" {inside} "
    if "\\" in inside or "$" in inside:
        return f" {inside} "
    return f"{WORD_OPEN}{inside}{WORD_CLOSE}"


def _plain_command(match: re.Match[str]) -> str:
    plain = _COMMANDS.get(match[1])
    if plain is None:
        return match[0]
    return f"\\{plain}" if plain.isalpha() else plain
