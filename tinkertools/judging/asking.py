"""Asking a judge about many pairs, each in both orders; what cannot be read is asked once more."""

from collections.abc import Sequence

from tinkertools.asking.asker import Asker, Keeper, side_by_side
from tinkertools.asking.endpoints import Failed
from tinkertools.errors import without_secrets
from tinkertools.judging.verdicts import JudgeQuestion, Order, Pair, Side, Verdict, question, read
from tinkertools.reporting import Report

_SIDES: tuple[Side, Side] = ("ours", "theirs")


def settled(keeper: Keeper, asked: JudgeQuestion) -> bool:
    """Whether nothing need be asked for the verdict: it is kept, or could not be read in two replies."""
    reply = keeper.get(asked)
    if reply is None:
        return False
    return read(reply.text, asked.code)[0] != "none" or keeper.get(asked.again()) is not None


async def verdicts(asker: Asker, pairs: Sequence[Pair], report: Report) -> list[Verdict]:
    """The verdicts on pairs, in their order.

    Raises:
        EngineError: the judge cannot be asked at all.
    """
    done = 0

    async def judged(pair: Pair, first: Side) -> Order:
        nonlocal done
        order = await _order(asker, question(pair, first), first)
        done += 1
        report(done)
        return order

    sides = [sides_to_ask(pair) for pair in pairs]
    orders = iter(
        await side_by_side([judged(pair, first) for pair, asked in zip(pairs, sides, strict=True) for first in asked])
    )
    return [Verdict(tuple(next(orders) for _ in asked)) if asked else same() for asked in sides]


async def _order(asker: Asker, asked: JudgeQuestion, first: Side) -> Order:
    """The verdict on a pair in one order. What cannot be read is asked once more."""
    try:
        for again in (asked, asked.again()):
            reply = await asker.reply(again)
            verdict, reason = read(reply.text, asked.code)
            if reply.cut and verdict == "none":
                reason = f"cut off; {reason}"
            if verdict != "none":
                break
    except Failed as error:
        return Order(first, "none", without_secrets(f"the judge gave no answer: {error}"))
    return Order(first, verdict, reason)


def sides_to_ask(pair: Pair) -> tuple[Side, ...]:
    """Whose answer stands first in each question about a pair; equal answers are not asked about."""
    return () if pair.ours == pair.theirs else _SIDES


def same() -> Verdict:
    """The verdict on equal answers."""
    return Verdict(tuple(Order(first, "tie", "the answers are the same") for first in _SIDES))
