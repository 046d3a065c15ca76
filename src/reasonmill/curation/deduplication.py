"""Two samples of a problem that differ in white space or capitals only are one."""

from collections.abc import Sequence

from reasonmill.types import Conversation, Message

Turns = tuple[tuple[str, str], ...]
Said = tuple[Turns, str]  # a prompt and the response to it


def normalised(text: str) -> str:
    """The text in lower case, with single spaces."""
    return " ".join(text.lower().split())


def normalised_turns(messages: Sequence[Message]) -> Turns:
    """What makes two prompts the same, whatever task asks them."""
    return tuple((message.role, normalised(message.content)) for message in messages)


def normalised_said(conversation: Conversation) -> Said:
    """What makes two conversations the same."""
    return normalised_turns(conversation.messages), normalised(conversation.response)
