"""Ctrl-C, or other signals, that reach this process at a moment that a test chooses."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tinkertools import console
from tinkertools.reporting import Report
from tinkertools.runs.log import TrainingLog


def send(*signals: signal.Signals) -> None:
    """Have signals come to this process, one after the other."""
    for one in signals:
        os.kill(os.getpid(), one)


@contextmanager
def interrupted_at(step: int, *signals: signal.Signals) -> Iterator[None]:
    """Have signals come when a step of training is reported: a step that was sent already is in flight then.

    Args:
        step: its number; that it is evaluated too is no report of it.
        signals: what comes; Ctrl-C where none is given.
    """

    @contextmanager
    def progress(what: str, total: float | None, unit: str) -> Iterator[Report]:
        def report(done: float, note: str = "") -> None:
            if what == "train" and done == step and not note.startswith("held out"):
                send(*(signals or (signal.SIGINT,)))

        yield report

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(console, "progress", progress)
        yield


@contextmanager
def hearing(act: Callable[[str], None]) -> Iterator[None]:
    """Do something with each line that is said, once it is."""
    say = console.say

    def hear(text: str = "") -> None:
        say(text)
        act(text)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(console, "say", hear)
        yield


@contextmanager
def interrupted_in_stage(name: str, log: Path) -> Iterator[None]:
    """Have Ctrl-C come when a stage, which is a process of its own, has begun and its log holds a step."""

    def act(text: str) -> None:
        if text.startswith(f"[{name}] starting from"):
            while not TrainingLog.reopen(log, sys.maxsize).steps:
                time.sleep(0.01)
            send(signal.SIGINT)

    with hearing(act):
        yield
