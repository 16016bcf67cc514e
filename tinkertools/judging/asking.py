"""Asking a judge about many pairs: several at once, not too many a minute, nothing twice; a failure is not all."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tinkertools.errors import TinkertoolsError, without_secrets
from tinkertools.judging.endpoints import Endpoint, Failed, Reply
from tinkertools.judging.verdicts import Order, Pair, Question, Side, Verdict, question, read
from tinkertools.kept import Kept, key_of
from tinkertools.reporting import Report

# After so many failures in a row the judge is taken to be gone, and what is left is not asked.
_GONE_AFTER = 10
_SIDES: tuple[Side, Side] = ("ours", "theirs")


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


class Keeper:
    """The replies of one judge in a file, found by who was asked, how, and exactly what."""

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

    def settles(self, asked: Question) -> bool:
        """Whether nothing need be asked for the verdict: it is there, or could not be read in two replies."""
        reply = self.get(asked)
        if reply is None:
            return False
        return read(reply.text, asked.code)[0] != "none" or self.get(asked.again()) is not None

    def put(self, asked: Question, reply: Reply) -> None:
        """Keep a reply; what it may repeat of a key is blacked out."""
        self._kept.put(self._key(asked), asdict(reply) | {"text": without_secrets(reply.text)})

    def _key(self, asked: Question) -> str:
        return key_of(self._identity, asked.system, asked.text)


@dataclass
class Asker:
    """Asks one judge.

    Attributes:
        endpoint: the judge.
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

    async def verdicts(self, pairs: Sequence[Pair], report: Report) -> list[Verdict]:
        """The verdicts on pairs, in their order.

        Raises:
            EngineError: the judge cannot be asked at all.
        """
        done = 0

        async def judged(pair: Pair, first: Side) -> Order:
            nonlocal done
            order = await self._order(question(pair, first), first)
            done += 1
            report(done)
            return order

        tasks: list[list[asyncio.Task[Order]]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for pair in pairs:
                    tasks.append([group.create_task(judged(pair, first)) for first in sides_to_ask(pair)])
        except BaseExceptionGroup as errors:
            first = _first(errors)
            raise first from first.__cause__
        return [Verdict(tuple(task.result() for task in orders)) if orders else same() for orders in tasks]

    async def _order(self, asked: Question, first: Side) -> Order:
        """The verdict on a pair in one order. What cannot be read is asked once more."""
        try:
            for again in (asked, asked.again()):
                reply = await self._reply_once(again)
                verdict, reason = read(reply.text, asked.code)
                if reply.cut and verdict == "none":
                    reason = f"cut off; {reason}"
                if verdict != "none":
                    break
        except Failed as error:
            return Order(first, "none", without_secrets(f"the judge gave no answer: {error}"))
        return Order(first, verdict, reason)

    async def _reply_once(self, asked: Question) -> Reply:
        """The reply to a question, which equal pairs share."""
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
        """Send nothing more to a judge that refused for good, or that has not answered for long."""
        if self._refusal is not None:
            raise self._refusal
        if self._failures_in_a_row >= _GONE_AFTER:
            self.tally.failed += 1
            raise Failed(f"not asked after {self._failures_in_a_row} failures in a row, the last: {self._last_failure}")


def sides_to_ask(pair: Pair) -> tuple[Side, ...]:
    """Whose answer stands first in each question about a pair; equal answers are not asked about."""
    return () if pair.ours == pair.theirs else _SIDES


def same() -> Verdict:
    """The verdict on equal answers."""
    return Verdict(tuple(Order(first, "tie", "the answers are the same") for first in _SIDES))


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of several errors: they are mostly the same, of requests that were on their way together."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
