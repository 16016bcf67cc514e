"""One background thread that computes, and the futures it completes in the order of submission."""

import asyncio
import queue
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import tinker

from tinkertools.local.failures import Closed, as_sdk

T = TypeVar("T")


class LocalFuture(Future[T], tinker.APIFuture[T], Generic[T]):
    """The SDK's future over a result that this process computes: `.result()` or `await`, in any event loop.

    It is a future of the standard library as well, which some methods of the SDK return in some of its versions.
    """

    def __init__(self, thread: threading.Thread | None = None) -> None:
        """`thread` completes it; None where nobody can wait for it in vain."""
        super().__init__()
        self._thread = thread

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result, at most `timeout` seconds."""
        if self._thread is threading.current_thread() and not self.done():
            raise RuntimeError(
                "this waits for a result of the engine on the engine's own thread (in a custom loss function, say), "
                "which would take forever: ask for it before"
            )
        return super().result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        """Wait for the result without blocking the event loop."""
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self)

    def future(self) -> "Future[T]":
        """This future, as one of the standard library."""
        return self


def finished(value: T) -> LocalFuture[T]:
    """The future of a value that is there already."""
    future: LocalFuture[T] = LocalFuture()
    future.set_result(value)
    return future


@dataclass(frozen=True)
class _Job:
    """What to run for a future; for jobs with a key, one of which may run the others as well, also the item of it."""

    run: Callable[..., Any]
    future: LocalFuture[Any]
    key: Hashable | None = None
    item: Any = None


class Request:
    """One of the requests that share a run."""

    def __init__(self, job: _Job) -> None:
        self.item = job.item
        self._future = job.future

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return self._future.done()

    def finish(self, result: Any) -> None:
        """Give it its result, or the exception that it fails with."""
        if isinstance(result, BaseException):
            self._future.set_exception(as_sdk(result))
        else:
            self._future.set_result(result)


class Requests:
    """The requests of a run that may be shared: the first, and those of its kind that come while it is under way."""

    def __init__(self, worker: "Worker", first: _Job) -> None:
        self._worker = worker
        self._key = first.key
        self._new = self._started([first])
        self._open: list[Request] = []

    def take(self) -> list[Request]:
        """Those that came since the last call, in their order.

        None that stands in the queue behind a job of another kind: whoever waits there is not overtaken.
        """
        taken = self._new + self._started(self._worker.next_of(self._key))
        self._new = []
        self._open = [request for request in self._open if not request.finished] + taken
        return taken

    def fail(self, error: BaseException) -> None:
        """Let all that have no result fail."""
        for request in [*self._new, *self._open]:
            if not request.finished:
                request.finish(error)

    def _started(self, jobs: list[_Job]) -> list[Request]:
        return [Request(job) for job in jobs if job.future.set_running_or_notify_cancel()]


class Worker:
    """Runs jobs one after the other, so that the model underneath has one user at a time."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # The garbage collector may submit what frees an adapter, while this very thread submits something else.
        self._lock = threading.RLock()
        # A job that was looked at and is not to be run yet, if any.
        self._held: list[_Job | None] = []
        self._closed = False
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"tinkertools-{name}", daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[], T]) -> LocalFuture[T]:
        """Run `run` after everything submitted before it."""
        return self._put(_Job(run, LocalFuture(self._thread)))

    def submit_shared(self, key: Hashable, item: Any, run: Callable[[Requests], None]) -> LocalFuture[Any]:
        """As `submit`, but `run` may take the jobs with an equal key that follow, also those that come while it runs.

        It finishes each by itself. What it raises fails those that it has taken and not finished.
        """
        return self._put(_Job(run, LocalFuture(self._thread), key, item))

    def close(self, *, cancel: bool = False) -> None:
        """Stop, after finishing what was submitted, or as soon as the running job sees it. Refuse what comes later."""
        if cancel:
            self._cancelled.set()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def check(self) -> None:
        """Called by long jobs between their parts.

        Raises:
            Closed: nobody waits for the result any more.
        """
        if self._cancelled.is_set():
            raise Closed("this ServiceClient was closed before the request was done")

    def _put(self, job: _Job) -> LocalFuture[Any]:
        with self._lock:
            if self._closed:
                raise Closed("this ServiceClient was closed", hint="make a new one")
            self._jobs.put(job)
        return job.future

    def next_of(self, key: Hashable) -> list[_Job]:
        """The jobs with that key at the head of the queue, taken out of it."""
        found: list[_Job] = []
        while True:
            try:
                job = self._held.pop() if self._held else self._jobs.get_nowait()
            except queue.Empty:
                return found
            if job is None or job.key != key:
                self._held.append(job)
                return found
            found.append(job)

    def _loop(self) -> None:
        while (job := self._held.pop() if self._held else self._jobs.get()) is not None:
            if job.key is None:
                self._run(job)
            else:
                self._run_shared(job)
            # While the next is waited for, nothing holds the clients that this one belongs to.
            del job

    def _run(self, job: _Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            self.check()
            result = job.run()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to who waits
            job.future.set_exception(as_sdk(error))
        else:
            job.future.set_result(result)

    def _run_shared(self, job: _Job) -> None:
        requests = Requests(self, job)
        try:
            self.check()
            job.run(requests)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            requests.fail(error)
        else:
            requests.fail(RuntimeError("a request was left without a result"))
