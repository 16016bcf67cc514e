"""The sandbox against programs that try to do harm, or to pass tests without solving anything."""

import ast
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.errors import UsageError
from tinkertools.rewards.sandbox import Limits, Unsafe, check_available, child, policy, run_tests

needs_kernel = pytest.mark.skipif(bool(policy.missing()), reason=f"this system lacks {policy.missing()}")
GOOD = "def f(x):\n    return x + 1\n"
SECRET = "sk-planted-in-the-environment-77"

# Bodies of `f`, and a part of what is said of the failure. Each would return 2, as the test wants, were it let.
ATTACKS = {
    "endless loop": ("while True: pass", "no end after"),
    "sleep": ("import time; time.sleep(1000); return 2", "no end after"),
    "stops itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP); return 2", "not permitted"),
    "ignores signals": (
        "import signal\n    for n in range(1, 60):\n        try: signal.signal(n, signal.SIG_IGN)\n"
        "        except OSError: pass\n    while True: pass",
        "no end after",
    ),
    "10 GB": ("x = bytearray(10 * 10**9); return 2", "MemoryError"),
    "10 GB in pieces": ("x = []\n    while len(x) < 10_000: x.append(bytearray(10**6))\n    return 2", "MemoryError"),
    "memory of a file": ("import os; os.memfd_create('x'); return 2", "not permitted"),
    "deep recursion": ("return f(x)", "RecursionError"),
    "fork": ("import os; os.fork(); return 2", "not permitted"),
    "fork bomb": ("import os\n    while True: os.fork()", "not permitted"),
    "fork by number": (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        f"    assert libc.syscall({57 if platform.machine() == 'x86_64' else 220}, 17, 0, 0, 0, 0) != -1; return 2",
        "AssertionError",
    ),
    "subprocess": ("import subprocess; subprocess.run(['/bin/true'], check=True); return 2", "not permitted"),
    "exec": ("import os; os.execv('/bin/true', ['true'])", "not permitted"),
    "multiprocessing": ("import multiprocessing as m; p = m.Process(target=print); p.start(); return 2", "Error"),
    "threads without end": (
        "import threading, time\n    while True: threading.Thread(target=time.sleep, args=(99,)).start()",
        "can't start new thread",
    ),
    "TCP": ("import socket; socket.create_connection(('127.0.0.1', PORT)); return 2", "not permitted"),
    "UDP": ("import socket; socket.socket(type=socket.SOCK_DGRAM); return 2", "not permitted"),
    "IPv6": ("import socket; socket.socket(socket.AF_INET6); return 2", "not permitted"),
    "unix socket": ("import socket; socket.socket(socket.AF_UNIX); return 2", "not permitted"),
    "unix datagrams": ("import socket; socket.socketpair(type=socket.SOCK_DGRAM); return 2", "not permitted"),
    "netlink": ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); return 2", "not permitted"),
    "download": ("import urllib.request as u; u.urlopen('http://127.0.0.1:PORT'); return 2", "not permitted"),
    "writes elsewhere": ("open('OUTSIDE/new', 'w'); return 2", "Permission denied"),
    "appends elsewhere": ("open('OUTSIDE/file', 'a').write('x'); return 2", "Permission denied"),
    "empties elsewhere": ("import os; os.open('OUTSIDE/file', os.O_RDONLY | os.O_TRUNC); return 2", "not permitted"),
    "truncates elsewhere": ("import os; os.truncate('OUTSIDE/file', 0); return 2", "not permitted"),
    "removes elsewhere": ("import os; os.remove('OUTSIDE/file'); return 2", "Permission denied"),
    "renames elsewhere": ("import os; os.rename('OUTSIDE/file', 'mine'); return 2", "Error"),
    "links elsewhere": ("import os; os.link('OUTSIDE/file', 'mine'); return 2", "not permitted"),
    "symbolic link": ("import os; os.symlink('OUTSIDE/file', 'mine'); return 2", "not permitted"),
    "changes a mode": ("import os; os.chmod('OUTSIDE/file', 0o777); return 2", "not permitted"),
    "changes a time": ("import os; os.utime('OUTSIDE/file', (1, 1)); return 2", "not permitted"),
    "makes a folder": ("import os; os.mkdir('x'); return 2", "not permitted"),
    "reads elsewhere": ("return 2 if open('OUTSIDE/file').read() else 0", "Permission denied"),
    "reads the home": ("import os; os.listdir('/root'); os.listdir('/home'); return 2", "Permission denied"),
    "reads passwords": ("open('/etc/passwd').read(); return 2", "Permission denied"),
    "reads the parent's environment": (
        "import os; open(f'/proc/{os.getppid()}/environ').read(); return 2", "Permission denied",
    ),
    "reads the parent's memory": ("import os; open(f'/proc/{os.getppid()}/mem', 'rb'); return 2", "Permission denied"),
    "reads its own descriptors": ("import os; os.listdir('/proc/self/fd'); return 2", "Permission denied"),
    "kills the parent": ("import os; os.kill(os.getppid(), 9); return 2", "not permitted"),
    "kills all": ("import os; os.kill(-1, 9); return 2", "not permitted"),
    "signals by a pipe": (
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid()); return 2", "not permitted",
    ),
    "traces the parent": (
        "import ctypes, os; libc = ctypes.CDLL(None)\n"
        "    assert libc.ptrace(16, os.getppid(), None, None) == 0; return 2",
        "AssertionError",
    ),
    "raises its limits": (
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY)); return 2", "not ",
    ),
    "io_uring": (
        "import ctypes\n    assert ctypes.CDLL(None).syscall(425, 8, bytes(120)) >= 0; return 2", "AssertionError",
    ),
    "a new user": ("import os; os.setuid(0); return 2", "not permitted"),
    "a namespace": ("import ctypes\n    assert ctypes.CDLL(None).unshare(0x10000000) == 0; return 2", "AssertionError"),
    "a new session": ("import os; os.setsid(); return 2", "not permitted"),
    "huge output": ("while True: print('x' * 10_000)", "printed more than"),
    "huge errors": ("import os\n    while True: os.write(2, b'x' * 10_000)", "printed more than"),
    "a huge file": ("open('x', 'wb').write(bytes(10**8)); return 2", "File too large"),
    "many files": ("for i in range(10**9): open(str(i), 'w').close()", "too many files"),
    "many large files": (
        "for i in range(90):\n        with open(str(i), 'wb') as o: o.write(bytes(8 << 20))\n    while True: pass",
        "too many files",
    ),
    "descriptors": ("x = []\n    while True: x.append(open('/dev/null'))", "Too many open files"),
    "a huge value": ("return [0] * 10**7", "too large"),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", "signal 11"),
    "abort": ("import os; os.abort()", "signal"),
}  # fmt: skip

# Ways to pass without solving anything; no test of either kind is passed by any.
CHEATS = {
    "sys.exit": "import sys\ndef f(x): sys.exit(0)",
    "os._exit": "import os\ndef f(x): os._exit(0)",
    "exit while loading": "import os\nos._exit(0)",
    "raises SystemExit while loading": "raise SystemExit(0)",
    "prints": "def f(x):\n    print('+passed OK 1 passed', flush=True)\n    return 0",
    "another AssertionError": "import builtins\nbuiltins.AssertionError = type(None)\nAssertionError = None\n"
    "def f(x): return 0",
    "another exec": "import builtins\nbuiltins.exec = builtins.eval = builtins.compile = lambda *a: None\n"
    "def f(x): return 0",
    "trace": "import sys\ndef t(frame, event, arg):\n    frame.f_trace_lines = False\n    return t\nsys.settrace(t)\n"
    "def f(x): return 0",
    "writes to all descriptors": "import os\ndef f(x):\n    for fd in range(3, 64):\n        for text in "
    "(b'+', b'\\x00\\x00\\x00\\x11' + bytes(16) + b'+'):\n            try: os.write(fd, text)\n"
    "            except OSError: pass\n    os._exit(0)",
    "closes all descriptors": "import os\ndef f(x):\n    os.closerange(3, 64)\n    return 0",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(x): return 0",
    "excepthook": "import sys\nsys.excepthook = lambda *a: None\ndef f(x): return 0",
    "asserts off": "import sys\nsys.flags = None\n__debug__x = False\ndef f(x): return 0",
}


def _descriptors() -> set[str]:
    """What this process holds open, by names; of what other tests opened, some may be closed at any time."""
    held = set()
    with suppress(FileNotFoundError):  # only Linux has such a folder
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # the folder itself, which was just read
                held.add(str(link.readlink()))
    return held


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After each test there is no process and no file of a program."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    descriptors = _descriptors()
    before = psutil.Process().children(recursive=True)  # of other tests: servers, for one
    yield
    assert [child for child in psutil.Process().children(recursive=True) if child not in before] == []
    assert list(folder.iterdir()) == []
    assert _descriptors() <= descriptors


def run(program: str, *tests: str, seconds: float = 8.0, **limits: int) -> list[tuple[bool, str | None]]:
    return [(r.passed, r.error) for r in run_tests(program, tests, Limits(seconds, **limits))]


@needs_kernel
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_a_failed_test_and_the_next_one_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    (outside / "file").chmod(0o600)
    before = (outside / "file").stat()
    body, said = ATTACKS[name]
    program = f"def f(x):\n    {body}\ndef g(x):\n    return x\n".replace("OUTSIDE", str(outside)).replace("PORT", "9")
    slow = said in ("no end after", "too many files")
    results = run(program, "assert f(1) == 2", "assert g(3) == 3", seconds=9 if slow else 60)
    assert not results[0][0] and results[0][1] is not None and said in results[0][1], results
    assert results[1] == (True, None)
    after = (outside / "file").stat()
    assert [p.name for p in outside.iterdir()] == ["file"] and (outside / "file").read_text() == "kept"
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, before.st_nlink)
    assert SECRET not in str(results)


@needs_kernel
@pytest.mark.parametrize("test", ["assert f(1) == 2", "x = f(1)\nassert x == 2", "assert not f(1) != 2"])
@pytest.mark.parametrize("name", CHEATS)
def test_no_test_is_passed_without_a_solution(name: str, test: str) -> None:
    assert [passed for passed, _ in run(CHEATS[name], test, test)] == [False, False]


@needs_kernel
@pytest.mark.parametrize(
    "value",
    [
        "type('E', (), {'__eq__': lambda s, o: True})()",
        "type('E', (int,), {'__eq__': lambda s, o: True, '__repr__': lambda s: '2'})(0)",
        "[type('E', (int,), {'__eq__': lambda s, o: True})(0)]",
        "type('L', (list,), {'__iter__': lambda s: iter([2])})()",
        "type('S', (str,), {'__str__': lambda s: '2', '__repr__': lambda s: '2'})('x')",
        "float('nan')",
    ],
)
def test_an_object_that_equals_everything_equals_no_literal(value: str) -> None:
    assert not run(f"def f(x): return {value}", "assert f(1) == 2", "assert f(1) == [2]")[0][0]


@needs_kernel
def test_the_environment_is_empty() -> None:
    names = "sorted(__import__('os').environ)"
    assert run(
        f"def f(): return {names}", "assert f() == ['HOME','LC_CTYPE','MALLOC_ARENA_MAX','PYTHONHASHSEED','TMPDIR']"
    ) == [(True, None)]


@needs_kernel
@pytest.mark.parametrize(
    ("program", "test"),
    [
        (GOOD, "assert f(1) == 2"),
        (GOOD, "assert f(1) > 1 and f(1) < 3, 'words'"),
        (GOOD, "assert (f(1)\n    + 1) == 3"),
        (GOOD, "assert (x := f(1)) == 2, 'words'  # and more"),
        (GOOD, f"assert f(0){' + 1' * 800} == 801"),
        (GOOD, "def check(g):\n    assert g(1) == 2\n\ncheck(f)"),
        ("import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\ndef f(): return A(1)", "assert f().x == 1"),
        ("def f(): return {'a': [1, (2.5, None)], 'b': {1, 2}}", "assert f() == {'b': {2, 1}, 'a': [1, (2.5, None)]}"),
        ("from collections import *\ndef f(): return Counter('aab')", "assert f() == {'a': 2, 'b': 1}"),
        ("from collections import *\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)", "assert f() == (1, 2)"),
        ("def f(): return set()", "assert f() == set()"),
        ("def f(): return float('inf')", "assert f() == 1e999"),
        ("def f(): return b'x', True, -0.5, 'ü', ''", "assert f() == (b'x', True, -0.5, 'ü', '')"),
        ("from fractions import *\ndef f(): return [Fraction(4, 2), Fraction(1, 2)]", "assert f() == [2, 0.5]"),
        ("from decimal import *\ndef f(): return Decimal('2.50')", "assert f() == 2.5"),
        ("def f(): return {'k': 1}.keys()", "assert f() == {'k'}"),
        (
            "import asyncio\nasync def g(): await asyncio.sleep(0); return 3\ndef f(): return asyncio.run(g())",
            "assert f() == 3",
        ),
        (
            "from concurrent.futures import ThreadPoolExecutor\n"
            "def f():\n    with ThreadPoolExecutor(4) as p: return list(p.map(abs, [-1, 2]))",
            "assert f() == [1, 2]",
        ),
        (
            "import bisect, collections, datetime, decimal, functools, hashlib, heapq, itertools, json, math, random\n"
            "import re, statistics, string, typing, zoneinfo\ndef f(): return math.gcd(4, 6)",
            "assert f() == 2",
        ),
        ("def f():\n    with open('own', 'w+') as o: o.write('a'); o.seek(0); return o.read()", "assert f() == 'a'"),
        (
            "import tempfile\ndef f():\n    with tempfile.TemporaryFile('w+') as o: return o.write('abc')",
            "assert f() == 3",
        ),
        ("x = input if False else None\nif __name__ == '__main__':\n    input()\ndef f(): return 1", "assert f() == 1"),
    ],
)  # fmt: skip
def test_ordinary_programs_pass(program: str, test: str) -> None:
    assert run(program, test) == [(True, None)]


@needs_kernel
def test_failures_say_why() -> None:
    results = run(GOOD, "assert f(1) == 3", "assert f(1) < 0, 'not so'", "g(1)", "assert f('a') == 1")
    assert [error for _, error in results] == [
        "AssertionError: it is 2",
        "AssertionError: not so",
        "NameError: name 'g' is not defined",
        'TypeError: can only concatenate str (not "int") to str',
    ]
    assert run("1 / 0", "assert True") == [(False, "the program was not loaded: ZeroDivisionError: division by zero")]
    assert run("while True: pass", "assert 1 == 1", "assert 2 == 2", seconds=1.5)[1][1] == (
        "the program was not loaded: no end after 0.5 s"
    )


@needs_kernel
def test_sets_have_the_same_order_in_every_run() -> None:
    program = "def f(): return ''.join(set('abcdefghij'))\nprint(f())"
    (first,) = run(program, "assert f() == ''")
    assert run(program, "assert f() == ''") == [first]


@needs_kernel
def test_programs_side_by_side_and_stopped() -> None:
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(GOOD, "assert f(1) == 2", seconds=60))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[(True, None)]] * 6
    stopped = threading.Event()
    timer = threading.Timer(0.3, stopped.set)
    timer.start()
    (result,) = run_tests("while True: pass", ["assert True"], Limits(1000), stopped)
    assert result.error == "the program was not loaded: stopped"
    timer.join()


@needs_kernel
def test_a_program_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    script = (
        "import os, sys, threading, time\nfrom tinkertools.rewards.sandbox import *\n"
        "threading.Thread(target=run_tests, args=('while True: pass', ['1'], Limits(1000)), daemon=True).start()\n"
        "time.sleep(1.5); import psutil\nprint([c.pid for c in psutil.Process().children()], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    (number,) = eval(done.stdout)
    psutil.wait_procs([psutil.Process(number)] if psutil.pid_exists(number) else [], timeout=10)
    assert not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


@needs_kernel
def test_nothing_runs_in_a_process_that_cannot_shut_itself_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "seccomp_filter", lambda machine: b"\xff" * 16)
    with pytest.raises(Unsafe, match="PR_SET_SECCOMP"):
        run_tests("open('/tmp/evil', 'w')", ["assert True"], Limits(5))
    assert not Path("/tmp/evil").exists()


def test_a_system_without_the_means_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "missing", lambda: ("Landlock (Linux 5.13 and later)",))
    with pytest.raises(UsageError, match="cannot be run safely here: this system lacks Landlock") as error:
        check_available()
    assert error.value.hint is not None and "Linux 5.13" in error.value.hint
    with pytest.raises(UsageError):
        run_tests(GOOD, ["assert f(1) == 2"], Limits(5))


@pytest.mark.parametrize(("system", "machine", "said"), [
    ("darwin", "arm64", "which are Linux's"), ("linux", "riscv64", "a seccomp filter for riscv64"),
])  # fmt: skip
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, system: str, machine: str, said: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert said in policy.missing.__wrapped__()[0]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner)
    | st.sets(st.integers()),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_plain_values_arrive_as_they_are(value: object) -> None:
    assert ast.literal_eval(child._plain(value)) == value
