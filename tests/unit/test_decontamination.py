"""Decontamination: what overlaps with held-out problems is found, and nothing else."""

from dataclasses import replace

import pytest

from reasonmill.curation.decontamination import HeldOut
from reasonmill.plugins.catalogue import installed
from reasonmill.types import Conversation, Message, Role
from written import problem, response


def conversation(prompt: str, answer: str = "1", thinking: str = "") -> Conversation:
    return Conversation((Message("user", prompt),), response(thinking, answer), "reasoning", "p")


LONG = "start at 5 then + 3 * 2 - 4 + 6 / 2 . result ?"
GOLD = "( ( 3 + 8 ) - 1 ) * 2"  # eleven tokens: two 10-grams


@pytest.mark.parametrize(
    ("row", "dropped"),
    [
        (conversation("make 24 from 3 8 1"), True),
        (conversation("Make 24  from 3 8 1"), True),
        (conversation("make 24 from 3 8 1 5"), False),
        (conversation("make 24 from 3 8 2"), False),
        (conversation("bilde 24 aus 3 8 1"), False),
        (conversation("say it", thinking="make 24 from 3 8 1"), False),
        (conversation(LONG), True),
        (conversation("start at 5 then + 3 * 2 - 9"), False),  # nine tokens in common
        (conversation("say it", thinking="hm : at 5 then + 3 * 2 - 4 + hm"), True),  # ten
        (conversation("say it", thinking="hm : at 5 then + 3 * 2 - 4 hm"), False),  # nine
        (conversation("say it", answer=GOLD), True),
        (conversation("say it", answer="( ( 3 + 8 ) - 1 ) * 9"), True),
        (conversation("say it", answer="( ( 3 + 8 ) - 1 ) / 2"), False),
        (conversation("say it", thinking="( ( 3 + 8 )", answer="- 1 ) * 2"), False),  # a tag is between them
    ],
)
def test_what_overlaps_with_a_held_out_problem(row: Conversation, dropped: bool) -> None:
    held_out = HeldOut(
        [problem("make 24 from 3 8 1", answer="8 * ( 3 * 1 )"), problem(LONG, answer="9"), problem("q ?", answer=GOLD)]
    )
    assert held_out.overlaps(row) is dropped


STORY = "Anna, who has 3 dogs and 4 cats, buys 2 more dogs ."


def test_twins_in_the_evaluation_set_hide_nothing() -> None:
    twins = [problem(f"{STORY} how many dogs has she ?"), problem(f"{STORY} how many cats has she ?")]
    for asked in (twins, twins[:1], [*twins, *twins]):
        held_out = HeldOut(asked)
        assert held_out.overlaps(conversation(f"{STORY} how many animals ?"))
        assert held_out.overlaps(conversation("say it", thinking=f"hm : {STORY}"))
        assert not held_out.overlaps(conversation("Berta, who has 3 dogs and 4 cats, sells 2 dogs ."))


def test_wording_counts_unless_it_is_named() -> None:
    wording = "Reason step by step, and put your final answer within \\boxed{} ."
    asked = [problem(f"{STORY} how many ?\n{wording}"), problem(f"make 24 from 3 8 1\n{wording}")]
    strict, named = HeldOut(asked), HeldOut(asked, wording=[wording])
    innocent = conversation(f"what is 7 + 7 ?\n{wording}")
    assert strict.overlaps(innocent)
    assert "put your final" in next(iter(strict.found))
    assert not named.overlaps(innocent)
    assert named.overlaps(conversation(STORY))
    assert named.overlaps(conversation(f"make 24 from 3 8 1\n{wording}"))


@pytest.mark.parametrize(
    "spelled",
    [
        "anna who has 3 dogs and 4 cats buys 2 more dogs",
        "ANNA — who has **3 dogs** and $4$ cats — buys 2 more dogs!",
        "Anna, who has 3 dogs\n\nand 4 cats, buys 2 more dogs?",
        "\uff21nna, who has \uff13 dogs and 4 cats, buys 2 more dogs",  # full width
        "_Anna_, who has 3 dogs; and 4 cats: buys 2 more dogs",
    ],
)
def test_capitals_punctuation_and_markup_hide_nothing(spelled: str) -> None:
    assert HeldOut([problem(STORY)]).overlaps(conversation(f"so . {spelled} now"))
    assert HeldOut([problem(spelled)]).overlaps(conversation(STORY))


@pytest.mark.parametrize(
    ("asked", "said", "dropped"),
    [
        ("what is 3 + 8 ?", "What is 3+8", True),
        ("what is 3 + 8 ?", "what is 3 * 8 ?", False),
        ("what is 3 \u00d7 8 ?", "what is 3 * 8 ?", True),
        ("what is 3 \u2212 8 ?", "what is 3 - 8 ?", True),
        ("what is 1,000 + 1 ?", "what is 1000 + 1", True),
        ("a twenty-five year old", "a twenty five year old", True),
        ("小明有三个苹果又买了五个", "问：小明有三个苹果，又买了五个。", True),
        ("小明有三个苹果又买了五个", "小红有两个梨又卖了一个", False),
    ],
)
def test_texts_without_ten_words_and_without_spaces(asked: str, said: str, dropped: bool) -> None:
    assert HeldOut([problem(asked)]).overlaps(conversation(said)) is dropped


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
def test_all_turns_of_a_conversation_are_searched(role: Role) -> None:
    row = conversation("and now ?")
    earlier = Message(role, f"an example : {STORY}")
    assert HeldOut([problem(STORY)]).overlaps(replace(row, messages=(earlier, *row.messages)))


def test_reference_solutions_count_and_tags_of_markup_do_not_cut() -> None:
    asked = replace(problem("q ?", answer="7"), meta={"solution": f"well , {STORY} so 7"})
    assert HeldOut([asked]).overlaps(conversation("say it", thinking=STORY))
    page = "the page begins with <b>bold</b> words and goes on"
    assert HeldOut([problem(page)]).overlaps(conversation("say it", thinking=page))


def test_of_open_ended_tasks_only_the_prompts_count() -> None:
    asked = problem("are you well ?", answer=GOLD)
    assert HeldOut([asked]).overlaps(conversation("say it", answer=GOLD))
    assert not HeldOut([asked], open_ended=["sums"]).overlaps(conversation("say it", answer=GOLD))
    assert HeldOut([asked], open_ended=["sums"]).overlaps(conversation("are you well ?"))


def test_every_planted_test_problem_is_found_and_nearly_no_training_problem_is_taken_for_one() -> None:
    names = ("countdown-3", "countdown-4", "arithmetic", "facts", "small-talk")
    tasks = {name: installed().task(name) for name in names}
    open_ended = [name for name, task in tasks.items() if task.domain != "reasoning"]
    test = [task.problem("test", 0, index) for task in tasks.values() for index in range(100)]
    train = [task.problem("train", 0, index) for task in tasks.values() for index in range(200)]
    held_out = HeldOut(test, open_ended=open_ended)
    assert all(held_out.overlaps(conversation(each.messages[0].content, each.answer)) for each in test)
    assert sum(held_out.overlaps(conversation(each.messages[0].content, each.answer)) for each in train) <= 3
