"""Asking a model for pairs about every part of every document, keeping its replies, and counting what became of all."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tinkertools.asking.asker import Asker, Keeper, Pace, Tally, check_bounds, side_by_side, tokens_of
from tinkertools.asking.costs import TokenPrice
from tinkertools.asking.endpoints import Endpoint, Failed, Nobody, Reply
from tinkertools.asking.models import AskedModel
from tinkertools.asking.opening import open_endpoint
from tinkertools.chat.sources import Malformed, RawRow
from tinkertools.errors import DataError, without_secrets
from tinkertools.files import check_writable_file
from tinkertools.generating.documents import Document, Documents, Unread, cut, spread
from tinkertools.generating.questions import PartQuestion, Read, part_question, read_pairs, ungrounded
from tinkertools.generating.repeats import Repeats
from tinkertools.kept import Kept
from tinkertools.reporting import Notify, ProgressMaker

# Most tokens of a reply on our own engines: enough for some ten pairs.
ENGINE_TOKENS = 2048

# A pair has about so many tokens, for what is said of the costs before.
_TOKENS_A_PAIR = 80
# So much of a reply that cannot be read is shown.
_SHOWN = 120


@dataclass(frozen=True)
class Part:
    """A part of a document that is asked about.

    Attributes:
        document: its number among all documents.
        number: its own in the document, from 1.
        of: how many the document has.
        line: where it begins, from 1.
        text: what it says.
        asked: the question about it.
    """

    document: int
    number: int
    of: int
    line: int
    text: str
    asked: PartQuestion


@dataclass
class PairCounts:
    """What became of documents and pairs.

    `documents = used + empty + unreadable + failed`; `returned = kept + ungrounded + malformed + duplicates`.
    A document of which a part has no reply that can be read is a failed one; `cut` replies gave their whole pairs.
    """

    documents: int = 0
    used: int = 0
    empty: int = 0
    unreadable: int = 0
    failed: int = 0
    returned: int = 0
    kept: int = 0
    ungrounded: Counter[str] = field(default_factory=Counter)
    malformed: int = 0
    duplicates: int = 0
    cut: int = 0

    def words(self) -> list[str]:
        """The counts, in two lines; what was read and returned is the sum of what follows."""
        refused = self.ungrounded.total()
        reasons = (
            f" ({', '.join(f'{n:,} {reason}' for reason, n in sorted(self.ungrounded.items()))})" if refused else ""
        )
        pairs = (
            f"pairs returned: {self.returned:,} = {self.kept:,} kept + {refused:,} ungrounded{reasons} "
            f"+ {self.malformed:,} malformed + {self.duplicates:,} duplicates"
        )
        if self.cut:
            pairs += f"; {self.cut:,} replies broke off, and their whole pairs are counted here"
        return [
            f"documents read: {self.documents:,} = {self.used:,} used + {self.empty:,} empty "
            f"+ {self.unreadable:,} unreadable + {self.failed:,} failed",
            pairs,
        ]


@dataclass
class Made:
    """What was made of documents.

    Attributes:
        rows: the pairs as conversations, each at its part's place, in the documents' order.
        failed: documents that have no pairs, or not all, each at its place with the reason.
        counts: what became of documents and pairs.
        tally: the questions asked now, those answered from the file, and the tokens of those asked now.
    """

    rows: list[RawRow] = field(default_factory=list)
    failed: list[RawRow] = field(default_factory=list)
    counts: PairCounts = field(default_factory=PairCounts)
    tally: Tally = field(default_factory=Tally)


def make_pairs(
    documents: Documents,
    model: AskedModel,
    kept: Path,
    *,
    pairs_per_document: int,
    at_once: int,
    per_minute: int | None,
    price: TokenPrice | None,
    progress: ProgressMaker,
    notify: Notify,
    timeout: float,
) -> Made:
    """Have a model write pairs about documents. Replies are kept as they come; what is kept is not asked for again.

    A part without a reply fails its document, and is asked about again by the next call.

    Args:
        documents: what is asked about.
        model: who is asked.
        kept: the file of the replies, of which it may hold other models' as well.
        pairs_per_document: how many to ask for, over all parts of a document.
        at_once: questions on their way at most.
        per_minute: questions a minute at most.
        price: of the model's tokens, for what is said of the costs.
        progress: makes the display of the work.
        notify: is told how much will be asked, and what is waited for.
        timeout: seconds that an answer may take, with all that is asked again for it.

    Raises:
        UsageError: a bound is less than one.
        EngineError: the model's server refuses the key, or does not have the model.
        FileError: replies cannot be kept.
    """
    check_bounds(
        {"--pairs-per-document": pairs_per_document, "--generator-at-once": at_once, "--generator-rate": per_minute}
    )
    check_writable_file(kept)
    parts = [part for i, document in enumerate(documents.found) for part in _parts(i, document, pairs_per_document)]
    with Kept(kept) as file:
        keeper = Keeper(file, model.identity())
        new = [one for one in dict.fromkeys(part.asked for part in parts) if not _settled(keeper, one)]
        wanted = pairs_per_document * len(documents.found)
        notify(_announcement(model, len(documents.found), len(parts), wanted, new, price))
        # A model that need not be asked need not be there.
        opened = open_endpoint(model, notify, timeout) if new else nullcontext(Nobody())
        replies, tally = asyncio.run(_replies(parts, opened, keeper, at_once, Pace(per_minute), progress))
    return _counted(documents, parts, replies, tally, model.name)


def _parts(number: int, document: Document, pairs: int) -> list[Part]:
    """The parts of a document that are asked about, and how many pairs of each are wanted."""
    texts = cut(document.text)
    filled = [i for i, text in enumerate(texts) if text.strip()]
    wanted = dict(zip(filled, spread(pairs, len(filled)), strict=True))
    parts, line = [], 1
    for i, text in enumerate(texts):
        if wanted.get(i):
            asked = part_question(document.name, text, wanted[i])
            parts.append(Part(number, i + 1, len(texts), line, text, asked))
        line += text.count("\n")
    return parts


def _settled(keeper: Keeper, asked: PartQuestion) -> bool:
    """Whether nothing need be asked: the pairs are kept, or could not be read in two replies."""
    reply = keeper.get(asked)
    return reply is not None and (read_pairs(reply.text) is not None or keeper.get(asked.again()) is not None)


def _announcement(
    model: AskedModel, documents: int, parts: int, pairs: int, new: Sequence[PartQuestion], price: TokenPrice | None
) -> str:
    """How much will be asked, before it is."""
    text = (
        f"generator {model.name}: {documents:,} documents, {parts:,} parts, of which {len(new):,} are to be asked about"
    )
    if new:
        read, written = tokens_of(new), pairs * len(new) // max(1, parts) * _TOKENS_A_PAIR
        text += f", about {read:,} tokens to read and {written:,} to write"
        if price is not None:
            text += f" for about ${price.of(read, written):,.2f}"
    return text


async def _replies(
    parts: Sequence[Part],
    opened: AbstractAsyncContextManager[Endpoint],
    keeper: Keeper,
    at_once: int,
    pace: Pace,
    progress: ProgressMaker,
) -> tuple[list[Read | str], Tally]:
    """For each part what its reply holds, or why there is none; and what it took."""
    async with opened as endpoint:
        asker = Asker(endpoint, keeper, at_once, pace)
        done = 0
        with progress("generate", len(parts), "parts") as report:

            async def read(part: Part) -> Read | str:
                nonlocal done
                found = await _reply(asker, part.asked)
                done += 1
                report(done)
                return found

            return await side_by_side([read(part) for part in parts]), asker.tally


async def _reply(asker: Asker, asked: PartQuestion) -> Read | str:
    """What a reply holds, or why there is none. What cannot be read is asked once more."""
    reply = Reply("", False, None, None)
    try:
        for again in (asked, asked.again()):
            reply = await asker.reply(again)
            if (found := read_pairs(reply.text)) is not None:
                return found
    except Failed as error:
        return without_secrets(f"the model gave no answer: {error}")
    shown = without_secrets(" ".join(reply.text.split()))
    said = f"{shown[:_SHOWN]}…" if len(shown) > _SHOWN else shown or "nothing"
    return f"no JSON array of pairs in two replies, the last{' (cut off)' * reply.cut}: {said}"


def _counted(
    documents: Documents, parts: Sequence[Part], replies: Sequence[Read | str], tally: Tally, generator: str
) -> Made:
    """Every reply's pairs held against their part and each other, and every document counted."""
    made = Made(tally=tally)
    counts, repeats = made.counts, Repeats()
    failures: dict[int, list[tuple[Part, str]]] = {}
    for part, reply in zip(parts, replies, strict=True):
        if isinstance(reply, str):
            failures.setdefault(part.document, []).append((part, reply))
            continue
        counts.cut += reply.cut
        counts.malformed += reply.malformed
        counts.returned += reply.malformed + len(reply.pairs)
        source = documents.found[part.document].name
        metadata = {"source": source, "part": part.number, "parts": part.of, "generator": generator}
        for pair in reply.pairs:
            if (why := ungrounded(pair.answer, part.text)) is not None:
                counts.ungrounded[why] += 1
            elif not repeats.add(pair):
                counts.duplicates += 1
            else:
                counts.kept += 1
                messages = [
                    {"role": "user", "content": pair.question},
                    {"role": "assistant", "content": pair.answer},
                ]
                made.rows.append(RawRow(source, part.line, {"messages": messages, "metadata": metadata}))
    for number, found in failures.items():
        part, reason = found[0]
        of = f"{len(found):,} of {part.of:,} parts: " if part.of > 1 else ""
        value = Malformed(f"{of}{reason}", part.text[:_SHOWN])
        made.failed.append(RawRow(documents.found[number].name, part.line, value))
    kinds = Counter(unread.kind for unread in documents.unread)
    counts.documents = len(documents.found) + len(documents.unread)
    counts.empty, counts.unreadable, counts.failed = kinds["empty"], kinds["unreadable"], len(failures)
    counts.used = len(documents.found) - len(failures)
    return made


def refuse_gaps(made: Made, errors_shown: int, replies: Path, *, skip_bad: bool) -> None:
    """Refuse to go on where documents failed (without `skip_bad`), or where no pair is left.

    Args:
        made: what was made.
        errors_shown: how many failures are named.
        replies: where replies are kept.
        skip_bad: whether failed documents may be left out.

    Raises:
        DataError: so it is; the first failures are named.
    """
    failures = [f"{row.file}:{row.line}: {row.value.reason}" for row in made.failed]
    shown = failures[:errors_shown]
    if len(failures) > errors_shown:
        shown.append(f"… and {len(failures) - errors_shown:,} more")
    number = "1 document" if len(failures) == 1 else f"{len(failures):,} documents"
    if not made.rows:
        lines = ["no pair could be used", *made.counts.words(), *shown]
        raise DataError("\n  ".join(lines), hint="name another model with --generator, or other documents")
    if failures and not skip_bad:
        raise DataError(
            "\n  ".join([f"{number} failed, and nothing is written:", *shown]),
            hint=f"run the same command again: what was answered is kept in {replies}; or add --skip-bad to go on "
            "without what failed",
        )


def unread_rows(unread: Sequence[Unread]) -> list[RawRow]:
    """Documents that were not asked about, as rows that are refused with the reason."""
    return [RawRow(one.name, 1, Malformed(one.reason, "")) for one in unread]
