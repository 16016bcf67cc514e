"""Commands in processes of their own, a few at once: what they say is passed on, and so are signals that stop them."""

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinkertools.config import without_password
from tinkertools.files import explain_os_errors
from tinkertools.reporting import Notify

if TYPE_CHECKING:
    from types import FrameType

# How long is waited for the last words of a process that has ended: one that it started may hold its stderr open.
_LAST_WORDS_SECONDS = 5.0
# Linux sends a process this signal when its parent has died, whatever of: prctl(PR_SET_PDEATHSIG).
_PDEATHSIG = 1
# How a command begins to say what went wrong.
_ERROR = "error: "
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
        name: what it is called.
        command: what is started.
        environment: of the process.
        output: the file that gets its stderr, after what is there already.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    output: Path


def command_of(config: Path) -> list[str]:
    """What trains the run of a file, or goes on with it.

    Without the working directory among the places of modules, where any file could take a library's name.
    """
    return [sys.executable, "-P", "-m", "tinkertools", "train", "--config", str(config)]


def secret_url(url: str | None) -> str | None:
    """A server's address where a password stands in it, which no file may hold."""
    return url if url and url != without_password(url) else None


def environment_of(url: str | None) -> dict[str, str]:
    """The environment of a command: that of this process, where its package is, and an address that no file holds."""
    path = [*filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).resolve().parents[1])]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONIOENCODING": sys.stderr.encoding or "utf-8"}
    return found | ({"TINKER_BASE_URL": url} if url else {})


class LastWords:
    """What a job said last, by which its end is explained."""

    def __init__(self) -> None:
        self._line = ""

    def heard(self, line: str) -> None:
        """It said this."""
        # An error is explained in one line, and a hint follows it.
        if line.strip() and not self._line.startswith(_ERROR):
            self._line = line

    def why(self, code: int) -> str:
        """Why it failed with an exit code: what it said, or how it ended."""
        if self._line.startswith(_ERROR):
            return self._line.removeprefix(_ERROR)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}: {self._line.strip()}"


class _Child:
    """A running job: its process, and how many of the signals that came it was sent."""

    def __init__(self, job: Job, encoding: str) -> None:
        self.job = job
        with explain_os_errors(job.output):
            job.output.parent.mkdir(parents=True, exist_ok=True)
            self.output = job.output.open("a", encoding="utf-8", buffering=1)
        # A session of its own: Ctrl-C in the terminal comes to this process alone, which passes it on once.
        self.process = subprocess.Popen(
            job.command,
            env=job.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding=encoding,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent if _libc else None,  # noqa: PLW1509  # a single call into the system
        )
        self._signals_sent = 0

    def tell(self, signals: Sequence[signal.Signals]) -> None:
        """Send the process those of the signals that it was not sent."""
        while self._signals_sent < len(signals):
            self._signals_sent += 1
            self.process.send_signal(signals[self._signals_sent - 1])


def _end_with_parent() -> None:
    assert _libc is not None
    _libc.prctl(_PDEATHSIG, signal.SIGTERM)


class Jobs:
    """Runs jobs, `at_once` of them at any time, in their order.

    The first Ctrl-C or SIGTERM goes to those that run, and no other begins; a second one goes to them too.

    Attributes:
        signals: those that came.
    """

    def __init__(self, at_once: int, said: Callable[[Job, str], None], notify: Notify) -> None:
        self.signals: list[signal.Signals] = []
        self._at_once = at_once
        self._said = said
        self._notify = notify
        self._running: list[_Child] = []
        # What happens on the threads that watch: a line of a child, or None when it has ended.
        self._events: queue.SimpleQueue[tuple[_Child, str | None]] = queue.SimpleQueue()

    def run(self, jobs: Sequence[Job], began: Callable[[Job], None], ended: Callable[[Job, int], None]) -> None:
        """Run all, or until a signal comes and those that run have ended.

        Args:
            jobs: what to run.
            began: told when one begins.
            ended: told when one has ended, and its exit code; that is negative if a signal killed it.
        """
        waiting = deque(jobs)
        with self._signals_taken(), self._ended_on_error():
            while self._running or (waiting and not self.signals):
                while waiting and len(self._running) < self._at_once and not self.signals:
                    job = waiting.popleft()
                    began(job)
                    self._start(job)
                child, line = self._events.get()
                if line is None:
                    self._running.remove(child)
                    child.output.close()
                    ended(child.job, child.process.returncode)
                else:
                    child.output.write(line + "\n")
                    self._said(child.job, line)

    def _start(self, job: Job) -> None:
        # On this thread, the main one: a process is told of the death of the thread that started it.
        child = _Child(job, sys.stderr.encoding or "utf-8")
        self._running.append(child)
        child.tell(self.signals)  # one may have come since the process was there
        threading.Thread(target=self._watch, args=(child,), daemon=True).start()

    def _watch(self, child: _Child) -> None:
        reader = threading.Thread(target=self._read, args=(child,), daemon=True)
        reader.start()
        child.process.wait()
        reader.join(_LAST_WORDS_SECONDS)
        self._events.put((child, None))

    def _read(self, child: _Child) -> None:
        assert child.process.stderr is not None
        for line in child.process.stderr:
            self._events.put((child, line.rstrip("\n")))

    @contextmanager
    def _signals_taken(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM are passed on, while the block runs; only the main thread may ask for them."""
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                for one in (signal.SIGINT, signal.SIGTERM):
                    stack.callback(signal.signal, one, signal.signal(one, self._take))
            yield

    def _take(self, number: int, _frame: "FrameType | None") -> None:
        self.signals.append(signal.Signals(number))
        for child in list(self._running):
            child.tell(self.signals)
        if len(self.signals) == 1:
            # A signal can come while a line is being written, which cannot be interrupted by another.
            with suppress(RuntimeError):
                self._notify("\nstopping: what runs ends its steps and saves its state (Ctrl-C again leaves at once)")

    @contextmanager
    def _ended_on_error(self) -> Iterator[None]:
        """No process outlives an error of this one."""
        try:
            yield
        finally:
            for child in self._running:
                child.process.terminate()
            for child in self._running:
                child.process.wait()
