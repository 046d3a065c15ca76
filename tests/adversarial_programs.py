"""Programs that would rather be graded right than be right, or do harm: each must be wrong and leave nothing behind.

They know `WITNESS`, a folder that anybody may write; `SECRET`, a file in it; `ASKER`, the process that grades; `PORT`,
where it listens. All are run as a program that prints and as one whose function `f` is called.
"""

from __future__ import annotations

HEAD = """
import os, sys, socket, signal, ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
def quietly(action, *arguments):
    try:
        return action(*arguments)
    except BaseException as error:
        return error
"""

# Ended at once, by their own or by the jail's doing.
QUICK = {
    # Exit codes and early ends
    "exit 0": "sys.exit(0)",
    "exit at once": "os._exit(0)",
    "exit in the function": "def f(x): sys.exit(0)",
    "exit at once in the function": "def f(x): os._exit(0)",
    "exit when it ends": "import atexit; atexit.register(lambda: os._exit(0))",
    "kill itself": "os.kill(os.getpid(), signal.SIGKILL)",
    "abort": "os.abort()",
    "crash in C": "ctypes.string_at(0)",
    "raise SystemExit at a call": "def f(x): raise SystemExit(0)",
    "raise KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "raise GeneratorExit": "def f(x): raise GeneratorExit",
    "raise StopIteration": "def f(x): raise StopIteration(1729003)",
    "raise AssertionError": "def f(x): raise AssertionError",
    # Values that agree with everything
    "equals everything": "class E:\n  def __eq__(s, o): return True\n  def __ne__(s, o): return False\n"
    "  def __hash__(s): return 0\ndef f(x): return E()",
    "an int that equals everything": "class I(int):\n  def __eq__(s, o): return True\n  __hash__ = int.__hash__\n"
    "def f(x): return I(1)",
    "a text that equals everything": "class S(str):\n  def __eq__(s, o): return True\n  __hash__ = str.__hash__\n"
    "def f(x): return S('1')",
    "a list that equals everything": "class L(list):\n  def __eq__(s, o): return True\ndef f(x): return L()",
    "a class that equals everything": "class M(type):\n  def __eq__(s, o): return True\n  __hash__ = type.__hash__\n"
    "class E(metaclass=M): pass\ndef f(x): return E",
    "an object that is true": "class T:\n  def __bool__(s): return True\n  def __sub__(s, o): return 0\n"
    "  __rsub__ = __sub__\n  def __abs__(s): return 0\n  def __lt__(s, o): return True\ndef f(x): return T()",
    "not a number": "def f(x): return float('nan')",
    "another function instead": "f = lambda *a, **k: all",
    "a mock": "from unittest.mock import ANY, MagicMock\ndef f(x): return ANY",
    # Patching the harness
    "patch len and abs": "import builtins\nfor n in ('len', 'abs', 'all', 'any', 'isinstance', 'sorted'):\n"
    "  setattr(builtins, n, lambda *a, **k: True)\ndef f(x): return 0",
    "own names for Python's": "set = sorted = list = str = tuple = lambda *a, **k: 0\ndef f(x): return 1",
    "own math": "class math:\n  isclose = staticmethod(lambda *a, **k: True)\ndef f(x): return 1",
    "patch json": "import json\njson.dumps = lambda *a, **k: '[\"passed\"]'\ndef f(x): return 1",
    "patch the garbage collector's finds": "import gc\nfor o in gc.get_objects():\n  if type(o) is dict and 'report' in o:"
    " o['report'] = print\ndef f(x): return 1",
    "forge the verdict on every descriptor": "for n in range(64):\n  for m in (b'[\"passed\"]\\n', b'{\"outcome\": "
    "\"passed\"}\\n'):\n    quietly(os.write, n, m)\ndef f(x): return 1",
    "close every descriptor": "os.closerange(0, 64)\ndef f(x): return 1",
    "forge answers": "import struct, json\nm = json.dumps(['value', True, []]).encode()\nfor i in range(50):\n"
    "  quietly(os.write, 3, struct.pack('=I', len(m)) + m)\ndef f(x): return 1",
    "answers of nonsense": "import struct\nos.write(3, struct.pack('=I', 5) + b'[[[[[') if not quietly(os.fstat, 3) "
    "is OSError else 0\ndef f(x): return 1",
    "answers without end": "import struct\nquietly(os.write, 3, struct.pack('=I', 0xffffffff) + b'x' * 1000)\n"
    "def f(x): return 1",
    "read what is asked": "quietly(os.set_blocking, 3, False)\nseen = quietly(os.read, 3, 100000)\ndef f(x): return seen",
    "walk up the frames": "def f(x):\n  frame = sys._getframe()\n  while frame:\n    for v in frame.f_locals.values():\n"
    "      if v == 1729003: return v\n    frame = frame.f_back",
    "look through all objects": "import gc\ndef f(x):\n  return [o for o in gc.get_objects() if type(o) is list and "
    "1729003 in o][:1]",
    "look through its own memory": "def f(x): return quietly(lambda: open('/proc/self/mem', 'rb').read(10)) and 1",
    "look for the tests": "def f(x):\n  for top, _, names in os.walk('/'):\n    for n in names:\n"
    "      if 'tests' in n.lower() and n.endswith('.json'): return open(os.path.join(top, n)).read()",
    # Printing
    "print passed": "print('passed'); print('ok'); print('1 passed in 0.01s')\ndef f(x): return 'passed'",
    "print a verdict": "print('{\"verdict\": \"right\", \"outcome\": \"right\"}')\ndef f(x): return 'right'",
    "print nothing": "def f(x): pass",
    "print many guesses": "print(*range(1700000, 1729000))\ndef f(x): return list(range(1000))",
    "print control characters": "print('\\x1b[2J\\r\\x00' * 10)\ndef f(x): return '\\x00'",
    "half of a character": "os.write(1, b'\\xff\\xfe\\xc3')\ndef f(x): return '\\ud800'",
    "flood": "quietly(lambda: [os.write(1, b'x' * 65536) for _ in range(10000)])\ndef f(x): return 1",
    "flood of values": "def f(x): return 'x' * 100_000_000",
    "a nested value": "def f(x):\n  v = []\n  for _ in range(100000): v = [v]\n  return v",
    "a value in itself": "def f(x):\n  v = []\n  v.append(v)\n  return v",
    "a huge number": "def f(x): return 10 ** 400_000",
    "an endless name of an error": "class E(Exception): pass\nE.__name__ = 'x' * 10_000_000\ndef f(x): raise E('y' * 10**7)",
    "an error that can't be shown": "class E(Exception):\n  def __str__(s): os._exit(0)\ndef f(x): raise E",
    # Pickles and the like
    "a pickle": "class P:\n  def __reduce__(s): return os.system, ('touch ' + WITNESS + '/pickle',)\ndef f(x): return P()",
    "a pickle as bytes": "import pickle\nclass P:\n  def __reduce__(s): return os.system, ('touch ' + WITNESS + '/p2',)\n"
    "os.write(1, pickle.dumps(P()))\ndef f(x): return pickle.dumps(P())",
    "marshal": "import marshal\nos.write(1, marshal.dumps(compile('1', '', 'exec')))\ndef f(x): return "
    "marshal.dumps((lambda: 1).__code__)",
    # Processes
    "fork": "def f(x): return os.fork()\nf(0)",
    "fork in C": "def f(x): return quietly(libc.fork)\nassert libc.fork() == -1\nassert libc.vfork() == -1",
    "raw clone": "r = libc.syscall(56, 17, 0, 0, 0, 0)\nif r == 0: os._exit(0)\nassert r == -1\ndef f(x): return r",
    "raw clone3": "b = ctypes.create_string_buffer(88)\nr = libc.syscall(435, b, 88)\nif r == 0: os._exit(0)\n"
    "assert r == -1\ndef f(x): return r",
    "fork bomb": "for _ in range(1000):\n  quietly(os.fork)\ndef f(x): return 1",
    "daemon": "def go():\n  if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)\n"
    "quietly(go)\ndef f(x): return 1",
    "a shell": "os.system('touch ' + WITNESS + '/shell')\ndef f(x): return os.popen('id').read()",
    "subprocess": "import subprocess\ndef f(x): return subprocess.check_output(['id'])\nf(0)",
    "exec": "os.execv('/bin/sh', ['sh', '-c', 'touch ' + WITNESS + '/exec; echo 1729003'])",
    "exec from memory": "n = os.memfd_create('x')\nos.write(n, b'#!/bin/sh\\necho 1729003')\nos.execve(n, ['x'], {})",
    "multiprocessing": "import multiprocessing as m\ndef f(x): return m.Pool(4).map(abs, [1])\nf(0)",
    "thread bomb": "import threading\ndef more():\n  for _ in range(2000): threading.Thread(target=time.sleep, "
    "args=(100,), daemon=True).start()\nquietly(more)\nos._exit(0)",
    "threads left behind": "import threading\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    "def f(x): return 1",
    # Signals and looking into others
    "kill the parent": "quietly(os.kill, os.getppid(), 9)\ndef f(x): return 1",
    "kill the grader": "quietly(os.kill, ASKER, 9); libc.kill(ASKER, 9); libc.syscall(62, ASKER, 9)\ndef f(x): return 1",
    "kill everybody": "quietly(os.kill, -1, 9)\ndef f(x): return 1",
    "kill the group": "quietly(os.killpg, 0, 9); quietly(os.kill, 0, 9)\ndef f(x): return 1",
    "kill by descriptor": "quietly(lambda: signal.pidfd_send_signal(os.pidfd_open(ASKER), 9))\ndef f(x): return 1",
    "kill by thread": "libc.syscall(200, ASKER, 9); libc.syscall(234, ASKER, ASKER, 9)\ndef f(x): return 1",
    "kill by queue": "b = ctypes.create_string_buffer(128)\nlibc.syscall(129, ASKER, 9, b)\ndef f(x): return 1",
    "signals by input": "import fcntl\nr, w = os.pipe()\nquietly(fcntl.fcntl, r, 8, ASKER); quietly(fcntl.fcntl, r, 10, 9)\n"
    "quietly(fcntl.fcntl, r, 4, 0o20000); os.write(w, b'x')\ndef f(x): return 1",
    "the limits of others": "import resource\nquietly(resource.prlimit, ASKER, resource.RLIMIT_CPU, (0, 0))\n"
    "def f(x): return 1",
    "ptrace the parent": "assert libc.ptrace(16, os.getppid(), 0, 0) == -1\ndef f(x): return 1",
    "ptrace the grader": "assert libc.ptrace(0x4206, ASKER, 0, 0) == -1\ndef f(x): return 1",
    "be traced": "libc.ptrace(0, 0, 0, 0); os.kill(os.getpid(), signal.SIGSTOP) if False else None\ndef f(x): return 1",
    "read the grader's memory": "b = ctypes.create_string_buffer(64)\nassert libc.process_vm_readv(ASKER, b, 1, b, 1, 0) "
    "== -1\nquietly(open, f'/proc/{ASKER}/mem', 'rb')\ndef f(x): return 1",
    "raise its limits": "import resource\nfor k in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, "
    "resource.RLIMIT_NPROC):\n  quietly(resource.setrlimit, k, (-1, -1))\nopen(WITNESS + '/limits', 'w')",
    # Files
    "read a secret": "print(open(SECRET).read())\ndef f(x): return 1",
    "read passwords": "open('/etc/shadow').read()",
    "read the home": "print(os.listdir(os.path.expanduser('~')), os.listdir('/home'), os.listdir('/root'))",
    "read the environment": "print(dict(os.environ))\ndef f(x): return dict(os.environ)",
    "read the grader's environment": "open(f'/proc/{ASKER}/environ').read()",
    "read the repository": "print(os.listdir(os.path.dirname(WITNESS)))\ndef f(x): return 1",
    "write beside": "quietly(open, WITNESS + '/beside', 'w')\ndef f(x): return 1",
    "write over": "quietly(open, SECRET, 'w')\ndef f(x): return 1",
    "write to the temporary folder": "import tempfile\ntempfile.NamedTemporaryFile()\ndef f(x): return 1",
    "write to the library": "import json\nopen(json.__file__, 'a').write('x')",
    "remove": "quietly(os.unlink, SECRET); quietly(os.rename, SECRET, SECRET + '2'); quietly(os.truncate, SECRET, 0)\n"
    "def f(x): return 1",
    "change rights": "quietly(os.chmod, SECRET, 0); quietly(os.utime, SECRET, (0, 0)); quietly(os.chown, SECRET, 1, 1)\n"
    "def f(x): return 1",
    "a symbolic link": "quietly(os.symlink, '/etc/passwd', WITNESS + '/link'); quietly(os.symlink, SECRET, '/tmp/link')\n"
    "def f(x): return quietly(lambda: open('/tmp/link').read()) and 1",
    "a hard link": "quietly(os.link, SECRET, WITNESS + '/hard')\ndef f(x): return 1",
    "leave by dots": "print(open('../../../../../../../../etc/hostname').read())",
    "a special file": "quietly(os.mkfifo, WITNESS + '/fifo'); quietly(os.mknod, WITNESS + '/node')\ndef f(x): return 1",
    "shared memory": "from multiprocessing import shared_memory as s\ns.SharedMemory('rm', create=True, size=100)",
    "system V memory": "assert libc.shmget(1729, 4096, 0o1666) == -1\nassert libc.msgget(1729, 0o1666) == -1\n"
    "assert libc.semget(1729, 1, 0o1666) == -1\ndef f(x): return 1",
    "a device": "quietly(open, '/dev/mem', 'rb'); quietly(open, '/dev/vda', 'rb'); print(os.listdir('/dev'))",
    "open by handle": "b = ctypes.create_string_buffer(128)\nassert libc.syscall(304, -100, b, 0) == -1\ndef f(x): return 1",
    # Network
    "connect": "s = socket.create_connection(('127.0.0.1', PORT)); s.send(b'x')",
    "connect in C": "assert libc.socket(2, 1, 0) == -1\nassert libc.socket(1, 1, 0) == -1\ndef f(x): return 1",
    "datagrams": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "names": "socket.getaddrinfo('example.org', 80)",
    "fetch": "import urllib.request\nurllib.request.urlopen(f'http://127.0.0.1:{PORT}')",
    "abstract sockets": "a, b = socket.socketpair()\nquietly(a.sendto, b'x', '\\0reasonmill')\nc = "
    "socket.socket(socket.AF_UNIX)\nc.connect('\\0reasonmill')",
    "listen": "s = socket.create_server(('0.0.0.0', 0))",
    # The kernel
    "namespaces": "assert libc.unshare(0x10000000) == -1 and libc.unshare(0x20000) == -1\n"
    "assert libc.setns(0, 0) == -1\ndef f(x): return 1",
    "mount": "assert libc.mount(b'x', b'/tmp', b'tmpfs', 0, 0) == -1\nassert libc.umount2(b'/usr/lib', 2) == -1\n"
    "assert libc.chroot(b'/usr/lib') == -1\ndef f(x): return 1",
    "become root": "for r in (libc.setuid(0), libc.setresuid(0, 0, 0), libc.setgid(0)):\n  assert r == -1\n"
    "def f(x): return 1",
    "bpf, keys, rings, events": "for n in (321, 250, 248, 425, 298, 323, 319, 169, 175, 246):\n"
    "  assert libc.syscall(n, 0, 0, 0, 0, 0) == -1\ndef f(x): return 1",
    "another table of calls": "assert libc.syscall(0x40000000 | 39) == -1\ndef f(x): return 1",
    "undo the filter": "libc.prctl(22, 0, 0, 0, 0); libc.prctl(38, 0, 0, 0, 0); libc.prctl(1, 0, 0, 0, 0)\n"
    "assert libc.syscall(317, 1, 0, 0) == -1\nquietly(os.fork)\ndef f(x): return 1",
    "make terminals type": "import fcntl\nquietly(fcntl.ioctl, 0, 0x5412, b'x'); quietly(fcntl.ioctl, 2, 0x5412, b'x')\n"
    "def f(x): return 1",
    "set the clock": "quietly(time.clock_settime, time.CLOCK_REALTIME, 0); quietly(socket.sethostname, 'x')\n"
    "def f(x): return 1",
    # Memory
    "memory bomb": "x = bytearray(10 ** 10)",
    "memory bomb by pieces": "x = []\nwhile True: x.append(bytearray(10 ** 7))",
    "memory by mapping": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 10 ** 8))",
    "memory at a call": "def f(x): return [0] * 10 ** 10",
    "deep expression": "eval('(' * 10 ** 5 + ')' * 10 ** 5)",
    "deep regular expression": "import re\nre.compile('(' * 50000 + ')' * 50000)",
    # What is no program
    "no Python": "this is no Python at all (",
    "null bytes": "x = 1\0",
    "a class of that name": "class f: pass",
    "a module of that name": "import json as f",
}

# Ended by their limits of time, so each takes a second or more.
SLOW = {
    "endless loop": "while True: pass",
    "endless loop at a call": "def f(x):\n  while True: pass",
    "endless loop in C": "import itertools\nsum(itertools.repeat(1))",
    "endless regular expression": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
    "a huge power": "def f(x): return 7 ** 7 ** 10\nf(0)",
    "sleep": "time.sleep(1000)",
    "sleep at a call": "def f(x): time.sleep(1000)",
    "loop over exceptions": "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "ignore signals": "for n in range(1, 65): quietly(signal.signal, n, signal.SIG_IGN)\nwhile True: pass",
    "block signals": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "handle the end of time": "signal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True: pass",
    "stop itself": "os.kill(os.getpid(), signal.SIGSTOP)",
    "wait for input": "os.read(os.pipe()[0], 1)",
    "wait for more questions": "import select\nselect.select([os.pipe()[0]], [], [])",
    "a lock": "import threading\nl = threading.Lock(); l.acquire(); l.acquire()",
    "threads that loop": "import threading\ndef loop():\n  while True: pass\nfor _ in range(8): "
    "threading.Thread(target=loop).start()",
    "threads that wait at the end": "import threading\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
    "def f(x): time.sleep(1000)",
    "loop when it ends": "import atexit\n@atexit.register\ndef f(x=0):\n  while True: pass",
    "loop in a destructor": "class D:\n  def __del__(s):\n    while True: pass\nd = D(); del d",
    "loop in an answer": "class L(list):\n  def __iter__(s):\n    while True: yield 1\ndef f(x): return L([1])\nlist(L())",
    "loop in repr": "class E(Exception):\n  def __str__(s):\n    while True: pass\ndef f(x): raise E\nraise E",
    "an endless iterator": "import itertools\ndef f(x): return itertools.count()\nlist(map(str, itertools.repeat(1)))",
    "fork bomb without end": "while True:\n  quietly(os.fork)",
    "slow flood": "while True:\n  print('x', flush=True); time.sleep(0.01)",
    "patch the modules of the harness": "for m in list(sys.modules.values()):\n  for n in ('report', 'examine', 'send',"
    " 'encode', 'serve', 'confine'):\n    quietly(setattr, m, n, lambda *a, **k: ['passed'])\ndef f(x): return 1",
    "deep recursion": "sys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)\nf(0)",
    "flood of errors": "while True: os.write(2, b'x' * 65536)",
}
