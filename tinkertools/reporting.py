"""What long work reports to, as it is handed to those who do the work: only the command line and its commands print."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


class Report(Protocol):
    """Told how far some work is."""

    def __call__(self, done: float, note: str = "") -> None:
        """Say how far the work is (in units of its total), and a few words on it."""


# Makes the display of some work: what, how much there is in all (None where nobody knows), and what is counted.
ProgressMaker = Callable[[str, float | None, str], AbstractContextManager[Report]]

# Told a line of words: what is waited for, or what went another way.
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Voice:
    """How a command speaks: what is done, what the user should know, what is waited for, and how far the work is."""

    say: Notify
    warn: Notify
    waiting: Notify
    progress: ProgressMaker
