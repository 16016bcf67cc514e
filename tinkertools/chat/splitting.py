"""Holding conversations out: which ones depends on what they say, so that equal ones stay on one side."""

import hashlib
from collections.abc import Sequence

import orjson

from tinkertools.chat.conversations import Conversation
from tinkertools.config import PrepareDefaults
from tinkertools.errors import DataError


def digest_of(conversation: Conversation, line: bytes) -> int:
    """The number by which a conversation and its equals are known, whatever is said of where they come from."""
    if "metadata" in conversation:
        trained = {name: value for name, value in conversation.items() if name != "metadata"}
        line = orjson.dumps(trained, default=str, option=orjson.OPT_APPEND_NEWLINE)
    return int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "little")


def validation_digests(digests: list[int], fraction: float, seed: int) -> set[int]:
    """The digests whose rows are held out: about `fraction` of the rows, at least one, never all.

    Raises:
        DataError: all rows are equal, so no row can be held out without being trained on as well.
    """
    if not fraction:
        return set()
    rows_of: dict[int, int] = {}
    for digest in digests:
        rows_of[digest] = rows_of.get(digest, 0) + 1
    if len(rows_of) < 2:
        raise DataError(
            "--val-fraction needs at least two different conversations", hint="give more data, or leave the option out"
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
    chosen = validation_digests(digests, fraction, PrepareDefaults.seed)
    kept: list[Conversation] = []
    held_out: list[Conversation] = []
    for conversation, digest in zip(conversations, digests, strict=True):
        (held_out if digest in chosen else kept).append(conversation)
    return kept, held_out


def chosen_by(contents: Sequence[bytes], fraction: float) -> list[bool]:
    """Which rows are held out, by what makes them equal; as `split`.

    Raises:
        DataError: all are equal.
    """
    digests = [int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") for content in contents]
    chosen = validation_digests(digests, fraction, PrepareDefaults.seed)
    return [digest in chosen for digest in digests]
