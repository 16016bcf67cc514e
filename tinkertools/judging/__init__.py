"""A model as judge of two answers to the same prompt.

Each pair is shown in both orders, and only what the judge says in both of them counts (`verdicts`). Who is asked is in
`endpoints`, how many are asked at once, how fast and how often in `asking`, what it costs in `costs`.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tinkertools.errors import UsageError
from tinkertools.files import check_writable_file
from tinkertools.judging.asking import Asker, Keeper, Pace, Tally, sides_to_ask
from tinkertools.judging.costs import JudgePrice, parse_price
from tinkertools.judging.endpoints import Endpoint, JudgeModel, Nobody, open_endpoint, parse_judge
from tinkertools.judging.verdicts import Order, Pair, Question, Verdict, count, question
from tinkertools.kept import Kept
from tinkertools.reporting import Notify, ProgressMaker

__all__ = [
    "AT_ONCE", "JudgeModel", "JudgePrice", "Judged", "Order", "Pair", "Tally", "Verdict", "count", "judge",
    "parse_judge", "parse_price",
]  # fmt: skip

# Questions on their way at once: what every service allows.
AT_ONCE = 8

# A token of ordinary text has about so many bytes.
_BYTES_A_TOKEN = 4


@dataclass(frozen=True)
class Judged:
    """What a judge said, and what it took.

    Attributes:
        verdicts: on each pair, in order.
        tally: the questions asked now, those answered from the file, and the tokens of those asked now.
    """

    verdicts: list[Verdict]
    tally: Tally

    def words(self, price: JudgePrice | None = None) -> str:
        """What it took, in a line."""
        tally = self.tally
        parts = [f"{tally.asked:,} questions asked", f"{tally.kept:,} answers taken from the file"]
        if tally.failed:
            parts.append(f"{tally.failed:,} without an answer")
        parts.append(f"{tally.tokens_in:,} tokens in, {tally.tokens_out:,} out")
        if tally.unmetered:
            parts.append(f"{tally.unmetered:,} answers did not say their tokens")
        if price is not None:
            parts.append(f"${price.of(tally.tokens_in, tally.tokens_out):,.4f}")
        return "; ".join(parts)


def judge(
    pairs: Sequence[Pair],
    model: JudgeModel,
    kept: Path,
    *,
    at_once: int = AT_ONCE,
    per_minute: int | None = None,
    price: JudgePrice | None = None,
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
    for name, bound in (("--judge-at-once", at_once), ("--judge-rate", per_minute)):
        if bound is not None and bound < 1:
            raise UsageError(f"{name} is {bound}, but must be at least 1", hint=f"{name} {AT_ONCE}")
    check_writable_file(kept)
    with Kept(kept) as file:
        keeper = Keeper(file, model.identity())
        asked = [question(pair, first) for pair in pairs for first in sides_to_ask(pair)]
        new = [one for one in dict.fromkeys(asked) if not keeper.settles(one)]
        notify(_announcement(model, len(pairs), len(asked), new, price))
        # A judge that need not be asked need not be there.
        opened = open_endpoint(model, notify, timeout) if new else nullcontext(Nobody())
        return asyncio.run(_judged(pairs, opened, keeper, at_once, pace or Pace(per_minute), len(asked), progress))


def _announcement(
    model: JudgeModel, pairs: int, questions: int, new: Sequence[Question], price: JudgePrice | None
) -> str:
    """How much will be asked, before it is."""
    tokens = sum(len(one.system.encode()) + len(one.text.encode()) for one in new) // _BYTES_A_TOKEN
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
            verdicts = await asker.verdicts(pairs, report)
    return Judged(verdicts, asker.tally)
