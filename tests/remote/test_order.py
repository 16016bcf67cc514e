"""A step is sent behind its pass where a server keeps no order, and together with it elsewhere."""

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from tinkertools.errors import EngineError
from tinkertools.remote.download import Downloads
from tinkertools.remote.clients import TrainingClient
from tinkertools.remote.waiting import Waiter
from tinkertools.remote.wire import Wire


class Sdk:
    """Notes what it is asked, and whether the pass was done by then."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.passed: Future[str] = Future()

    def forward_backward(self, data: Any, loss_fn: str) -> Future[str]:
        self.asked.append("pass")
        return self.passed

    def optim_step(self, adam_params: Any) -> Future[str]:
        self.asked.append("step, the pass is done" if self.passed.done() else "step")
        step: Future[str] = Future()
        step.set_result("stepped")
        return step


def client_of(sdk: Sdk, *, keeps_order: bool) -> TrainingClient:
    waiter = Waiter(Wire("http://here"), "http://here", 60, lambda _: None)
    return TrainingClient(sdk, waiter, Downloads(None, "base", wanted=False), keeps_order=keeps_order)  # type: ignore[arg-type]


def test_together_where_order_is_kept() -> None:
    sdk = Sdk()
    client = client_of(sdk, keeps_order=True)
    client.forward_backward([], "cross_entropy")
    assert client.optim_step(None).result() == "stepped"
    assert sdk.asked == ["pass", "step"]


def test_one_behind_the_other_where_it_is_not() -> None:
    sdk = Sdk()
    client = client_of(sdk, keeps_order=False)
    client.forward_backward([], "cross_entropy")
    threading.Timer(0.05, lambda: sdk.passed.set_result("passed")).start()
    assert client.optim_step(None).result() == "stepped"
    assert sdk.asked == ["pass", "step, the pass is done"]


def test_no_step_behind_a_pass_that_failed() -> None:
    sdk = Sdk()
    client = client_of(sdk, keeps_order=False)
    failed = client.forward_backward([], "cross_entropy")
    sdk.passed.set_exception(RuntimeError("no memory"))
    step = client.optim_step(None)
    for asked in (failed, step):
        with pytest.raises(EngineError, match="no memory"):
            asked.result()
    assert sdk.asked == ["pass"]
