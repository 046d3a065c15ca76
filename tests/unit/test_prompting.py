"""Models that are prompted otherwise than their own files say: in recipes, in evaluations and in chats."""

import json
import shutil
from pathlib import Path

import pytest

from contexts import BACKEND
from reasonmill.cli import main
from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.mill.planning import plan
from reasonmill.model.prompting import as_prompted, link_as_prompted
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.reference import shipped_bases
from reasonmill.render import renderer_for
from reasonmill.sample.session import ChatSession
from reasonmill.templates import Prompting
from reasonmill.types import Message, Request, SamplingParams

BASE = shipped_bases()["tiny-base"]
CHAT = "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}<assistant>"
HARD = """Say "yes", or 'no': {{ x }} {% if %} %} \\n \\u0041 \\ ä 😀
and </think>."""


def prompted(folder: Path, **settings: object) -> Path:
    link_as_prompted(BASE, folder / "model", Prompting(**settings))  # type: ignore[arg-type]
    return folder / "model"


def shown(model: Path, *messages: Message) -> str:
    renderer = renderer_for(model)
    return renderer.text(renderer.render(messages))


def test_a_system_message_stands_where_a_conversation_begins_without_one(tmp_path: Path) -> None:
    model = prompted(tmp_path, template=CHAT, system="Be brief .")
    begun = shown(model, Message("user", "hello"))
    assert begun == "<system> Be brief . <user> hello <assistant>"
    own = shown(model, Message("system", "Be long ."), Message("user", "hello"))
    assert own == "<system> Be long . <user> hello <assistant>"


def test_examples_stand_behind_the_system_message_and_before_the_conversation(tmp_path: Path) -> None:
    examples = (("red", "<think> a </think> b"), ("blue", "c"))
    turns = "<user> red <assistant> <think> a </think> b <user> blue <assistant> c"
    model = prompted(tmp_path, template=CHAT, system="Be brief .", examples=examples)
    assert shown(model, Message("user", "hello")) == f"<system> Be brief . {turns} <user> hello <assistant>"
    own = shown(model, Message("system", "Be long ."), Message("user", "hello"))
    assert own == f"<system> Be long . {turns} <user> hello <assistant>"
    model = prompted(tmp_path, template=CHAT, examples=examples)
    assert shown(model, Message("user", "hello")) == f"{turns} <user> hello <assistant>"


def test_examples_that_a_template_does_not_show_whole_are_refused(tmp_path: Path) -> None:
    silent = "{% for message in messages %}{{ message.content.split('</think>')[-1] }} {% endfor %}"
    with pytest.raises(UnsupportedModel, match="leaves out a part of example 2"):
        prompted(tmp_path, template=silent, examples=(("red", "c"), ("blue", "<think> a </think> b")))
    with pytest.raises(ValueError, match="single question: leave examples out"):
        Prompting(named="r1-zero", examples=(("red", "c"),))


def test_any_text_may_be_a_system_message(tmp_path: Path) -> None:
    from reasonmill.model.tokenizer import model_tokenizer

    model = prompted(tmp_path, template=CHAT, system=HARD)
    text = model_tokenizer(model).show([("user", "hello")], goes_on=True)
    assert text == f"<system> {HARD} <user> hello <assistant>"


def test_a_system_message_that_a_template_leaves_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="leaves the system message out"):
        prompted(tmp_path, template="{{ messages[-1].content }}", system="Be brief .")


def test_a_system_message_needs_a_template(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(BASE, bare, ignore=shutil.ignore_patterns("chat_template*"))
    with pytest.raises(UnsupportedModel, match="no chat template that a system message or examples could stand in"):
        link_as_prompted(bare, tmp_path / "model", Prompting(system="Be brief ."))


def test_the_models_own_directory_is_left_as_it_is(tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in BASE.iterdir()}
    with as_prompted(BASE, Prompting(template=CHAT, system="Be brief .", stop=("x",))) as model:
        assert json.loads((model / "generation_config.json").read_text())["stop_strings"] == ["x"]
        assert model.name == BASE.name
    assert not model.exists()
    assert {file.name: file.read_bytes() for file in BASE.iterdir()} == before
    with as_prompted(BASE, Prompting()) as model:
        assert model == BASE


def drawn(model: Path, stop: tuple[str, ...] = ()) -> tuple[str, str, int]:
    """What a greedy completion says, how it ended, and how many tokens it has."""
    renderer = BACKEND.renderer(model)
    prompt = renderer.render([Message("user", "3 + 4 = ?")])
    request = Request(prompt, SamplingParams(temperature=0, max_tokens=40, stop=stop), 1)
    ((_, completion),) = BACKEND.sampler(model, slots=1).generate([request])
    return completion.text, completion.finish, len(completion.tokens)


def test_a_models_stop_strings_end_its_turns_as_those_of_a_request_do(tmp_path: Path) -> None:
    text, _, length = drawn(BASE)
    words = text.split()
    stop = f"{words[5]} {words[6]}"
    cut = drawn(prompted(tmp_path, stop=(stop,)))
    assert cut == drawn(BASE, (stop,))
    assert cut[:2] == (text[: text.index(stop)], "stop")
    assert cut[2] < length


def test_a_chat_shows_nothing_of_a_stop_string(tmp_path: Path) -> None:
    said = [Message("user", "3 + 4 = ?")]
    whole = "".join(ChatSession(BASE, "cpu").reply(said))
    stop = whole[10:20]
    pieces = list(ChatSession(prompted(tmp_path, stop=(stop,)), "cpu").reply(said))
    assert "".join(pieces) == whole[: whole.index(stop)]
    almost = prompted(tmp_path, stop=(f"{whole[-4:]}#",))  # what begins like a stop string at the end is said
    assert "".join(ChatSession(almost, "cpu").reply(said)) == whole


# In recipes

RECIPE = """name = "prompted"

[models.mine]
path = "tiny-base"
template = "chat.jinja"
system = "Be brief ."
stop = ["zzz"]

[[stage]]
name = "zero"
kind = "rl"
from = "mine"
steps = 1
problems_per_step = 2
group_size = 2
tasks = { countdown-3 = 1.0 }
schedule = { peak = 1e-6 }
sampling = { max_tokens = 4 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "chat.jinja").write_text(CHAT)
    path = tmp_path / "prompted.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.usefixtures("without_charts")
def test_a_model_that_is_trained_keeps_how_it_is_prompted(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--home", str(tmp_path / "home"), "--device", "cpu"])
    assert ended.value.code == 0
    model = tmp_path / "home" / "runs" / "prompted" / "model"
    assert shown(model, Message("user", "hello")) == "<system> Be brief . <user> hello <assistant>"
    assert renderer_for(model).stop_strings == ("zzz",)


def test_how_a_model_is_prompted_counts_for_keys(recipe: Path) -> None:
    def key(*overrides: str) -> str:
        (stage,) = plan(load_recipe(str(recipe), overrides), None, None)
        assert stage.key is not None
        return stage.key

    keys = [
        key(),
        key("models.mine.system=Short"),
        key('models.mine.stop=["y"]'),
        key("models.mine.path=tiny-base-weak"),
    ]
    (recipe.parent / "chat.jinja").write_text(f"{CHAT} ")
    assert len({*keys, key()}) == 5
    plain = recipe.read_text()
    for line in ('template = "chat.jinja"\n', 'system = "Be brief ."\n', 'stop = ["zzz"]\n'):
        plain = plain.replace(line, "")
    recipe.write_text(plain)
    named = key()
    recipe.write_text(plain.replace('from = "mine"', 'from = "tiny-base"'))
    assert named == key()  # the same bytes by another name


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"chat.jinja"', '"other.jinja"', "models.mine.template: 'other.jinja' is no template"),
        ('"chat.jinja"', '"r1-zero"', "'r1-zero' says itself what is to be done: leave system out"),
        ('path = "tiny-base"\n', "", "name exactly one of path (a directory or a GGUF file), hub"),
        ('path = "tiny-base"\n', 'hub = "a/b"\n', "a model of the hub needs revision and parameters"),
        ("system =", "layers = 3\nsystem =", "layers has no effect on a model that has a path"),
        ('"tiny-base"', '"tiny-bas"', "models.mine: missing model: 'tiny-bas'"),
        ('["zzz"]', '[""]', "models.mine.stop.0: String should have at least 1 character"),
    ],
)
def test_mistakes_are_told(recipe: Path, old: str, new: str, said: str) -> None:
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe))
    assert said in str(caught.value)


# On the command line


def test_an_evaluation_prompts_the_model_as_it_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def evaluated(*options: str) -> int | str | None:
        arguments = [
            "eval",
            "tiny-base",
            "--home",
            str(tmp_path / "home"),
            "--task",
            "countdown-3",
            "--problems",
            "3",
            "--samples",
            "1",
            "--json",
        ]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--device", "cpu", "--max-tokens", "4", *options])
        return ended.value.code

    def length() -> float:
        told = json.loads(capfd.readouterr().out)["evaluations"]["eval"]
        tokens: float = told["tasks"]["countdown-3"]["response_tokens"]["value"]
        return tokens

    assert evaluated() == 0
    assert length() == 4
    assert evaluated("--stop", "<think>") == 0
    assert length() < 4
    (tmp_path / "last.jinja").write_text("{{ messages[-1].content }}")
    assert evaluated("--template", str(tmp_path / "last.jinja"), "--system", "Be brief .") != 0
    assert "leaves the system message out" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options", [["--template", "no.jinja"], ["--template", "r1-zero", "--system", "x"], ["--stop", ""]]
)
def test_options_that_can_not_be_are_refused(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["chat", "tiny-base"], ["eval", "tiny-base", "--task", "countdown-3"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, *options])
        assert ended.value.code == 2
        assert "error:" in capfd.readouterr().err
