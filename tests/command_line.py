"""The command line, called in the process of the tests."""

from collections.abc import Callable

import pytest

from reasonmill.cli import main

Call = Callable[..., tuple[int, str, str]]
"""Arguments to the exit code, stdout and stderr."""


def caller(capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return call
