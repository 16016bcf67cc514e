"""Waits for a server: they speak, they end, and they give back what came."""

import threading
import time
from concurrent.futures import Future

import pytest

from tinkertools.errors import EngineError, ServerTimeoutError
from tinkertools.remote import waiting
from tinkertools.remote.clients import Pending
from tinkertools.remote.waiting import Waiter, settled, standard
from tinkertools.remote.wire import Wire

URL = "http://127.0.0.1:1"


def waiter(said: list[str], limit: float = 60.0) -> Waiter:
    return Waiter(Wire(URL), URL, limit, said.append)


def test_a_result_that_is_there_needs_no_words() -> None:
    said: list[str] = []
    future: Future[int] = Future()
    future.set_result(7)
    assert waiter(said).result(future, "optim_step", time.monotonic()) == 7
    assert said == []


def test_a_wait_says_what_for_how_long_and_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_WORD", 0.0)
    said: list[str] = []
    future: Future[int] = Future()
    threading.Timer(0.05, future.set_result, [7]).start()
    assert waiter(said).result(future, "optim_step", time.monotonic()) == 7
    assert said == [
        f"waiting for optim_step of {URL} for 0 s (gives up after 60 s); the last word: it has not answered yet"
    ]


def test_a_wait_ends_with_the_last_word() -> None:
    with pytest.raises(ServerTimeoutError, match=r"did not do optim_step in 0 s; its last word: it has not") as caught:
        waiter([], limit=0.01).result(Future(), "optim_step", time.monotonic())
    assert "--timeout" in str(caught.value.hint)


def test_the_time_counts_from_when_it_was_sent() -> None:
    with pytest.raises(ServerTimeoutError):
        waiter([], limit=100).result(Future(), "optim_step", time.monotonic() - 200)


def test_errors_in_a_row_end_an_impatient_wait() -> None:
    impatient = waiter([])
    impatient.refuse_after = 2
    impatient.wire.server_errors = 2
    with pytest.raises(ServerTimeoutError, match="does not do forward"):
        impatient.result(Future(), "forward", time.monotonic())


def test_a_call_that_blocks_can_be_given_up() -> None:
    never = threading.Event()
    with pytest.raises(ServerTimeoutError):
        waiter([], limit=0.01).call(never.wait, "the first contact")
    never.set()
    assert waiter([]).call(lambda: 3, "the first contact") == 3
    with pytest.raises(ZeroDivisionError):
        waiter([]).call(lambda: 1 // 0, "the first contact")


def test_a_timeout_that_the_sdk_raises_is_an_error_and_no_wait() -> None:
    future: Future[int] = Future()
    future.set_exception(TimeoutError("of the SDK"))
    with pytest.raises(EngineError, match=r"optim_step on http.* failed: of the SDK"):
        Pending(waiter([]), future, "optim_step", time.monotonic()).result()


def test_versions_return_things_or_futures_of_them() -> None:
    class Its:
        def __init__(self, inner: Future[int]) -> None:
            self._inner = inner

        def future(self) -> Future[int]:
            return self._inner

        def result(self, _seconds: float | None = None) -> int:
            return self._inner.result()

    inner: Future[int] = Future()
    inner.set_result(3)
    assert standard(inner) is inner
    assert standard(Its(inner)) is inner
    assert settled(Its(inner)) == 3
    thing = object()
    assert settled(thing) is thing
