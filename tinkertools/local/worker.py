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

# Requests of one kind that arrive within this time of each other are computed together.
_COLLECT_SECONDS = 0.01
_GROUP_LIMIT = 64


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
    """A group key (None: runs alone) and an item, which `run` takes together with those of equal jobs after it."""

    key: Hashable | None
    item: Any
    run: Callable[[list[Any]], list[Any]]
    future: LocalFuture[Any]


class Worker:
    """Runs jobs one after the other, so that the model underneath has one user at a time."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # The garbage collector may submit what frees an adapter, while this very thread submits something else.
        self._lock = threading.RLock()
        self._closed = False
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"tinkertools-{name}", daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[], T]) -> LocalFuture[T]:
        """Run `run` after everything submitted before it."""
        return self._put(_Job(None, None, lambda _: [run()], LocalFuture(self._thread)))

    def submit_grouped(self, key: Hashable, item: Any, run: Callable[[list[Any]], list[Any]]) -> LocalFuture[Any]:
        """As `submit`, but jobs with an equal key that follow each other are run by one call of `run` on their items.

        `run` returns one result an item; an exception among them fails that item alone.
        """
        return self._put(_Job(key, item, run, LocalFuture(self._thread)))

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

    def _loop(self) -> None:
        job = self._jobs.get()
        while job is not None:
            group = [job]
            job = self._collect(group)
            self._run(group)
            if job is _NOTHING:
                job = self._jobs.get()

    def _collect(self, group: list[_Job]) -> _Job | None:
        """Move the jobs that belong to the group into it; return the first that does not, or `_NOTHING`."""
        if group[0].key is None:
            return _NOTHING
        while len(group) < _GROUP_LIMIT:
            try:
                job = self._jobs.get(timeout=_COLLECT_SECONDS)
            except queue.Empty:
                return _NOTHING
            if job is None or job.key != group[0].key:
                return job
            group.append(job)
        return _NOTHING

    def _run(self, group: list[_Job]) -> None:
        group = [job for job in group if job.future.set_running_or_notify_cancel()]
        if not group:
            return
        try:
            self.check()
            results = group[0].run([job.item for job in group])
            if len(results) != len(group):
                raise RuntimeError(f"{len(group)} requests got {len(results)} results")
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            results = [error] * len(group)
        for job, result in zip(group, results, strict=True):
            if isinstance(result, BaseException):
                job.future.set_exception(as_sdk(result))
            else:
                job.future.set_result(result)


_NOTHING = _Job(None, None, lambda _: [], LocalFuture())
