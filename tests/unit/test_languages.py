"""Languages: shares of mixed texts, what counts for none, and which language a prompt is in."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonmill.languages import detect_language, known_languages, language_share, problem_language
from reasonmill.rewards.rules.language import language_reward
from reasonmill.types import Completion, Message, Problem
from reasonmill.world import lexicon

ENGLISH = "First we add the numbers and then we check whether the sum is even."  # 14 words, none of one letter
GERMAN = "Dann teilen wir das Ergebnis durch zwei und sehen, ob etwas übrig bleibt."  # 13 words
CHINESE = "首先我们看看已知条件是什么，然后决定方法。"  # 19 characters


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        (ENGLISH, {"en": 1.0, "de": 0.0, "zh": 0.0}),
        (f"{ENGLISH} {GERMAN}", {"en": 14 / 27, "de": 13 / 27}),
        (f"{ENGLISH}\n{CHINESE}", {"en": 14 / 23.5, "zh": 9.5 / 23.5, "ja": 0.0}),
        # Within a sentence, as R1-Zero mixed them: 2 of 13 words, each of two characters.
        ("So we have 所以 the answer is 答案 and we check it again", {"en": 11 / 13, "zh": 2 / 13}),
        # Terms in another script are too few to have a language, whole clauses are not.
        ("我们使用 gradient descent 来优化这个函数，因此结果更好。", {"zh": 1.0, "en": 0.0}),
        (
            "我们先看条件，then we check whether the sum of both numbers is even，再继续。",
            {"zh": 4.5 / 15.5, "en": 11 / 15.5},
        ),
        # A German sentence stays German with its loan words.
        ("Also gut, das Meeting ist gecancelt, weil der Server down ist und das Update nicht läuft.", {"de": 1.0}),
        # Points, variables and functions in Chinese geometry are no English.
        ("三角形ABC中，AB=AC，求角B的度数，sin(x) = y_1。", {"zh": 1.0}),
        # Han is Japanese where kana stand in its clause, or in most others.
        ("まず式を見て計算しましょう。計算：3 + 4。", {"ja": 1.0, "zh": 0.0}),
        ("我们需要计算。计算：3 + 4。", {"zh": 1.0, "ja": 0.0}),
        ("안녕하세요, 이 문제를 풀어 봅시다", {"ko": 1.0}),
        ("Подожди, это было неверно, потому что на последнем шаге я ошибся.", {"ru": 1.0, "uk": 0.0}),
        ("Зачекай, це було неправильно, бо на останньому кроці я помилився.", {"uk": 1.0, "ru": 0.0}),
        ("ลองคิดดูก่อนว่าคำตอบคืออะไร", {"th": 1.0}),
        # Capitals, broken characters, tags and money are no hindrance.
        ("THE ANSWER MUST BE SMALLER THAN WHAT WE EXPECTED", {"en": 1.0}),
        ("\ud800 \x00 \x07 what is this strange text about?", {"en": 1.0}),
        ("<think> we pay $5 for the first and then $10 for each of them </think>", {"en": 1.0}),
    ],
)
def test_shares(text: str, shares: dict[str, float]) -> None:
    assert {language: language_share(text, language) for language in shares} == pytest.approx(shares)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "x = 3, y = 4, x + y = 7",
        r"$\frac{a}{b} \text{where the sum is even}$",
        r"\[ \sum_{i=1}^{n} \text{where the sum is even} \]",
        "```python\nfor each in range(3):\n    print(each, 'and then we check the sum')\n```",
        "`the sum of the numbers`",
        "https://example.org/what/is/the/answer/to/this",
        "sum_of_all the_next_one is3even",
        "yes",
        "So what",  # two words are too few
        "Natalia Tobias Marissa",  # nothing is sure about names
        "QWERTZ" * 20,
        "\ud800\udfff",
        "1" * 1000,
    ],
)
def test_nothing_to_judge(text: str) -> None:
    assert language_share(text, "en") is None
    assert detect_language(text) is None


def test_code_and_formulas_are_no_place_to_think_in_another_script() -> None:
    hidden = f"{ENGLISH}\n```\n# {CHINESE}\n```\n$\\text{{{CHINESE}}}$"
    assert language_share(hidden, "en") == 14 / (14 + 9.5 + 9.5)


def test_regions_do_not_matter_and_unknown_languages_are_refused() -> None:
    assert language_share(CHINESE, "zh-CN") == language_share(CHINESE, "ZH_Hans") == 1.0
    assert {"en", "de", "zh", "ja", "ru", "ar", "hi"} <= known_languages()
    for text in (ENGLISH, ""):
        with pytest.raises(ValueError, match="unknown language 'klingon'"):
            language_share(text, "klingon")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How many apples are left when two of them are eaten?", "en"),
        ("Wie viele Äpfel bleiben übrig, wenn zwei davon gegessen werden?", "de"),
        ("Combien de pommes reste-t-il quand on en mange deux ?", "fr"),
        ("如果吃掉两个苹果，还剩几个？", "zh"),
        ("りんごを二つ食べると、いくつ残りますか。", "ja"),
        ("كم تفاحة تبقى إذا أكلنا اثنتين منها؟", "ar"),
        ("अगर दो सेब खा लिए जाएँ तो कितने सेब बचेंगे?", "hi"),
        ("Let $x$ be the smallest number such that $x^2 > 10$. What is $x$?", "en"),
        ("Compute $1 + 2$.", None),
        (f"{ENGLISH} {GERMAN}", None),  # neither is most of it
    ],
)
def test_the_language_of_a_prompt(text: str, language: str | None) -> None:
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("prompt", "meta", "language"),
    [
        (GERMAN, {"language": "en"}, "en"),  # what is named comes first
        (GERMAN, {}, "de"),
        (GERMAN, {"language": "german"}, "de"),  # no code that the measure knows
        (GERMAN, {"language": 3}, "de"),
        ("2 + 2 = ?", {}, None),
        ("2 + 2 = ?", {"language": "klingon"}, None),
    ],
)
def test_the_language_of_a_problem(prompt: str, meta: dict[str, object], language: str | None) -> None:
    problem = Problem("fake", (Message("user", prompt),), "4", meta)
    assert problem_language(problem, language_share) == language


def test_a_language_that_the_task_does_not_measure_is_none() -> None:
    french = Problem("fake", (Message("user", "Combien de pommes reste-t-il quand on en mange deux ?"),), "4")
    assert problem_language(french, language_share) == "fr"
    assert problem_language(french, lexicon.language_share) is None


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (f"<think>{ENGLISH}</think><answer>4</answer>", 1.0),
        (f"<think>{GERMAN}</think><answer>{ENGLISH}</answer>", 0.0),  # thinking comes first
        (f"<think>2 + 2 = 4</think><answer>{ENGLISH}</answer>", 1.0),  # no word in it: the answer is measured
        ("<think>2 + 2 = 4</think><answer>4</answer>", 0.0),  # nothing to measure in either earns nothing
        ("", 0.0),
    ],
)
def test_the_reward_of_real_languages(text: str, reward: float) -> None:
    problem = Problem("fake", (Message("user", "What do we get if we add two and two?"),), "4")
    completion = Completion((1,), (0.0,), (True,), text, "stop", 0)
    assert language_reward(language_share, problem, completion) == reward


@pytest.mark.parametrize(
    "piece",
    ["word ", "a", "`", "``` a ``", "$ a", "\\[ a", "\\( a", "<a ", "\\begin{a", "a'", "a_", "我", "7", "\u0301", ". "],
)
def test_a_megabyte_of_anything_is_read(piece: str) -> None:
    share = language_share(piece * (1_000_000 // len(piece)), "en")
    assert share is None or 0.0 <= share <= 1.0


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=()), max_size=200))
def test_any_text_is_safe_and_its_shares_add_up(text: str) -> None:
    shares = [language_share(text, language) for language in sorted(known_languages())]
    if shares[0] is None:
        assert set(shares) == {None}
    else:
        assert sum(share or 0.0 for share in shares) == pytest.approx(1.0)


def test_another_process_measures_the_same() -> None:
    texts = [ENGLISH, f"{ENGLISH} {GERMAN} {CHINESE}", "So the answer ist also kleiner als we thought before"]
    program = (
        "import json, sys\n"
        "from reasonmill.languages import known_languages, language_share\n"
        "texts = json.loads(sys.stdin.read())\n"
        "print(json.dumps([[language_share(t, l) for l in sorted(known_languages())] for t in texts]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    here = [[language_share(text, language) for language in sorted(known_languages())] for text in texts]
    assert json.loads(ran.stdout) == here
