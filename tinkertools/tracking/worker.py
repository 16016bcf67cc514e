"""A tracker on a thread of its own: what it does, and what becomes of it, is nothing that training waits for."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from tinkertools.errors import without_secrets
from tinkertools.reporting import Notify
from tinkertools.tracking.trackers import Start, Tracker

# How long the end of a run waits for what is still on its way, and after how long it says so.
WAIT_SECONDS = 60.0
SAY_AFTER_SECONDS = 5.0
# What is left of it for somebody who wants to leave at once.
LEAVING_SECONDS = 2.0
# Entries that may wait for a tracker that hangs: some hundred megabytes.
_MOST_WAITING = 200_000
_LONGEST_REASON = 200


class Worker:
    """One tracker, its queue and its thread. A daemon: a thread that hangs does not keep the process."""

    def __init__(
        self, name: str, tracker: Tracker, start: Start, keep: Callable[[str, dict[str, str]], None], notify: Notify
    ) -> None:
        self.name = name
        self.done = threading.Event()
        self._tracker = tracker
        self._start = start
        self._keep = keep
        self._notify = notify
        self._queue: queue.Queue[tuple[int, dict[str, float]]] = queue.Queue(_MOST_WAITING)
        self._ending = threading.Event()
        self._said = threading.Lock()
        self._off = False
        self._thread = threading.Thread(target=self._work, name=f"tracking-{name}", daemon=True)

    def start(self) -> None:
        """Begin, or go on with, the tracked run."""
        self._thread.start()

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Hand over what belongs to a step."""
        if self._off:
            return
        try:
            self._queue.put_nowait((step, metrics))
        except queue.Full:
            self.give_up("it takes nothing any more")

    def end(self) -> None:
        """Ask to finish when the queue is empty."""
        self._ending.set()
        # Wakes the thread; a full queue needs no waking.
        with suppress(queue.Full):
            self._queue.put_nowait((0, {}))

    def give_up(self, reason: str) -> None:
        """Switch the tracker off, whatever it is at, and say so, once."""
        if not self._said.acquire(blocking=False):
            return
        self._off = True
        reason = " ".join(without_secrets(reason).split())[:_LONGEST_REASON]
        with suppress(Exception):
            self._notify(f"{self.name} is switched off, training goes on: {reason}; {self._tracker.hint(self._start)}")

    def leave(self) -> None:
        """See to it that the library does not hold the process when it ends."""
        self._off = True
        with suppress(Exception):
            self._tracker.abandon()

    def say(self, text: str) -> None:
        """Tell the user something of the tracker."""
        self._notify(f"{self.name}: {text}")

    def _work(self) -> None:
        try:
            if (known := self._tracker.begin(self._start)) and not self._off:
                self._keep(self.name, known)
            while not self._off and not (self._ending.is_set() and self._queue.empty()):
                step, metrics = self._queue.get()
                if metrics:
                    self._tracker.log(step, metrics)
            if not self._off:
                self._tracker.finish()
        # A library may even call sys.exit; none of it is training's affair.
        except BaseException as error:  # noqa: BLE001 - see above
            self.give_up(f"{type(error).__name__}: {error}")
            with suppress(Exception):
                self._tracker.abandon()
        finally:
            self.done.set()


def end_all(workers: Sequence[Worker], *, at_once: bool) -> None:
    """Wait, for a bounded time, until the trackers have what was added."""
    for worker in workers:
        worker.end()
    begun = time.monotonic()
    try:
        for worker in workers:
            _wait(worker, begun, LEAVING_SECONDS if at_once else WAIT_SECONDS)
    finally:  # another Ctrl-C as well
        for worker in workers:
            if not worker.done.is_set():
                worker.leave()


def _wait(worker: Worker, begun: float, seconds: float) -> None:
    say_after = min(SAY_AFTER_SECONDS, seconds)
    if worker.done.wait(max(0.0, begun + say_after - time.monotonic())):
        return
    if seconds > say_after:
        worker.say(f"waiting until it has the last entries, {seconds:.0f} seconds at most (Ctrl-C leaves at once)")
        if worker.done.wait(max(0.0, begun + seconds - time.monotonic())):
            return
    worker.give_up(f"it did not take the last entries within {seconds:.0f} seconds")
