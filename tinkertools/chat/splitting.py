"""Holding rows out: which ones depends on what they say, so that equal ones, or equal prompts, stay on one side."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import orjson

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.preferences import Preference
from tinkertools.config import PrepareDefaults
from tinkertools.errors import DataError

_Row = TypeVar("_Row")


def digest_of(row: Conversation | Preference, line: bytes) -> int:
    """The number by which a row and its equals are known, whatever is said of where they come from."""
    if "metadata" in row:
        trained = {name: value for name, value in row.items() if name != "metadata"}
        line = orjson.dumps(trained, default=str, option=orjson.OPT_APPEND_NEWLINE)
    return _number_of(line)


def side_of(row: Conversation | Preference, digest: int) -> int:
    """The number by which rows stay on one side: a preference's is its prompt's, a conversation's is its `digest`."""
    if "prompt" not in row:
        return digest
    return _number_of(orjson.dumps(row["prompt"], default=str, option=orjson.OPT_SORT_KEYS))


def _number_of(said: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "little")


def validation_digests(digests: list[int], fraction: float, seed: int, what: str) -> set[int]:
    """The digests whose rows are held out: about `fraction` of the rows, at least one, never all.

    `what` they are digests of, in words, for the error.

    Raises:
        DataError: all rows are equal, or ask the same: none can be held out without being trained on as well.
    """
    if not fraction:
        return set()
    rows_of: dict[int, int] = {}
    for digest in digests:
        rows_of[digest] = rows_of.get(digest, 0) + 1
    if len(rows_of) < 2:
        raise DataError(
            f"--val-fraction needs at least two different {what}", hint="give more data, or leave the option out"
        )
    salt = str(seed).encode()
    ranked = sorted(rows_of, key=lambda digest: hashlib.blake2b(digest.to_bytes(8, "little") + salt).digest())
    wanted = max(1, round(fraction * len(digests)))
    chosen: set[int] = set()
    rows = 0
    for digest in ranked[:-1]:
        if rows >= wanted:
            break
        chosen.add(digest)
        rows += rows_of[digest]
    return chosen


def split(conversations: Sequence[Conversation], fraction: float) -> tuple[list[Conversation], list[Conversation]]:
    """What is trained on and what is held out, each in the order it had; as `tt prepare` splits a file by default.

    The seed of the run has no part in it: runs that differ in it are evaluated on the same.

    Raises:
        DataError: all conversations are equal.
    """
    digests = [
        digest_of(conversation, orjson.dumps(conversation, default=str, option=orjson.OPT_APPEND_NEWLINE))
        for conversation in conversations
    ]
    return _split_by(conversations, digests, fraction, "conversations")


def split_preferences(rows: Sequence[Preference], fraction: float) -> tuple[list[Preference], list[Preference]]:
    """As `split`, with all answers to one prompt on one side.

    Raises:
        DataError: all prompts are equal.
    """
    return _split_by(rows, [side_of(row, 0) for row in rows], fraction, "prompts")


def _split_by(
    rows: Sequence[_Row], digests: list[int], fraction: float, what: str
) -> tuple[list[_Row], list[_Row]]:  # fmt: skip
    chosen = validation_digests(digests, fraction, PrepareDefaults.seed, what)
    kept: list[_Row] = []
    held_out: list[_Row] = []
    for row, digest in zip(rows, digests, strict=True):
        (held_out if digest in chosen else kept).append(row)
    return kept, held_out


def split_by(
    rows: Sequence[_Row], contents: Sequence[bytes], fraction: float, what: str
) -> tuple[list[_Row], list[_Row]]:
    """As `split`, for rows of any kind: those of equal `contents` stay on one side; `what` they are, in words.

    Raises:
        DataError: all are equal.
    """
    digests = [int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") for content in contents]
    return _split_by(rows, digests, fraction, what)
