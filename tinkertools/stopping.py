"""Ctrl-C and SIGTERM: the first asks for a stop, the second leaves at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from tinkertools.reporting import Notify


class StoppedAtOnce(KeyboardInterrupt):
    """A signal that did not let the step in flight finish."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__()
        self.by = by


class StopRequest:
    """Whether Ctrl-C was pressed, or SIGTERM came, and which. After the first the steps in flight finish; a second
    leaves at once."""

    def __init__(self, notify: Notify) -> None:
        self.by: signal.Signals | None = None
        self._notify = notify

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.by is not None

    def __call__(self, number: int, *_: object) -> None:
        """Take the signal."""
        if self.requested:
            raise StoppedAtOnce(signal.Signals(number))
        self.by = signal.Signals(number)
        # A signal can come while a line is being written, which cannot be interrupted by another.
        with suppress(RuntimeError):
            self._notify("\nstopping: finishing the steps in flight and saving the state (Ctrl-C again leaves at once)")


@contextmanager
def stop_on_interrupt(notify: Notify) -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM ask for a stop instead of breaking off, while the block runs."""
    request = StopRequest(notify)
    with _handled(request, signal.SIGINT, signal.SIGTERM):
        yield request


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM breaks off as Ctrl-C does, while the block runs: what is half-done is cleared away."""

    def stop(number: int, *_: object) -> None:
        raise StoppedAtOnce(signal.Signals(number))

    with _handled(stop, signal.SIGTERM):
        yield


@contextmanager
def _handled(handler: Callable[..., None], *signals: signal.Signals) -> Iterator[None]:
    """Signals are given to `handler`; only the main thread may ask for them."""
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for one in signals:
                stack.callback(signal.signal, one, signal.signal(one, handler))
        yield
