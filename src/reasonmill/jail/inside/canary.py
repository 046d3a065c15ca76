"""A program that tries what no program in the jail may do. Its text is run there before anything else is."""

import ctypes
import json
import os
import socket
from collections.abc import Callable


def what_works(secret: str, pid: int, port: int, memory_bytes: int) -> list[str]:
    """Names of what can be done.

    Args:
        secret: a file that anybody may read, outside of the jail.
        pid: the process that ordered the jail.
        port: where it listens.
        memory_bytes: the limit of memory.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def fork() -> None:
        if os.fork() == 0:
            os._exit(0)

    def write(path: str) -> None:
        with open(path, "w") as file:
            file.write("written")

    def start() -> None:
        try:
            os.execv("/is/not/there", ["program"])
        except FileNotFoundError:  # it was looked for
            return

    def connect() -> None:
        socket.create_connection(("127.0.0.1", port), timeout=1)

    def attach() -> None:
        if libc.ptrace(0x4206, os.getppid(), 0, 0) != 0:  # PTRACE_SEIZE, which does not stop it
            raise OSError

    def environment() -> None:
        if set(os.environ) - {"PYTHONHASHSEED", "LC_CTYPE", "PWD"}:
            return
        raise OSError

    attempts: dict[str, Callable[[], object]] = {
        "reading files": lambda: open(secret).close(),
        "reading the home": lambda: os.listdir(os.path.dirname(secret)),
        "reading other processes": lambda: open(f"/proc/{pid}/cmdline").close(),
        "the environment": environment,
        "writing beside files": lambda: write(secret + ".new"),
        "writing temporary files": lambda: write("/tmp/reasonmill-canary"),
        "writing at the root": lambda: write("/reasonmill-canary"),
        "changing files": lambda: os.rename(secret, secret + ".moved"),
        "starting processes": fork,
        "starting programs": start,
        "the network": connect,
        "sockets": lambda: socket.socket().close(),
        "signals to the process that ordered the jail": lambda: os.kill(pid, 0),
        "signals to the parent": lambda: os.kill(os.getppid(), 0),
        "looking into other processes": attach,
        "memory beyond the limit": lambda: bytearray(memory_bytes),
    }
    found = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, MemoryError):
            continue
        found.append(name)
    return found


def tell(secret: str, pid: int, port: int, memory_bytes: int) -> None:
    """Prints what works, as JSON."""
    print(json.dumps(what_works(secret, pid, port, memory_bytes)))
