"""Streams of a run that nobody reads any more, or whose disk is full."""

import errno
import os
import pty
import sys
from pathlib import Path

import pytest

from reasonmill.lasting_streams import lasting, lasting_stream


def test_a_closed_terminal_is_written_to_in_vain() -> None:
    terminal, slave = pty.openpty()
    with open(slave, "w") as stream:
        show = lasting_stream(stream)
        print("seen", file=show, flush=True)
        assert os.read(terminal, 100) == b"seen\r\n"
        os.close(terminal)
        with pytest.raises(OSError, match=f"Errno {errno.EIO}"):
            os.write(slave, b"x")
        print("unseen", file=show, flush=True)
        os.write(slave, b"what others write there goes nowhere, too")


def test_a_pipe_without_a_reader_is_written_to_in_vain() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        for _ in range(2):
            print("unseen", file=lasting_stream(stream), flush=True)
        # leaving the block flushes what is left, as the end of a process does


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_does_not_end_it_and_is_not_given_up() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = open(descriptor, "w")  # noqa: SIM115
    print("kept for later", file=lasting_stream(stream), flush=True)
    reader, writer = os.pipe()
    os.dup2(writer, descriptor)  # as if there were room again
    stream.close()
    assert os.read(reader, 100) == b"kept for later\n"
    os.close(reader)
    os.close(writer)


def test_the_process_has_its_stream_back_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with lasting("stdout"):
        print("shown")
        assert sys.stdout is not before
    assert sys.stdout is before
    assert capsys.readouterr().out == "shown\n"
