"""Streams of a run that nobody reads any more, or whose disk is full."""

import errno
import os
import pty
import subprocess
import sys
from io import BytesIO, TextIOWrapper
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


def test_what_a_locale_has_no_characters_for_is_spelled() -> None:
    raw = BytesIO()
    show = lasting_stream(TextIOWrapper(raw, encoding="ascii"))
    print("pass@1 – 0.5", file=show, flush=True)
    assert raw.getvalue() == b"pass@1 \\u2013 0.5\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere(closed: str, tmp_path: Path) -> None:
    """And no file that is opened later gets the descriptor of one, nor what is written there."""
    program = (
        "import os, sys; from reasonmill.lasting_streams import open_closed_streams; open_closed_streams();"
        "file = open(sys.argv[1], 'w'); assert file.fileno() > 2; print('out'); print('err', file=sys.stderr);"
        "os.write(1, b'x'); os.write(2, b'x'); sys.stdin.read(); sys.stdout.isatty();"
        "os.system('echo child; echo child >&2'); file.write('fine')"
    )
    command = f'exec "$0" -c "$1" "$2" {closed}'
    ended = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, program, str(tmp_path / "file")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "file").read_text() == "fine"
