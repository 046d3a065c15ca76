"""The expression parser: exact values, and nothing but arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonmill.tasks.expression import ExpressionError, read_expression


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("7", 7, (7,)),
        ("3 + 8", 11, (3, 8)),
        ("2 + 3 * 4", 14, (2, 3, 4)),
        ("( 2 + 3 ) * 4", 20, (2, 3, 4)),
        ("10 - 4 - 3", 3, (10, 4, 3)),
        ("24 / 4 / 3", 2, (24, 4, 3)),
        ("24 / 4 * 3", 18, (24, 4, 3)),
        ("10 - 4 + 3", 9, (10, 4, 3)),
        ("10 - ( 4 + 3 )", 3, (10, 4, 3)),
        ("1 - 2", -1, (1, 2)),
        ("1 / 3", Fraction(1, 3), (1, 3)),
        ("1 / 3 * 3", 1, (1, 3, 3)),
        ("0 / 5", 0, (0, 5)),
        ("((7))", 7, (7,)),
        ("3+8*1", 11, (3, 8, 1)),
        (" \t3\n+  8 ", 11, (3, 8)),
    ],
)
def test_values(text: str, value: int | Fraction, numbers: tuple[int, ...]) -> None:
    expression = read_expression(text)
    assert expression.value == value
    assert expression.numbers == numbers


def test_values_are_exact() -> None:
    assert read_expression("1 / 3 + 1 / 3 + 1 / 3").value == 1
    large = "9" * 45
    assert read_expression(f"{large} * {large} - {large} * {large} + 1").value == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+",
        "( )",
        "()",
        "3 +",
        "* 3",
        "3 8",
        "3 ( 8 )",
        "( 3 ) ( 8 )",
        "( 3",
        "3 )",
        ") 3 (",
        "-3",
        "+3",
        "3 + -8",
        "3 - - 8",
        "( - 3 )",
        "2 ** 3",
        "7 // 2",
        "7 % 2",
        "2 ^ 3",
        "3 + 8 = 11",
        "3.0",
        "1e2",
        "0x10",
        "1_000",
        "1,000",
        "3 x 8",
        "3 \u00d7 8",
        "3 \u2212 8",
        "3 \u00f7 8",
        "\u0663 + 8",
        "\uff13 + 8",
        "\u00b2",
        "3 +\u00a08",
        "abs(3)",
        "__import__('os').system('true')",
        "(lambda: 3)()",
        "[3][0]",
        "3 if 1 else 8",
        "3 # 8",
        "3; 8",
        "3\x00",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        read_expression(text)


@pytest.mark.parametrize("text", ["1 / 0", "1 / ( 3 - 3 )", "0 / 0", "( 1 / ( 2 - 2 ) ) * 0"])
def test_division_by_zero_has_no_value(text: str) -> None:
    with pytest.raises(ExpressionError, match="division by zero"):
        read_expression(text)


def test_nesting_is_bounded() -> None:
    assert read_expression("(" * 32 + "7" + ")" * 32).value == 7
    with pytest.raises(ExpressionError, match="deeper than 32"):
        read_expression("(" * 33 + "7" + ")" * 33)


def test_length_is_bounded() -> None:
    assert read_expression("1+" * 99 + "10").value == 109
    with pytest.raises(ExpressionError, match="longer than 200"):
        read_expression("1+" * 100 + "1")
    with pytest.raises(ExpressionError, match="longer than 200"):
        read_expression("(" * 100_000)


# Against Python's own parser, on random expressions

expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner, st.sampled_from(["", " "])).map(
            lambda parts: f"{parts[0]}{parts[3]}{parts[1]}{parts[3]}{parts[2]}"
        )
        | inner.map(lambda text: f"({text})")
    ),
    max_leaves=12,
)


class _Exact:
    """A number of an expression for Python's eval, exact and counted."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __getitem__(self, number: int) -> Fraction:
        self.seen.append(number)
        return Fraction(number)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(expressions)
def test_python_agrees(text: str) -> None:
    # Each number becomes N[number], which is exact; the text comes from the strategy above, so that eval is harmless.
    numbers = _Exact()
    marked = "".join(f"N[{piece}]" if piece.isdigit() else piece for piece in _pieces(text))
    try:
        expected = eval(marked, {"N": numbers})
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="division by zero"):
            read_expression(text)
        return
    expression = read_expression(text)
    assert expression.value == expected
    assert list(expression.numbers) == numbers.seen


def _pieces(text: str) -> list[str]:
    """Runs of digits, and single other characters."""
    pieces: list[str] = []
    for character in text:
        if character.isdigit() and pieces and pieces[-1].isdigit():
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces
