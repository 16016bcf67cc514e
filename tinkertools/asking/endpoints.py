"""What a question and a reply are, and what all that can be asked have in common."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        system: its task.
        text: what it is about.
    """

    system: str
    text: str


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: its words.
        cut: whether it was broken off before its end.
        tokens_in: what it read; None where it does not say.
        tokens_out: what it wrote.
    """

    text: str
    cut: bool
    tokens_in: int | None
    tokens_out: int | None


class Failed(Exception):
    """No reply to one question; another may get one."""


class Endpoint(Protocol):
    """Answers questions, several at once."""

    async def reply(self, question: Question) -> Reply:
        """The answer to a question.

        Raises:
            Failed: there was none, after what retries make sense.
            EngineError: there will be none to any question.
        """


class Nobody:
    """Stands where nothing is asked."""

    async def reply(self, question: Question) -> Reply:
        """See `Endpoint`."""
        raise Failed("it was not to be asked")
