"""Languages: shares of mixed texts, what counts for none, and which language a prompt is in."""

import json
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonmill import languages
from reasonmill.curation.filters import Keep, Sample, thinking_fault
from reasonmill.errors import RecipeError
from reasonmill.languages import detect_language, known_languages, language_share, problem_language
from reasonmill.protocols import Attempt, Domain
from reasonmill.recipe.load import load_recipe
from reasonmill.rewards.combination import check_rewards
from reasonmill.rewards.rules.language import LanguageReward
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Grade, Message, Problem
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
    task = NamedTask("sums", Sums("How many apples are left when two of them are eaten?"))
    completion = Completion((1,), (0.0,), (True,), text, "stop", 0)
    attempt = Attempt(task.problem("train", 0, 0), completion, task, ())
    assert LanguageReward().measure(attempt) == reward


def test_the_reward_of_a_language_that_nobody_can_tell_is_none() -> None:
    task = NamedTask("sums", Sums("Compute $1 + 2$."))
    completion = Completion((1,), (0.0,), (True,), f"<think>{ENGLISH}</think>", "stop", 0)
    assert LanguageReward().measure(Attempt(task.problem("train", 0, 0), completion, task, ())) is None


# Words of every script that several languages share: accents in two forms and alone, capitals, and what is no text.
WORDS = """привет это было неверно зачекай будь ласка здраво свете сум добър ден қазақша сөз ОБЩЕЕ سلام دنیا یہ کیا ہے
مرحبا بالعالم नमस्ते दुनिया यह आहे हो école über GRÖSSE niño mañana przykład že čeština İstanbul ığdır việt ång the and
THE AND of und der que los don't l'homme it’s e\u0301cole n\u0303 \u0301 \u0301\u0323a \ud800"""


@pytest.mark.parametrize("script", ["latin", "cyrillic", "arabic", "devanagari"])
def test_windows_have_the_probabilities_that_the_classifier_gives_one_by_one(script: str) -> None:
    """To the last bit: where two languages are about as likely, another rounding is another language."""
    theirs = copy(languages._model())
    theirs.set_languages(languages._SCRIPTS[script].languages)
    theirs.nb_ptc = theirs.nb_ptc.astype("float32")
    chance = random.Random(script)
    windows = [chance.choices(WORDS.split(), k=chance.randint(1, 12)) for _ in range(languages._TOGETHER + 30)]
    windows += [ENGLISH.split(), ENGLISH.upper().split(), ["\u3042"]]  # the last has no feature of any language
    ours = languages._classifier(script).probabilities(windows)
    for window, found in zip(windows, ours.tolist(), strict=True):
        expected = dict(theirs.rank(" ".join(window)))
        assert found == [expected[language] for language in languages._SCRIPTS[script].languages], window


def test_a_text_is_read_once_and_no_more_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    reading = languages.words_by_language

    def noted(text: str) -> dict[str, float]:
        read.append(text)
        return reading(text)

    monkeypatch.setattr(languages, "words_by_language", noted)
    monkeypatch.setattr(languages, "_REMEMBERED", type(languages._REMEMBERED)())
    monkeypatch.setattr(languages, "REMEMBERED", 2)
    for text in (ENGLISH, GERMAN, ENGLISH, "\ud800", ENGLISH, GERMAN, ENGLISH):
        shares = {language: language_share(text, language) for language in ("en", "de")}
        assert shares == (
            {"en": None, "de": None} if text == "\ud800" else {"en": text == ENGLISH, "de": text == GERMAN}
        )
    # The German text was asked for longest ago when the third came.
    assert read == [ENGLISH, GERMAN, "\ud800", GERMAN]
    assert [len(key) for key in languages._REMEMBERED] == [16, 16]  # never the text itself


@pytest.mark.parametrize(
    "piece",
    ["word ", "a", "`", "``` a ``", "$ a", "\\[ a", "\\( a", "<a ", "\\begin{a", "a'", "a_", "我", "7", "\u0301", ". "],
)
def test_a_long_text_of_anything_is_read(piece: str) -> None:
    """Where reading is quadratic in the length, this does not come to an end."""
    length = 60_000 if piece == "word " else 200_000  # words are classified, which is linear and slow
    share = language_share(piece * (length // len(piece)), "en")
    assert share is None or 0.0 <= share <= 1.0


@pytest.mark.check
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=()), max_size=200))
def test_any_text_is_safe_and_its_shares_add_up(text: str) -> None:
    shares = [language_share(text, language) for language in sorted(known_languages())]
    if shares[0] is None:
        assert set(shares) == {None}
    else:
        assert sum(share or 0.0 for share in shares) == pytest.approx(1.0)


@pytest.mark.check
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


# Where tasks and recipes come in


class Sums:
    """Always the same prompt, and no measure of languages of its own."""

    domain: Domain = "reasoning"

    def __init__(self, prompt: str, **meta: object) -> None:
        self._problem = Problem("sums", (Message("user", prompt),), "3", meta)

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return self._problem

    def problems(self, split: str, seed: int) -> Iterable[Problem]:
        return [self._problem]  # fewer than are looked at

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [Grade(0.0, {"accuracy": 0.0}) for _ in completions]


class OwnMeasure(Sums):
    """It brings a measure along."""

    def language_share(self, text: str, language: str) -> float | None:
        return lexicon.language_share(text, language)


PROMPT = "How many apples are left when two of them are eaten?"
FORMULA = "Compute $1 + 2$."


def test_a_task_measures_in_its_own_way_or_like_all_others() -> None:
    plain, own = NamedTask("sums", Sums(PROMPT)), NamedTask("sums", OwnMeasure(PROMPT))
    assert plain.language_share(f"{ENGLISH} try nein", "en") == pytest.approx(1.0)
    assert own.language_share("try nein lorin", "en") == 0.5
    assert plain.language_of(plain.problem("train", 0, 0)) == "en"
    for language in ("fr", "klingon"):
        with pytest.raises(ValueError, match="unknown language"):
            own.language_share("try", language)


@pytest.mark.parametrize(
    "task",
    [
        Sums(FORMULA, language="en"),
        Sums(FORMULA, language="zh-CN"),
        Sums(PROMPT),
        Sums(PROMPT, language="english"),
        OwnMeasure(FORMULA, language="de"),
    ],
)
def test_tasks_whose_language_is_named_or_detected_can_be_rewarded_for_it(task: Sums) -> None:
    check_rewards({"accuracy": 1.0, "language": 1.0}, [NamedTask("sums", task)], lambda _: LanguageReward())


@pytest.mark.parametrize(
    ("task", "meta"),
    [
        (Sums(FORMULA), "no language"),
        (Sums(FORMULA, language="klingon"), "'klingon'"),
        (OwnMeasure(FORMULA, language="fr"), "'fr'"),
    ],
)
def test_a_weight_for_a_language_that_nobody_can_tell_is_refused(task: Sums, meta: str) -> None:
    named = [NamedTask("sums", task)]
    check_rewards({"accuracy": 1.0}, named, lambda _: LanguageReward())
    with pytest.raises(RecipeError, match=f"problem 0 of task 'sums' is not known: its meta names {meta}") as error:
        check_rewards({"accuracy": 1.0, "language": 1.0}, named, lambda _: LanguageReward())
    assert 'meta["language"] = "en"' in error.value.fix


def test_samples_whose_language_nobody_can_tell_are_dropped_under_a_reason_of_their_own() -> None:
    def fault(prompt: str, thinking: str, min_language: float) -> str | None:
        task = NamedTask("sums", Sums(prompt))
        response = f"<think>{thinking}</think><answer>3</answer>"
        completion = Completion((1,), (0.0,), (True,), response, "stop", 0)
        sample = Sample(task.problem("train", 0, 0), completion, Grade(1.0, {"accuracy": 1.0}), task)
        return thinking_fault(response, sample, Keep(min_language=min_language))

    assert fault(FORMULA, ENGLISH, 0.5) == "unknown_language"
    assert fault(FORMULA, ENGLISH, 0.0) is None
    assert fault(PROMPT, GERMAN, 0.5) == "mixed_language"
    assert fault(PROMPT, ENGLISH, 1.0) is None
    assert fault(PROMPT, "1 + 2 = 3", 1.0) is None


TASK_FILE = """
from reasonmill.types import Grade, Message, Problem


class Sums:
    domain = "reasoning"

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt

    def problem(self, split, seed, index):
        return Problem("sums", (Message("user", self._prompt),), "3")

    def problems(self, split, seed):
        return [self.problem(split, seed, 0)]

    def grade(self, problem, completions):
        return [Grade(0.0, {"accuracy": 0.0}) for _ in completions]
"""
RECIPE = f"""
name = "keep-language"

[tasks.sums]
use = "./sums.py:Sums"
prompt = "{FORMULA}"

[[stage]]
name = "rollouts"
kind = "collect"
from = "tiny-base"
tasks = {{ sums = 10 }}

[[stage]]
name = "data"
kind = "curate"
data = ["rollouts"]
keep = {{ min_language = 0.9 }}
"""


def test_a_recipe_that_keeps_a_language_nobody_can_tell_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(TASK_FILE)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"keep.min_language .* problem 0 of task 'sums'") as error:
        load_recipe(str(recipe))
    assert error.value.where == f"{recipe}:14"
    assert 'meta["language"]' in error.value.fix
    load_recipe(str(recipe), ["data.keep.min_language=0.0"])
    load_recipe(str(recipe), ["rollouts.tasks={countdown=10}"])
    load_recipe(str(recipe), [f'tasks.sums.prompt="{PROMPT}"'])


def test_a_mistake_in_the_stage_that_is_read_is_told_alone(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(TASK_FILE)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    with pytest.raises(RecipeError, match="unknown task 'sumz'"):
        load_recipe(str(recipe), ["rollouts.tasks={sumz=10}"])
