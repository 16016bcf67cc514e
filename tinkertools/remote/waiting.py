"""Waiting for a server: never without a word, and never without an end."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from tinkertools.errors import ServerTimeoutError
from tinkertools.remote.wire import Wire
from tinkertools.reporting import Notify

T = TypeVar("T")

# Seconds until the first word on a wait, and between words after it.
FIRST_WORD = 5.0
_NEXT_WORD = 10.0
# How long a wait is at most before it looks whether there is something to say.
_TICK = 1.0


@dataclass
class Waiter:
    """Waits for one server.

    Attributes:
        wire: knows what the server said last.
        server: its address, for messages.
        limit: seconds that a request may take.
        notify: is told what is waited for.
        refuse_after: gives up as soon as so many answers in a row were errors of the server; None never does.
    """

    wire: Wire
    server: str
    limit: float
    notify: Notify
    refuse_after: int | None = None

    def result(self, future: "Future[T]", what: str, started: float, limit: float | None = None) -> T:
        """The result of a request.

        Args:
            future: the request.
            what: it in words, as `optim_step`.
            started: when it was sent, by `time.monotonic`.
            limit: seconds it may take since then, where other than usual.

        Raises:
            ServerTimeoutError: there was none in time.
            Exception: what the SDK raised.
        """
        limit = self.limit if limit is None else limit
        began = time.monotonic()
        next_word = began + FIRST_WORD
        while True:
            now = time.monotonic()
            left = started + limit - now
            done, _ = wait([future], timeout=max(0.0, min(_TICK, left, next_word - now)))
            if done:
                return future.result()
            now = time.monotonic()
            if self.refuse_after is not None and self.wire.server_errors >= self.refuse_after:
                raise ServerTimeoutError(f"{self.server} does not do {what}: {self.wire.last_word}")
            if now >= started + limit:
                raise ServerTimeoutError(
                    f"{self.server} did not do {what} in {limit:.0f} s; its last word: {self.wire.last_word}",
                    hint="see whether the server is well (tt inspect-api), or give it longer: --timeout SECONDS",
                )
            if now >= next_word:
                next_word = now + _NEXT_WORD
                self.notify(
                    f"waiting for {what} of {self.server} for {now - began:.0f} s (gives up after {limit:.0f} s); "
                    f"the last word: {self.wire.last_word}"
                )

    def call(self, function: Callable[[], T], what: str, limit: float | None = None) -> T:
        """The result of a call that blocks, made on a thread of its own so that it can be given up."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it is raised again where the result is asked for
                future.set_exception(error)

        threading.Thread(target=run, daemon=True, name=f"tt {what}").start()
        return self.result(future, what, time.monotonic(), limit)


def settled(made: Any, seconds: float | None = None) -> Any:
    """What the SDK returned, where some versions return a future of it and others the thing itself."""
    return made.result(seconds) if hasattr(made, "result") else made


def standard(future: Any) -> "Future[Any]":
    """The standard future in one of the SDK's, or the one that it is."""
    return future if isinstance(future, Future) else future.future()
