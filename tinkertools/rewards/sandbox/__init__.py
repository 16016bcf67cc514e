"""Runs programs that a model wrote, and tests of them, where they can do no harm.

Each program has a Python process of its own, which shuts itself in before it reads the program (`child`, `policy`):

| danger | what holds it |
|---|---|
| an endless loop, sleeping | wall-clock time: the process is killed; CPU time: RLIMIT_CPU |
| memory | RLIMIT_AS |
| processes, daemons, fork bombs, `exec` | seccomp: threads are all that can be made |
| network, unix sockets | seccomp: there are no sockets but pairs connected to each other; Landlock's rules for TCP |
| signals to others, `ptrace`, `fcntl(F_SETOWN)`, mounts, io_uring, bpf | seccomp: not on the list of what is allowed |
| reading files | Landlock: Python's own, the system's libraries, and an empty directory of its own |
| writing files | Landlock: plain files in that directory; RLIMIT_FSIZE each, and all are looked at while it runs |
| secrets in the environment | it is empty, and /proc cannot be read |
| a huge output | the process is killed |
| rights of root | capabilities are dropped; PR_SET_NO_NEW_PRIVS |
| what is left behind | nothing can outlive the process; its directory, which holds no others, is removed |

All of this is Linux's and needs no privileges (Landlock: 5.13, on x86_64 and aarch64). Where a part of it is missing,
nothing is run: `check_available` says what.

What a test says is believed in two ways. `assert EXPRESSION == LITERAL`, as most tests are, is decided in this process:
the program's is asked for the value of the expression as plain data, and never told the literal. All other tests run
beside the program, in its process, after it; that they passed is said with a token which that process gets with the
test. So neither `sys.exit(0)`, `os._exit(0)`, printing, another `AssertionError`, changed builtins nor objects that
equal everything pass a test of the first kind, and all but the last none of the second.

What it cannot protect against: a program that looks through its own process while a test of the second kind runs
(frames, memory) can find the token there; one whose values are made to satisfy the test, by overriding operators or
shadowing names the test uses, satisfies it. One that knows the tests can answer them by heart. Sizes and times of files
can be asked for anywhere (not their content), time can be measured, and a flaw of the kernel is not guarded against.
Where this process itself is killed, programs end with it, and a directory with what one has written is left behind.
"""

import ast
import os
import platform
import secrets
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkertools.errors import UsageError
from tinkertools.rewards.sandbox import child, policy

__all__ = ["Limits", "TestResult", "check_available", "run_tests"]

# How often a running program is looked at: the size of its files, and whether it is to be stopped.
_LOOK_SECONDS = 0.1
_AT_ONCE = 1 << 16
# As a module, its compiled form is taken from beside it, which halves the time of a start.
_START = "import sys; sys.path.insert(0, sys.argv[1]); import child; del sys.path[0]; child.main(*sys.argv[2:])"


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall-clock time, for all tests; each has an equal share, and so has each loading of the program,
            which a test that ends the process has done anew.
        memory: bytes of address space.
        output: bytes printed.
        file_bytes: of one file; all together may have four times as many.
        open_files: at once.
        files: that may be there.
    """

    seconds: float
    memory: int = 1 << 30
    output: int = 1 << 20
    file_bytes: int = 8 << 20
    open_files: int = 64
    files: int = 100


@dataclass(frozen=True)
class TestResult:
    """Whether a test passed, and if not, why, in a line."""

    passed: bool
    error: str | None = None

    __test__ = False  # pytest would collect it


class _Ended(Exception):
    """The process is over, or was ended; its words say why."""


class Unsafe(Exception):
    """The process could not shut itself in, so nothing was run."""


def check_available() -> None:
    """Refuse to run programs where they could do harm.

    Raises:
        UsageError: this system lacks a means of protection.
    """
    if missing := policy.missing():
        raise UsageError(
            f"programs that a model wrote cannot be run safely here: this system lacks {'; '.join(missing)}",
            hint="run this on Linux 5.13 or later (in a container, its settings must allow Landlock and seccomp)",
        )


def run_tests(
    program: str, tests: Sequence[str], limits: Limits, stopped: threading.Event | None = None
) -> list[TestResult]:
    """Run tests of a program, one after the other in one process; where one ends it, the next has a new one.

    Args:
        program: Python source.
        tests: sources that raise unless they pass.
        limits: what it may use.
        stopped: when set, what runs is killed soon.

    Returns:
        One result for each test, in order.

    Raises:
        Unsafe: the process could not be shut in.
        UsageError: this system lacks a means of protection.
    """
    check_available()
    share = limits.seconds / (len(tests) + 1)
    stopped = stopped or threading.Event()
    results: list[TestResult] = []
    while len(results) < len(tests):
        with ExitStack() as stack:
            try:
                process = stack.enter_context(_Process(program, limits, share, stopped))
                process.load()
            except _Ended as error:
                # It would not load a second time, either.
                failed = TestResult(False, f"the program was not loaded: {error}")
                return results + [failed] * (len(tests) - len(results))
            try:
                while len(results) < len(tests):
                    results.append(process.test(tests[len(results)]))
            except _Ended as error:
                results.append(TestResult(False, str(error)))
    return results


class _Process:
    """A process with a program, its pipes and its directory; for a `with` block."""

    def __init__(self, program: str, limits: Limits, share: float, stopped: threading.Event) -> None:
        self._program = program
        self._limits = limits
        self._share = share
        self._stopped = stopped
        self._printed = 0

    def __enter__(self) -> "_Process":
        with ExitStack() as stack:
            self._folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tt-program-"))
            # Closed once: a second time the number may be another thread's.
            theirs = stack.enter_context(ExitStack())
            requests, self._requests = _pipe(theirs, stack)
            self._replies, replies = _pipe(stack, theirs)
            self._output, output = _pipe(stack, theirs)
            # PYTHON… variables are read from this environment, which has no others: the order of a set of strings
            # would differ from run to run. Otherwise these options are -I.
            command = [
                sys.executable,
                "-s",
                "-P",
                "-S",
                "-B",
                "-X",
                "utf8",
                "-c",
                _START,
                str(Path(child.__file__).parent),
            ]
            self._process = subprocess.Popen(
                [*command, str(requests), str(replies), str(os.getpid())],
                cwd=self._folder,
                env={"HOME": self._folder, "TMPDIR": self._folder, "MALLOC_ARENA_MAX": "2", "PYTHONHASHSEED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(requests, replies),
                start_new_session=True,
            )
            stack.callback(self._kill)
            theirs.close()
            for end in (self._requests, self._replies, self._output):
                os.set_blocking(end, False)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def load(self) -> None:
        """Have the process shut itself in and run the program.

        Raises:
            Unsafe: it could not shut itself in.
            _Ended: the program failed.
        """
        limits = self._limits
        numbers = (int(limits.seconds) + 1, limits.memory, limits.file_bytes, limits.open_files)
        token = secrets.token_bytes(child.TOKEN_LENGTH)
        frames = [
            policy.seccomp_filter(platform.machine()),
            "\0".join(policy.readable()).encode(),
            " ".join(map(str, numbers)).encode(),
            token,
            self._program.encode(errors="replace"),
        ]
        status, text = self._ask(frames, token)
        if status == child.UNSAFE:
            raise Unsafe(text)
        if status != child.PASSED:
            raise _Ended(text)

    def test(self, source: str) -> TestResult:
        """Run a test.

        Raises:
            _Ended: the process ended by it.
        """
        compared = _compared(source)
        token = secrets.token_bytes(child.TOKEN_LENGTH)
        if compared is None:
            status, text = self._ask([child.RUN, token, source.encode(errors="replace")], token)
            return TestResult(True) if status == child.PASSED else TestResult(False, text)
        expression, expected = compared
        status, text = self._ask([child.EVALUATE, token, expression.encode(errors="replace")], token)
        if status != child.VALUE:
            return TestResult(False, text)
        try:
            equal = ast.literal_eval(text) == expected
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return TestResult(False, "the value cannot be read")
        return TestResult(True) if equal else TestResult(False, f"AssertionError: it is {_short(text)}")

    def _ask(self, frames: list[bytes], token: bytes) -> tuple[bytes, str]:
        """What the process replies to frames: its status and its text."""
        sent = memoryview(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))
        reply = bytearray()
        deadline = time.monotonic() + self._share
        with selectors.DefaultSelector() as selector:
            selector.register(self._requests, selectors.EVENT_WRITE)
            selector.register(self._replies, selectors.EVENT_READ)
            selector.register(self._output, selectors.EVENT_READ)
            while not (len(reply) >= 4 and len(reply) >= 4 + int.from_bytes(reply[:4], "big")):
                self._look(deadline)
                for key, _ in selector.select(_LOOK_SECONDS):
                    if key.fd == self._requests:
                        sent = sent[self._write(sent) :]
                        if not sent:
                            selector.unregister(self._requests)
                    elif key.fd == self._replies:
                        reply += self._read_reply(len(reply))
                    elif not self._drain():
                        selector.unregister(self._output)
        answered, status = bytes(reply[4 : 4 + len(token)]), bytes(reply[4 + len(token) : 5 + len(token)])
        whole = len(reply) == 4 + int.from_bytes(reply[:4], "big")
        if sent or not whole or not secrets.compare_digest(answered, token):
            raise _Ended("the program wrote where only tests do")
        return status, reply[5 + len(token) :].decode(errors="replace")

    def _write(self, content: memoryview) -> int:
        try:
            return os.write(self._requests, content[:_AT_ONCE])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise _Ended(self._end()) from None

    def _read_reply(self, so_far: int) -> bytes:
        found = os.read(self._replies, _AT_ONCE)
        if not found:
            raise _Ended(self._end())
        if so_far + len(found) > self._limits.output:
            raise _Ended("the program wrote where only tests do")
        return found

    def _drain(self) -> bytes:
        found = os.read(self._output, _AT_ONCE)
        self._printed += len(found)
        if self._printed > self._limits.output:
            raise _Ended(f"it printed more than {self._limits.output:,} bytes")
        return found

    def _look(self, deadline: float) -> None:
        """End what takes too long or too much."""
        if self._stopped.is_set():
            raise _Ended("stopped")
        if time.monotonic() > deadline:
            raise _Ended(f"no end after {self._share:.3g} s")
        files = size = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                files += 1
                with suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_size
                if files > self._limits.files or size > 4 * self._limits.file_bytes:
                    raise _Ended("it wrote too many files")

    def _end(self) -> str:
        """How the process ended by itself."""
        try:
            code = self._process.wait(_LOOK_SECONDS * 10)
        except subprocess.TimeoutExpired:  # it has closed its pipe, and lives
            return "the program closed what only tests write to"
        return f"signal {-code} ended the process" if code < 0 else f"the process ended with code {code}"

    def _kill(self) -> None:
        # The group is the process alone, whose number is its own until it has been waited for.
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def _pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, int]:
    """The ends of a pipe, each of which is closed with a stack."""
    read, write = os.pipe()
    reading.callback(os.close, read)
    writing.callback(os.close, write)
    return read, write


def _compared(source: str) -> tuple[str, Any] | None:
    """The expression and the value of `assert EXPRESSION == LITERAL`; None where a test is anything else."""
    try:
        (statement,) = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not (isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare)):
        return None
    test = statement.test
    if len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return None
    try:
        expected = ast.literal_eval(test.comparators[0])
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    # As it is written: a tree may be too deep to be made into text. It may go over lines that parentheses held.
    return f"({ast.get_source_segment(source, test.left)})", expected


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"
