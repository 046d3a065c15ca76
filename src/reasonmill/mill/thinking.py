"""Separates thinking from the rest of a reply while its text is still arriving."""

from collections.abc import Iterable, Iterator

from reasonmill.transcript import THINK_CLOSE, THINK_OPEN


def split_thinking(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yields (text, whether it is thinking, the tags included) as early as that is certain; a tag may span pieces."""
    waiting, inside = "", False
    for piece in pieces:
        waiting += piece
        while (tag := THINK_CLOSE if inside else THINK_OPEN) in waiting:
            before, _, waiting = waiting.partition(tag)
            if before:
                yield before, inside
            yield tag, True
            inside = not inside
        held = _begun(tag, waiting)
        if len(waiting) > held:
            yield waiting[: len(waiting) - held], inside
            waiting = waiting[len(waiting) - held :]
    if waiting:
        yield waiting, inside


def _begun(tag: str, text: str) -> int:
    """How many characters at the end of a text may be the beginning of the tag."""
    return next((length for length in range(len(tag) - 1, 0, -1) if text.endswith(tag[:length])), 0)
