"""A model as judge of two answers to the same prompt.

Each pair is shown in both orders, and only what the judge says in both of them counts (`verdicts`). What is asked about
a pair, and again, is in `asking`; the judge itself is a model like others that `tinkertools.asking` asks.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tinkertools.asking.asker import AT_ONCE, Asker, Keeper, Pace, Tally, check_bounds, tokens_of
from tinkertools.asking.costs import TokenPrice
from tinkertools.asking.endpoints import Endpoint, Nobody
from tinkertools.asking.models import AskedModel
from tinkertools.asking.opening import open_endpoint
from tinkertools.files import check_writable_file
from tinkertools.judging.asking import settled, sides_to_ask, verdicts
from tinkertools.judging.verdicts import JudgeQuestion, Order, Pair, Verdict, count, question
from tinkertools.kept import Kept
from tinkertools.reporting import Notify, ProgressMaker

__all__ = ["Judged", "Order", "Pair", "Verdict", "count", "judge"]


@dataclass(frozen=True)
class Judged:
    """What a judge said, and what it took.

    Attributes:
        verdicts: on each pair, in order.
        tally: the questions asked now, those answered from the file, and the tokens of those asked now.
    """

    verdicts: list[Verdict]
    tally: Tally

    def words(self, price: TokenPrice | None = None) -> str:
        """What it took, in a line."""
        return self.tally.words(price)


def judge(
    pairs: Sequence[Pair],
    model: AskedModel,
    kept: Path,
    *,
    at_once: int = AT_ONCE,
    per_minute: int | None = None,
    price: TokenPrice | None = None,
    progress: ProgressMaker,
    notify: Notify,
    timeout: float,
    pace: Pace | None = None,
) -> Judged:
    """Have a model judge pairs of answers. Replies are kept as they come; those that are kept are not asked for again.

    A question without an answer leaves its pair undecided, and is asked again by the next call.

    Args:
        pairs: what is judged.
        model: the judge.
        kept: the file of its replies, of which it may hold other judges' as well.
        at_once: questions on their way at most.
        per_minute: questions a minute at most.
        price: of the judge's tokens, for what is said of the costs.
        progress: makes the display of the work.
        notify: is told how much will be asked, and what is waited for.
        timeout: seconds that an answer may take, with all that is asked again for it.
        pace: how fast questions go, in place of `per_minute`.

    Raises:
        UsageError: a bound is less than one.
        EngineError: the judge refuses the key, or does not know the model.
        FileError: replies cannot be kept.
    """
    check_bounds({"--judge-at-once": at_once, "--judge-rate": per_minute})
    check_writable_file(kept)
    with Kept(kept) as file:
        keeper = Keeper(file, model.identity())
        asked = [question(pair, first) for pair in pairs for first in sides_to_ask(pair)]
        new = [one for one in dict.fromkeys(asked) if not settled(keeper, one)]
        notify(_announcement(model, len(pairs), len(asked), new, price))
        # A judge that need not be asked need not be there.
        opened = open_endpoint(model, notify, timeout) if new else nullcontext(Nobody())
        return asyncio.run(_judged(pairs, opened, keeper, at_once, pace or Pace(per_minute), len(asked), progress))


def _announcement(
    model: AskedModel, pairs: int, questions: int, new: Sequence[JudgeQuestion], price: TokenPrice | None
) -> str:
    """How much will be asked, before it is."""
    tokens = tokens_of(new)
    text = f"judge {model.name}: {pairs:,} pairs, {questions:,} questions, of which {len(new):,} are to be asked"
    if new:
        text += f", about {tokens:,} tokens to read"
    if new and price is not None:
        text += f" for about ${price.of(tokens, 0):,.2f}, and what it writes"
    return text


async def _judged(
    pairs: Sequence[Pair],
    opened: AbstractAsyncContextManager[Endpoint],
    keeper: Keeper,
    at_once: int,
    pace: Pace,
    questions: int,
    progress: ProgressMaker,
) -> Judged:
    async with opened as endpoint:
        asker = Asker(endpoint, keeper, at_once, pace)
        with progress("judge", questions, "questions") as report:
            return Judged(await verdicts(asker, pairs, report), asker.tally)
