"""How a renderer goes on behind a turn that was sampled: with templates of the shapes that models come with."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.protocols import Renderer
from reasonmill.render import renderer_for
from reasonmill.sample.http import ConversationRenderer
from reasonmill.templates import CHAT_TEMPLATES
from reasonmill.types import Message
from reasonmill.world.tokenizer import CHAT_TEMPLATE, train_tokenizer

TEXTS = ["What is 17 + 4 ? It is 21 .", "the quick brown fox says: <think> hmm </think>", "user assistant system tool"]
QUESTION = Message("user", "What is 17 + 4 ?")
TURN = "<think> so 22 ?</think><answer> 22</answer>"
AGAIN = Message("user", "No, again.")
SUM = Message("tool", "17 + 4 = 21")

# After Qwen2.5.
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ message.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# After Llama 3.
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# After Mistral: a turn of the user has an end of its own, and what ends the assistant's stands behind a space.
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }} {{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# After Qwen3: the thinking of turns before the user's last one is left out, that between calls of tools stays.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'assistant' %}{% set content = message.content %}"
    "{% set thinking = '' %}{% if '</think>' in content %}"
    "{% set thinking = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last %}<think>\n{{ thinking.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n"
    "{% elif message.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ message.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# After DeepSeek-R1's distilled models: no turn of the assistant keeps its thinking.
R1 = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}<|user|>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<|assistant|>{{ message.content.split('</think>')[-1] }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
# Knows two roles, and says nothing of others.
TWO_ROLES = (
    "{% for message in messages %}{% if message.role == 'user' %}<|user|>{{ message.content }}<|end|>"
    "{% elif message.role == 'assistant' %}<|assistant|>{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>"]


def a_renderer(
    directory: Path, template: str | None, stop: str = "<|end|>"
) -> tuple[Renderer, PreTrainedTokenizerFast]:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS, "bos_token": "<s>", "eos_token": stop})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return renderer_for(directory), tokenizer


SHAPES = {
    "tiny world": (CHAT_TEMPLATE, "<|end|>", AGAIN, "<|user|> No, again.<|end|><|assistant|>"),
    "chatml": (CHATML, "<|im_end|>", AGAIN, "\n<|im_start|>user\nNo, again.<|im_end|>\n<|im_start|>assistant\n"),
    "chatml, tool": (
        CHATML,
        "<|im_end|>",
        SUM,
        "\n<|im_start|>user\n<tool_response>\n17 + 4 = 21\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": (
        LLAMA3,
        "<|eot_id|>",
        SUM,
        "<|start_header_id|>tool<|end_header_id|>\n\n17 + 4 = 21<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "inst": (INST, "</s>", AGAIN, "[INST] No, again. [/INST]"),
    "qwen3, tool": (
        QWEN3,
        "<|im_end|>",
        SUM,
        "\n<|im_start|>user\n<tool_response>\n17 + 4 = 21\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    "r1-zero": (CHAT_TEMPLATES["r1-zero"], "</s>", AGAIN, " User: No, again.. Assistant:"),
    "plain": (None, "</s>", AGAIN, " User: No, again.. Assistant:"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_reply_stands_between_the_stop_token_and_the_next_turn(shape: str, tmp_path: Path) -> None:
    template, stop, message, expected = SHAPES[shape]
    renderer, tokenizer = a_renderer(tmp_path, template, stop)
    tokens = renderer.reply([message])
    assert tokenizer.decode(tokens) == expected
    assert renderer.reply([message]) == tokens


@pytest.mark.parametrize("shape", ["tiny world", "chatml", "chatml, tool", "llama3"])
def test_a_sampled_turn_and_its_reply_are_the_conversation_as_the_template_has_it(shape: str, tmp_path: Path) -> None:
    """Where a turn is spelled as the tokenizer would spell it, nothing tells the two apart."""
    template, stop, message, _ = SHAPES[shape]
    renderer, _ = a_renderer(tmp_path, template, stop)
    prompt, turn = renderer.render([QUESTION]), renderer.response(TURN)
    assert prompt + turn + renderer.reply([message]) == renderer.render([QUESTION, Message("assistant", TURN), message])


def test_several_messages_are_one_reply(tmp_path: Path) -> None:
    renderer, tokenizer = a_renderer(tmp_path, CHAT_TEMPLATE)
    assert tokenizer.decode(renderer.reply([SUM, AGAIN])) == (
        "<|tool|> 17 + 4 = 21<|end|><|user|> No, again.<|end|><|assistant|>"
    )


@pytest.mark.parametrize(
    ("template", "stop", "message", "why"),
    [
        (QWEN3, "<|im_end|>", AGAIN, "shows earlier turns differently"),
        (R1, "</s>", AGAIN, "shows earlier turns differently"),
        (INST, "</s>", SUM, "Only user and assistant roles are supported"),
        (TWO_ROLES, "<|end|>", SUM, "does not show what tool says"),
        ("{{ messages[-1].content }}", "<|end|>", AGAIN, "shows earlier turns differently"),
    ],
)
def test_a_template_that_can_not_go_on_is_refused(
    template: str, stop: str, message: Message, why: str, tmp_path: Path
) -> None:
    renderer, _ = a_renderer(tmp_path, template, stop)
    with pytest.raises(UnsupportedModel, match=why) as caught:
        renderer.reply([message])
    assert caught.value.where == str(tmp_path)


def test_nobody_knows_the_tokens_of_a_model_behind_a_server() -> None:
    with pytest.raises(RecipeError, match="an environment needs the tokens"):
        ConversationRenderer().reply([AGAIN])
