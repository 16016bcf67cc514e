"""A step is sent behind its pass, and a pass behind its step, where a server keeps no order; together elsewhere."""

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from tinkertools.errors import EngineError
from tinkertools.remote.clients import TrainingClient
from tinkertools.remote.download import Downloads
from tinkertools.remote.waiting import Waiter
from tinkertools.remote.wire import Wire


class Sdk:
    """Notes what it is asked, and what was not done by then."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.passed: list[Future[Any]] = []
        self.stepped: list[Future[Any]] = []

    def forward_backward(self, data: Any, loss_fn: str, loss_fn_config: Any) -> Future[Any]:
        return self._ask("pass", self.passed, before=self.stepped)

    def optim_step(self, adam_params: Any) -> Future[Any]:
        return self._ask("step", self.stepped, before=self.passed)

    def _ask(self, what: str, asked: list[Future[Any]], before: list[Future[Any]]) -> Future[Any]:
        self.asked.append(what if all(future.done() for future in before) else f"{what} before the other is done")
        asked.append(Future())
        return asked[-1]


class Answer:
    """What a pass answers."""

    loss_fn_outputs: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.metrics = {"loss:sum": 1.0}


def client_of(sdk: Sdk, *, keeps_order: bool) -> TrainingClient:
    waiter = Waiter(Wire("http://here"), "http://here", 60, lambda _: None)
    return TrainingClient(sdk, waiter, Downloads(None, "base", wanted=False), keeps_order=keeps_order)  # type: ignore[arg-type]


def soon(futures: list[Future[Any]], result: Any) -> None:
    threading.Timer(0.05, lambda: futures[-1].set_result(result)).start()


def test_together_where_order_is_kept() -> None:
    sdk = Sdk()
    client = client_of(sdk, keeps_order=True)
    for _ in range(2):
        client.forward_backward([], "cross_entropy")
        client.optim_step(None)
    others = ["step before the other is done", "pass before the other is done", "step before the other is done"]
    assert sdk.asked == ["pass", *others]


def test_one_behind_the_other_where_it_is_not() -> None:
    sdk = Sdk()
    client = client_of(sdk, keeps_order=False)
    for _ in range(2):
        client.forward_backward([], "cross_entropy")
        soon(sdk.passed, Answer())
        step = client.optim_step(None)
        soon(sdk.stepped, "stepped")
    assert step.result() == "stepped"
    assert sdk.asked == ["pass", "step", "pass", "step"]


def test_no_step_behind_a_pass_that_failed() -> None:
    sdk = Sdk()
    client = client_of(sdk, keeps_order=False)
    failed = client.forward_backward([], "cross_entropy")
    sdk.passed[-1].set_exception(RuntimeError("no memory"))
    step = client.optim_step(None)
    for asked in (failed, step):
        with pytest.raises(EngineError, match="no memory"):
            asked.result()
    assert sdk.asked == ["pass"]


def test_no_pass_behind_a_step_that_failed() -> None:
    sdk = Sdk()
    client = client_of(sdk, keeps_order=False)
    failed = client.optim_step(None)
    sdk.stepped[-1].set_exception(RuntimeError("no memory"))
    for asked in (failed, client.forward_backward([], "cross_entropy")):
        with pytest.raises(EngineError, match="no memory"):
            asked.result()
    assert sdk.asked == ["step"]
