"""Asking a model many questions: several at once, not too many a minute, nothing twice; a failure is not all."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from tinkertools.asking.costs import TokenPrice
from tinkertools.asking.endpoints import Endpoint, Failed, Question, Reply
from tinkertools.errors import TinkertoolsError, UsageError, without_secrets
from tinkertools.kept import Kept, key_of

T = TypeVar("T")

# Questions on their way at once: what every service allows.
AT_ONCE = 8

# A token of ordinary text has about so many bytes.
_BYTES_A_TOKEN = 4
# After so many failures in a row the model is taken to be gone, and what is left is not asked.
_GONE_AFTER = 10


@dataclass
class Pace:
    """Lets a request go at most so many times a minute, evenly; None lets all go at once.

    Attributes:
        per_minute: how many.
        now: tells the time, in seconds.
        sleep: waits for so many seconds.
    """

    per_minute: int | None
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _next: float | None = None

    async def turn(self) -> None:
        """Wait for one's turn; turns are given in the order in which they are asked for."""
        if self.per_minute is None:
            return
        now = self.now()
        mine = now if self._next is None else max(now, self._next)
        self._next = mine + 60 / self.per_minute
        if mine > now:
            await self.sleep(mine - now)


def check_bounds(bounds: dict[str, int | None]) -> None:
    """Refuse options, by name, that let nothing be asked; None is no bound.

    Raises:
        UsageError: one is less than one.
    """
    for name, bound in bounds.items():
        if bound is not None and bound < 1:
            raise UsageError(f"{name} is {bound}, but must be at least 1", hint=f"{name} {AT_ONCE}")


def tokens_of(questions: Sequence[Question]) -> int:
    """About how many tokens a model reads in questions."""
    return sum(len(one.system.encode()) + len(one.text.encode()) for one in questions) // _BYTES_A_TOKEN


@dataclass
class Tally:
    """What was asked and what it took; `unmetered` counts the replies of which nobody said how many tokens they are."""

    asked: int = 0
    kept: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0

    def add(self, reply: Reply) -> None:
        """Count a reply that was paid for now."""
        self.asked += 1
        if reply.tokens_in is None or reply.tokens_out is None:
            self.unmetered += 1
        self.tokens_in += reply.tokens_in or 0
        self.tokens_out += reply.tokens_out or 0

    def words(self, price: TokenPrice | None = None) -> str:
        """What it took, in a line."""
        parts = [f"{self.asked:,} questions asked"]
        if self.kept:
            parts.append(f"{self.kept:,} answers taken from the file")
        if self.failed:
            parts.append(f"{self.failed:,} without an answer")
        parts.append(f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out")
        if self.unmetered:
            parts.append(f"{self.unmetered:,} answers did not say their tokens")
        if price is not None:
            parts.append(f"${price.of(self.tokens_in, self.tokens_out):,.4f}")
        return "; ".join(parts)


class Keeper:
    """The replies of one model in a file, found by who was asked, how, and exactly what."""

    def __init__(self, kept: Kept, identity: dict[str, Any]) -> None:
        self._kept = kept
        self._identity = identity

    def get(self, asked: Question) -> Reply | None:
        """The reply that was given; None where there was none, or what stands there is none."""
        value: Any = self._kept.get(self._key(asked))
        try:
            reply = Reply(**value)
        except TypeError:
            return None
        return reply if isinstance(reply.text, str) else None

    def put(self, asked: Question, reply: Reply) -> None:
        """Keep a reply; what it may repeat of a key is blacked out."""
        self._kept.put(self._key(asked), asdict(reply) | {"text": without_secrets(reply.text)})

    def _key(self, asked: Question) -> str:
        return key_of(self._identity, asked.system, asked.text)


@dataclass
class Asker:
    """Asks one model.

    Attributes:
        endpoint: the model.
        keeper: of its replies.
        at_once: how many questions are on their way at most.
        pace: how fast they go.
    """

    endpoint: Endpoint
    keeper: Keeper
    at_once: int
    pace: Pace
    tally: Tally = field(default_factory=Tally)
    _failures_in_a_row: int = 0
    _last_failure: str = ""
    _refusal: TinkertoolsError | None = None

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.at_once)
        self._asked: dict[Question, asyncio.Task[Reply]] = {}

    async def reply(self, asked: Question) -> Reply:
        """The reply to a question, which equal questions share.

        Raises:
            Failed: there was none.
            EngineError: the model cannot be asked at all.
        """
        task = self._asked.get(asked)
        if task is None:
            task = self._asked[asked] = asyncio.create_task(self._reply(asked))
        return await task

    async def _reply(self, asked: Question) -> Reply:
        if (known := self.keeper.get(asked)) is not None:
            self.tally.kept += 1
            return known
        async with self._free:
            self._refuse_if_gone()
            await self.pace.turn()
            self._refuse_if_gone()  # others may have failed meanwhile
            try:
                reply = await self.endpoint.reply(asked)
            except Failed as error:
                self.tally.failed += 1
                self._failures_in_a_row += 1
                self._last_failure = str(error)
                raise
            except TinkertoolsError as error:
                self._refusal = error
                raise
            self._failures_in_a_row = 0
        self.keeper.put(asked, reply)
        self.tally.add(reply)
        return reply

    def _refuse_if_gone(self) -> None:
        """Send nothing more to a model that refused for good, or that has not answered for long."""
        if self._refusal is not None:
            raise self._refusal
        if self._failures_in_a_row >= _GONE_AFTER:
            self.tally.failed += 1
            raise Failed(f"not asked after {self._failures_in_a_row} failures in a row, the last: {self._last_failure}")


async def side_by_side(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What coroutines return, in their order, run side by side. The first error ends them all, and is raised.

    Raises:
        TinkertoolsError: as one of them does.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        first = _first(errors)
        raise first from first.__cause__
    return [task.result() for task in tasks]


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of several errors: they are mostly the same, of requests that were on their way together."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
