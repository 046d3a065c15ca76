"""A Python for `-c PROGRAM` that costs no imports: a child of the server of forked.py does what is asked.

It has the streams of this process, which waits for its end.

    [*FORKED_PYTHON, "-c", PROGRAM]     # as a command of subprocess
"""

import os
import signal
import sys

from forked import fork_server

if __name__ == "__main__":
    *_, program = sys.argv  # whatever options come before it
    code = fork_server().take_my_place(program)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
