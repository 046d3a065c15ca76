"""What runs a user's code: the template, which makes the object of a plug-in, and the workers forked from it."""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import pickle
import random
import signal
import socket
import struct
import sys
import tempfile
from typing import Any

from reasonmill.errors import ReasonmillError
from reasonmill.workers import system
from reasonmill.workers.answers import raised
from reasonmill.workers.wire import Frames, frame

_PID = struct.Struct(">I")


def serve_template(channel: int, plugin: bytes, header: dict[str, Any], manager: int) -> None:
    """Makes the object, says so, and forks a worker for each connection that comes; returns when no more can come.

    An object may have a method `prepare`, which loads what all workers need and takes long.

    Args:
        channel: file descriptor of the connection to the manager.
        plugin: the plug-in, pickled.
        header: what came with it: `path` where modules are looked for, `calls` the module of calls, and `limits`.
        manager: number of the manager's process.
    """
    connection = socket.socket(fileno=channel)
    sys.path[:] = header["path"]
    try:
        importlib.import_module(header["calls"])  # here, so that not every worker has to
        made = pickle.loads(plugin).make_again()
        if hasattr(made, "prepare"):
            made.prepare()
    except BaseException as error:  # whatever a user's code raises, SystemExit as well
        connection.sendall(frame({"unmade": str(error) or type(error).__name__}))
        return
    connection.sendall(frame({}))
    gc.collect()
    gc.freeze()  # so that workers don't copy what they only read
    while True:
        folder, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        if not fds:
            return
        # A worker is the manager's child, who adopts it when the process between ends.
        between = os.fork()
        if between == 0:
            try:
                if os.fork() == 0:
                    connection.close()
                    _serve(socket.socket(fileno=fds[0]), made, folder.decode(), header["limits"], manager)
            finally:
                os._exit(0)
        os.waitpid(between, 0)
        os.close(fds[0])


def _serve(connection: socket.socket, made: Any, folder: str, limits: dict[str, Any], manager: int) -> None:
    """Answers calls until the connection ends."""
    own = os.getpid()
    while os.getppid() != manager:  # the process between is about to end
        os.sched_yield()
    system.die_with(manager)
    os.setpgid(0, 0)  # what it starts has its priority
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    system.restrain(int(limits["memory_gb"] * (1 << 30)), int(limits["processes"]))
    connection.sendall(_PID.pack(own))
    frames = Frames()
    while data := connection.recv(1 << 20):
        for _, body in frames.of(data):
            answer = _answer(made, body)
            if os.getpid() != own:  # the call forked, and this is the copy
                return
            connection.sendall(frame({}, answer))


def _answer(made: Any, body: bytes) -> bytes:
    """What a call gives, as JSON."""
    said: dict[str, Any]
    try:
        call = pickle.loads(body)
        _seed(call.seed)
        said = {"value": call(made)}
        return json.dumps(said).encode()
    except ReasonmillError as error:
        told = {"what": error.what, "fix": error.fix, "where": error.where, "exit_code": error.exit_code}
        said = {"error": told}
    except BaseException as error:  # SystemExit as well
        said = {"failed": raised(error)}
    finally:
        signal.alarm(0)
    return json.dumps(said).encode()


def _seed(text: str) -> None:
    """Chance that a grader takes from the usual generators depends on the call alone: not on the worker, nor on what
    the worker was asked before."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=4).digest())
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
