"""Chat templates for models that have none, or one that says nothing about thinking and answer."""

from collections.abc import Mapping

# What stands before the question in R1-Zero's template (paper, Table 1), in words of our own.
R1_ZERO_PREAMBLE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process and then gives the answer. The reasoning is enclosed in <think> </think> "
    "and the answer in <answer> </answer>, that is, <think> reasoning here </think> <answer> answer here </answer>."
)

# Jinja as tokenizers keep it, by the name that a recipe gives it. A single question reads like the plain template. What
# the model's tokenizer puts before any text is set before the template where it is given to a model.
CHAT_TEMPLATES: Mapping[str, str] = {
    "r1-zero": (
        R1_ZERO_PREAMBLE + "{% for message in messages %}"
        "{% if message.role == 'assistant' %} Assistant: {{ message.content }}"
        "{% else %} User: {{ message.content }}.{% endif %}"
        "{% endfor %}{% if add_generation_prompt %} Assistant:{% endif %}"
    )
}
