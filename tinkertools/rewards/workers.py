"""A few processes that run rewards of the user over the whole run. One that fails costs the sample it was about."""

import io
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import tinkertools
from tinkertools.errors import UsageError, without_secrets
from tinkertools.rewards.samples import Closing, Rewarded, Sample
from tinkertools.rewards.worker import Rule, no_end, packed, receive

# More processes would only wait for each other; each may load large libraries.
_MOST_WORKERS = 4
# How many calls of an async function are under way in a process.
_AWAITED_AT_ONCE = 16
# An import may take long: torch is among what users' code imports.
_LOAD_SECONDS = 120.0
# What each process may take of the memory that the machine has.
_MEMORY_SHARE = 0.5
_LOOK_SECONDS = 0.1
# An async call that takes too long is given up in its process, which then says so; this is how long it may take to.
_GRACE_SECONDS = 2.0
# This package is found where it is found here, but after all that the user's code may import.
_START = "import sys; sys.path.append(sys.argv[1]); from tinkertools.rewards import worker; worker.main(*sys.argv[2:])"

_ROOT = Path(tinkertools.__file__).parents[1]


@dataclass
class _Batch:
    """What is asked for at once, and what has come of it."""

    samples: Sequence[Sample]
    found: list[Rewarded | None]
    waiting: deque[int]
    # Those that were under way when their process ended: one of them ended it, and each is tried again alone.
    suspects: deque[int] = field(default_factory=deque)
    failure: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, most: int) -> tuple[list[int], bool]:
        """The next samples, and whether they are to be alone in their process."""
        with self.lock:
            if self.waiting:
                return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))], False
            if self.suspects:
                return [self.suspects.popleft()], True
            return [], False


class Workers(Closing):
    """A reward that runs in processes of its own.

    Attributes:
        name: as `--reward` takes it.
    """

    def __init__(self, name: str, rule: Rule, timeout: float, workers: int | None = None) -> None:
        """Start one process, to see that the rule can be loaded.

        Args:
            name: as `--reward` takes it.
            rule: what rewards.
            timeout: seconds a sample.
            workers: how many processes there are; by default as many as there are processors, and a few at most.

        Raises:
            UsageError: it cannot be loaded.
        """
        self.name = name
        self._timeout = timeout
        count = workers or min(_MOST_WORKERS, os.cpu_count() or 1)
        self._workers = [_Worker(name, rule, timeout) for _ in range(count)]
        self._busy = threading.Lock()
        self._closed = threading.Event()
        try:
            self._workers[0].start()
        except BaseException:
            self.close()
            raise

    def __call__(self, samples: Sequence[Sample]) -> list[Rewarded]:
        """See `Reward`.

        Raises:
            UsageError: the rule could be loaded once, and now cannot.
        """
        batch = _Batch(samples, [None] * len(samples), deque(range(len(samples))))
        with self._busy:
            most = -(-len(samples) // len(self._workers))
            threads = [
                threading.Thread(target=self._work, args=(worker, batch, most), daemon=True)
                for worker in self._workers[: len(samples)]
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if batch.failure is not None:
            raise batch.failure
        return [one or Rewarded(None, "not run: the reward was closed") for one in batch.found]

    def close(self) -> None:
        """End the processes."""
        self._closed.set()
        for worker in self._workers:
            worker.end()

    def _work(self, worker: "_Worker", batch: _Batch, most: int) -> None:
        try:
            while not self._closed.is_set() and batch.failure is None:
                worker.start()
                numbers, alone = batch.take(min(most, _AWAITED_AT_ONCE) if worker.awaited else 1)
                if not numbers:
                    return
                self._ask(worker, batch, numbers, alone or len(numbers) == 1)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the samples came from
            batch.failure = error
        finally:
            if self._closed.is_set():
                worker.end()  # it may have been started meanwhile

    def _ask(self, worker: "_Worker", batch: _Batch, numbers: list[int], alone: bool) -> None:
        """Have a process reward some samples, and see to those that ended it."""
        left = set[int]()
        for number in numbers:
            try:
                worker.ask((number, batch.samples[number]))
                left.add(number)
            except Exception as error:  # noqa: BLE001 - what rows hold may raise anything when it is pickled
                batch.found[number] = Rewarded(None, f"the sample cannot be sent to a process: {error}")
        reason: str | None = None
        deadline = time.monotonic() + self._timeout + (_GRACE_SECONDS if worker.awaited else 0)
        while left and reason is None:
            if self._closed.is_set():
                return
            reply = worker.reply(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
            if isinstance(reply, str):
                reason = reply
            elif reply is not None:
                number, rewarded = reply
                batch.found[number] = Rewarded(rewarded.value, rewarded.error and without_secrets(rewarded.error))
                left.discard(number)
            elif time.monotonic() > deadline:
                reason = no_end(self._timeout)
        if reason is None:
            return
        worker.end()
        for number in sorted(left):
            if alone:
                batch.found[number] = Rewarded(None, reason)
            else:
                with batch.lock:
                    batch.suspects.append(number)


class _Worker:
    """One process, which is started anew after each end.

    Attributes:
        awaited: whether its calls are of an async function, so that several can be under way.
    """

    def __init__(self, name: str, rule: Rule, timeout: float) -> None:
        self.awaited = False
        self._name = name
        self._rule = rule
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # What came, as the thread that reads hands it on: a reply, or None at the end.
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the process, unless it runs.

        Raises:
            UsageError: the rule cannot be loaded.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        their_requests, our_requests = os.pipe()
        our_replies, their_replies = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(_ROOT), str(their_requests), str(their_replies)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(their_requests, their_replies),
                start_new_session=True,  # Ctrl-C is for the process that started this one
            )
        finally:
            os.close(their_requests)
            os.close(their_replies)
        self._requests, self._replies = queue.SimpleQueue(), queue.SimpleQueue()
        # A process that does not read holds up the thread that writes to it, and nobody else.
        pipes = ((_write, our_requests, "wb", self._requests), (_read, our_replies, "rb", self._replies))
        for target, end, mode, handed in pipes:
            threading.Thread(target=target, args=(os.fdopen(end, mode), handed), daemon=True).start()
        memory = int(psutil.virtual_memory().total * _MEMORY_SHARE)
        self.ask((self._rule, memory, self._timeout))
        loaded = self.reply(_LOAD_SECONDS)
        if not isinstance(loaded, bool):
            self.end()
            reason = loaded or no_end(_LOAD_SECONDS)
            raise UsageError(
                f"--reward {self._name} cannot be loaded: {reason}", hint="mend it, then run the same command again"
            )
        self.awaited = loaded

    def ask(self, value: Any) -> None:
        """Send a value."""
        self._requests.put(packed(value))

    def reply(self, seconds: float) -> Any:
        """What the process says next: None where it says nothing in time, words where it has ended."""
        try:
            value = self._replies.get(timeout=seconds)
        except queue.Empty:
            return None
        return self._how_it_ended() if value is None else value

    def end(self) -> None:
        """Kill the process, and what it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)
        process.wait()
        self._requests.put(None)

    def _how_it_ended(self) -> str:
        process = self._process
        if process is None:
            return "the process was ended"
        try:
            code = process.wait(1)
        except subprocess.TimeoutExpired:
            return "the process closed its pipe"
        return f"signal {-code} ended the process" if code < 0 else f"the process ended with code {code}"


def _write(file: io.BufferedWriter, requests: "queue.SimpleQueue[bytes | None]") -> None:
    # A process that has gone reads nothing more; that it has, the other thread says.
    with suppress(OSError), file:
        while (content := requests.get()) is not None:
            file.write(content)
            file.flush()


def _read(file: io.BufferedReader, replies: "queue.SimpleQueue[Any]") -> None:
    with file:
        try:
            while True:
                replies.put(receive(file))
        except Exception:  # noqa: BLE001 - whatever else came, too, is no reply, and the end
            replies.put(None)
