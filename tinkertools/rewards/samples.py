"""What is rewarded, and what a reward says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self


@dataclass(frozen=True)
class Sample:
    """An answer to be rewarded.

    Attributes:
        messages: the prompt, as chat messages.
        answer: the model's text.
        reference: the data's own answer, where there is one.
        metadata: other columns of the row, such as `tests`.
        finished: False where the answer was cut at `--max-tokens`.
    """

    messages: list[dict[str, Any]]
    answer: str
    reference: str | None
    metadata: Mapping[str, Any]
    finished: bool


@dataclass(frozen=True)
class Rewarded:
    """What an answer is worth; the value is None where that could not be said, and `error` then says why, in a line."""

    value: float | None
    error: str | None = None


# What a reward model says of answers, in their order.
Scorer = Callable[[Sequence[Sample]], list[float]]


class Reward(Protocol):
    """Says what answers are worth; for a `with` block.

    Attributes:
        name: as `--reward` takes it.
    """

    name: str

    def __call__(self, samples: Sequence[Sample]) -> list[Rewarded]:
        """What each of the answers is worth, in their order. A bad sample has an error, and raises none."""
        ...

    def close(self) -> None:
        """End all that runs for it."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Closing:
    """A `with` block that calls `close`."""

    def close(self) -> None:
        """End all that runs for it: nothing does, unless a class says otherwise."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
