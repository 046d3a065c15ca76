"""The process that hands calls to workers, watches their time, kills and replaces them.

It is started anew, never forked from the process that trains, and loads the standard library only: neither torch nor a
user's code is ever in it. For each plug-in it forks one process, the template, which makes the object; workers are
forked from that, so that a new worker takes milliseconds. All of them are this process's children, and what a worker
starts and leaves behind becomes its child, too, because it adopts orphans. When its connection ends, be it that the
process which trains was killed, it kills all of them and ends.
"""

from __future__ import annotations

import itertools
import os
import selectors
import shutil
import signal
import socket
import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from reasonmill.workers import system
from reasonmill.workers.state import (
    Call,
    Template,
    Worker,
)
from reasonmill.workers.wire import Frames, frame

# A worker whose connection is closed is killed after so many seconds, unless its process has ended by itself.
CLOSED_S = 1.0
# How many calls may be slow.
MOST_SLOW = 512
# A worker is replaced after so many calls, with whatever it has gathered.
CALLS_OF_A_WORKER = 2000
# How often orphans are looked for while nothing ends, in seconds.
_SWEEP_S = 2.0
_PID = struct.Struct(">I")


class Manager:
    """All of it.

    Args:
        control: the connection to the process that asks.
    """

    def __init__(self, control: socket.socket) -> None:
        control.setblocking(False)
        self._control = control
        self._frames = Frames()
        self._out = bytearray()
        self._templates: dict[int, Template] = {}
        self._workers: dict[int, Worker] = {}
        self._starting: list[Worker] = []
        self._swept = time.monotonic()
        # Workers with a call: one that is not slow, and one that is.
        self._quick: set[Worker] = set()
        self._slow: set[Worker] = set()
        # What was killed, until it has ended, by its number; and the folders of what has.
        self._dying: dict[int, Worker] = {}
        self._left: list[Path] = []
        # When something is to be seen to, at the latest.
        self._due = 0.0
        self._is_awaited = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._read_control)
        # A child that ends wakes the loop up.
        self._alarm, bell = socket.socketpair()
        self._alarm.setblocking(False)
        bell.setblocking(False)
        self._bell = bell
        signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._alarm, selectors.EVENT_READ, self._read_alarm)
        self._folder = Path(tempfile.mkdtemp(prefix="reasonmill-workers-"))
        self._numbers = 0
        self._is_over = False

    def run(self) -> None:
        """Serves until the connection ends; then nothing of it is left."""
        try:
            while not self._is_over:
                self._turn()
        finally:
            system.kill_strangers(())
            shutil.rmtree(self._folder, ignore_errors=True)

    def _turn(self) -> None:
        for key, events in self._selector.select(max(0.0, self._due - time.monotonic())):
            if events & selectors.EVENT_READ:
                key.data()
        self._reap()
        self._watch_time()
        for template in self._templates.values():
            self._hand_out(template)
        self._make_way()
        self._clear()
        self._write_control()

    # The connection

    def _read_control(self) -> None:
        try:
            data = self._control.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self._is_over = not data
        for header, body in self._frames.of(data):
            if "make" in header:
                self._make(header, body)
            elif "awaited" in header:
                self._spare()
                self._is_awaited = True
            else:
                self._is_awaited = False
                self._templates[header["of"]].waiting.append(Call(header["ask"], body))

    def _write_control(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            while self._out:
                del self._out[: self._control.send(self._out)]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        self._selector.modify(self._control, events, self._read_control)

    def _read_alarm(self) -> None:
        with suppress(BlockingIOError):
            self._alarm.recv(4096)

    # Templates

    def _make(self, header: dict[str, Any], plugin: bytes) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._become_template(theirs, plugin, header)
        theirs.close()
        template = Template(header["make"], pid, ours, header["size"], header["limits"]["seconds"])
        ours.setblocking(False)
        self._templates[template.key] = template
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._read_template(template))

    def _become_template(self, channel: socket.socket, plugin: bytes, header: dict[str, Any]) -> None:
        """In the forked process: never returns, whatever happens."""
        try:
            # Nothing of this process is open in those that run a user's code.
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            system.die_with(os.getppid())
            null = os.open(os.devnull, os.O_RDWR)
            kept = os.dup2(channel.fileno(), 3, inheritable=False)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            # Only here is anything imported that is not of the standard library.
            from reasonmill.workers.worker import serve_template

            serve_template(kept, plugin, header, os.getppid())
        finally:
            os._exit(1)

    def _read_template(self, template: Template) -> None:
        """What a template says first, and once: that the object is made, or why it is not."""
        said = b""
        with suppress(OSError):
            said = template.socket.recv(1 << 20)
        with suppress(ValueError):
            for header, _ in Frames().of(said):
                template.unmade = str(header.get("unmade", ""))
                template.is_made = not template.unmade
        # From now on it only listens; if it ends, that is seen where its process is waited for.
        self._selector.unregister(template.socket)
        template.socket.setblocking(True)
        template.has_spoken = True

    def _lost(self, template: Template) -> None:
        """Nothing that a template is asked will have an answer."""
        template.is_made = False
        template.waiting.clear()
        self._say({"unmade": template.key, "why": template.unmade or "the process that makes it ended"})

    # Calls

    def _hand_out(self, template: Template) -> None:
        while template.waiting and template.idle and self._has_room(template):
            worker = template.idle.pop()
            call = template.waiting.popleft()
            worker.begin(call)
            self._quick.add(worker)
            self._due = min(self._due, worker.looked_at)
            with suppress(OSError):  # it has ended: that is seen where its process is waited for
                worker.socket.sendall(frame({}, call.body))
        # The next workers begin before there is room for them, so that nothing waits for a process to start.
        ready = len(template.idle) + sum(worker.template is template for worker in self._starting)
        for _ in range(min(template.size, len(template.waiting)) - ready if template.is_made else 0):
            self._start_worker(template)

    def _has_room(self, template: Template) -> bool:
        return len(self._quick) < template.size and len(self._slow) < MOST_SLOW

    def _start_worker(self, template: Template) -> None:
        self._numbers += 1
        folder = self._folder / str(self._numbers)
        folder.mkdir()
        ours, theirs = socket.socketpair()
        ours.settimeout(5)  # for what it does not read
        worker = Worker(0, ours, template, folder, began=time.monotonic())
        self._starting.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._read_worker(worker))
        with theirs, suppress(OSError):  # where the template has ended, so has the connection that it would have got
            socket.send_fds(template.socket, [str(folder).encode()], [theirs.fileno()])

    def _started(self, worker: Worker) -> None:
        """Reads the number of a new worker's process, with which it begins."""
        said = b""
        with suppress(OSError):
            said = worker.socket.recv(_PID.size, socket.MSG_WAITALL)
        self._starting.remove(worker)
        if len(said) == _PID.size:
            worker.pid = _PID.unpack(said)[0]
            self._workers[worker.pid] = worker
            worker.template.idle.append(worker)
        else:
            self._selector.unregister(worker.socket)
            worker.socket.close()
            self._lost(worker.template)

    def _read_worker(self, worker: Worker) -> None:
        if worker in self._starting:
            self._started(worker)
            return
        if self._workers.get(worker.pid) is not worker:  # it was ended in the same turn
            return
        try:
            data = worker.socket.recv(1 << 20)
            if not data:  # most likely its process has ended, and how will be known in a moment
                worker.closed = time.monotonic()
                self._due = min(self._due, worker.closed + CLOSED_S)
                self._selector.unregister(worker.socket)
                return
            for _, body in worker.frames.of(data):
                self._answered(worker, body)
        except (OSError, ValueError, RecursionError) as error:
            self._end(worker, f"it broke its connection: {error}")

    def _answered(self, worker: Worker, body: bytes) -> None:
        if worker.call is None:
            raise ValueError("an answer to no call")
        self._say({"answer": worker.call.number}, body)
        worker.call = None
        if worker.stopped is not None:  # with its answer given
            worker.go_on()
        worker.took.append(worker.age_s())
        self._quick.discard(worker)
        self._slow.discard(worker)
        if worker.is_long or worker.calls >= CALLS_OF_A_WORKER or len(worker.template.idle) >= 2 * worker.template.size:
            self._end(worker, "")
        else:
            worker.template.idle.append(worker)

    def _end(self, worker: Worker, reason: str) -> None:
        """Kills a worker, with all that it started; what it was asked has no answer, for this reason."""
        if worker.call is not None:
            self._say({"failed": worker.call.number, "why": reason})
        if worker in worker.template.idle:
            worker.template.idle.remove(worker)
        if worker.closed is None:
            self._selector.unregister(worker.socket)
        worker.socket.close()
        del self._workers[worker.pid]
        self._quick.discard(worker)
        self._slow.discard(worker)
        self._dying[worker.pid] = worker
        # Where others compute it may take its time to end, and nothing waits for that.
        worker.send(signal.SIGKILL)

    # Time and death

    def _watch_time(self) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        if any(now >= worker.ends for worker in self._slow):
            self._spare()
        for worker in list(self._workers.values()):
            if worker.closed is not None and now - worker.closed >= CLOSED_S:
                self._end(worker, "it closed its connection")
            if worker.closed is not None or worker.call is None or worker.stopped is not None:
                continue
            if now >= worker.ends and not worker.has_answered():
                self._end(worker, f"it took longer than {worker.template.seconds:g} s")
            elif now >= worker.looked_at:
                worker.look()
                if worker.level:
                    self._quick.discard(worker)
                    self._slow.add(worker)
        if now - self._swept >= _SWEEP_S:
            self._sweep()
        closed = (worker.closed + CLOSED_S for worker in self._workers.values() if worker.closed is not None)
        running = (worker for worker in (*self._quick, *self._slow) if worker.stopped is None)
        busy = (min(worker.ends, worker.looked_at) for worker in running)
        self._due = min(itertools.chain((self._swept + _SWEEP_S,), closed, busy))

    def _make_way(self) -> None:
        """Stops what is slow and computes while calls wait for a worker; then lets it go on. What sleeps is in
        nobody's way."""
        is_crowded = len(self._slow) < MOST_SLOW and any(template.waiting for template in self._templates.values())
        for worker in self._slow:
            if is_crowded and worker.stopped is None and worker.computes:
                worker.stop()
            elif not is_crowded and worker.stopped is not None:
                worker.go_on()
                self._due = 0.0

    def _spare(self) -> None:
        """Gives back to calls that are slow the time that they waited for a core while the process that asks did
        something else. Once that has nothing to do but wait for them, time is time: it waits for no longer than the
        limit."""
        if not self._is_awaited:
            for worker in self._slow:
                worker.spare()

    def _reap(self) -> None:
        """Takes notice of the children that have ended."""
        with suppress(ChildProcessError):
            while True:
                # Looked at first, and waited for by whoever ends it: until then nobody else can get its number.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return
                worker = self._workers.get(ended.si_pid)
                if worker is not None:
                    self._worker_ended(worker, ended)
                    continue
                os.waitpid(ended.si_pid, 0)
                killed = self._dying.pop(ended.si_pid, None)
                if killed is not None:
                    self._left.append(killed.folder)
                for template in self._templates.values():
                    if template.pid == ended.si_pid:
                        template.pid = 0
                        if not template.has_spoken:
                            self._read_template(template)
                        self._lost(template)

    def _worker_ended(self, worker: Worker, ended: os.waitid_result) -> None:
        self._read_last_words(worker)
        if worker.pid in self._workers:
            if ended.si_code == os.CLD_EXITED:
                self._end(worker, f"it ended its process with exit code {ended.si_status}")
            else:
                self._end(worker, f"its process was ended by {signal.Signals(ended.si_status).name}")

    def _read_last_words(self, worker: Worker) -> None:
        """An answer that it gave before it ended counts."""
        worker.socket.setblocking(False)
        with suppress(OSError, ValueError, RecursionError):
            while data := worker.socket.recv(1 << 20):
                for _, body in worker.frames.of(data):
                    self._answered(worker, body)

    def _clear(self) -> None:
        """Removes what ended workers left, once nothing runs that they started."""
        if self._left and self._sweep():
            while self._left:
                shutil.rmtree(self._left.pop(), ignore_errors=True)

    def _sweep(self) -> bool:
        """Kills all children that are neither a template nor a worker; later, while workers start whose numbers are
        not known. Whether there was none."""
        if self._starting:
            return False
        self._swept = time.monotonic()
        templates = (template.pid for template in self._templates.values())
        strangers = system.strangers({*self._workers, *self._dying, *templates})
        for stranger in strangers:
            os.kill(stranger, signal.SIGKILL)
        return not strangers

    def _say(self, header: dict[str, Any], body: bytes = b"") -> None:
        self._out += frame(header, body)


def main() -> None:
    """Manages workers for whoever is at the other end of the standard input, which is a socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    system.adopt_orphans()
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    Manager(control).run()
