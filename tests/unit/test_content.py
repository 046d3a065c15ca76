"""Digests of files: all bytes and their order count, in files of several pieces too."""

import hashlib
from pathlib import Path

import pytest

from reasonmill import content


def test_all_bytes_of_a_file_of_several_pieces_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "PIECE", 4)
    texts = [b"", b"abcd", b"abcde", b"abcdefghij", b"efghabcdij", b"abcdefghiJ", b"Abcdefghij", b"abcdefghij\0"]
    digests = {}
    for number, text in enumerate(texts):
        path = tmp_path / str(number)
        path.write_bytes(text)
        digests[text] = content.file_digest(path)
        assert content.file_digest(path) == digests[text]
    assert len(set(digests.values())) == len(texts)
    # One piece is hashed as it is: homes that hold no longer files keep their digests.
    assert digests[b"abcd"] == hashlib.blake2b(b"abcd", digest_size=32).hexdigest()
    assert digests[b""] == hashlib.blake2b(b"", digest_size=32).hexdigest()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        content.file_digest(tmp_path / "none")
