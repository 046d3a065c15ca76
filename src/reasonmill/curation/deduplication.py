"""Two samples of a problem that differ in white space or capitals only are one."""

from collections.abc import Sequence

from reasonmill.types import Message

Turns = tuple[tuple[str, str], ...]


def normalised(text: str) -> str:
    """The text in lower case, with single spaces."""
    return " ".join(text.lower().split())


def normalised_turns(messages: Sequence[Message]) -> Turns:
    """What makes two prompts the same, whatever task asks them."""
    return tuple((message.role, normalised(message.content)) for message in messages)


class Seen:
    """The responses that were met so far, by their prompts."""

    def __init__(self) -> None:
        self._seen: set[tuple[Turns, str]] = set()

    def is_new(self, messages: Sequence[Message], response: str) -> bool:
        """Whether this response to this prompt comes for the first time; it is remembered."""
        entry = (normalised_turns(messages), normalised(response))
        if entry in self._seen:
            return False
        self._seen.add(entry)
        return True
