"""Rows become conversations: the formats that are understood, and how each is read."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple, cast

from tinkertools.chat.conversations import Conversation, Message, RowError, columns, kind
from tinkertools.chat.formats import from_alpaca, from_messages, from_pair, from_section, from_sharegpt
from tinkertools.chat.preferences import Preference, from_preference
from tinkertools.chat.sources import Malformed, RawRow, Source
from tinkertools.config import Format, PrepareDefaults
from tinkertools.errors import DataError

__all__ = [
    "Conversation", "Message", "Preference", "Reader", "Refused", "Row", "RowError", "RowFormat", "explain_refusals",
    "read_all", "read_preferences",
]  # fmt: skip

# What a row is read as.
Row = Conversation | Preference

# What preference methods need, as an example.
_PREFERENCE_ROW = '{"prompt": [...], "chosen": [...], "rejected": [...]}'

# Column names of single-turn datasets, asked in this order.
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "response"),
    ("query", "response"), ("problem", "solution"), ("input", "output"),
)  # fmt: skip
# How many rows `auto` looks at before it gives up.
_LOOK_AHEAD = 100


class Refused(NamedTuple):
    """A row that cannot be used, with its place, the field and the reason."""

    row: RawRow
    field_name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.row.file}:{self.row.line}: {self.field_name}: {self.reason}"


@dataclass(frozen=True)
class RowFormat:
    """How rows are read: a name, words that say so, and the function from a row to what it is."""

    name: str
    description: str
    convert: Callable[[dict[str, Any]], Row]

    @property
    def preferences(self) -> bool:
        """Whether the rows are two answers to a prompt, not conversations."""
        return self.name == "preference"


def known_format(name: str, prompt_column: str | None, completion_column: str | None) -> RowFormat:
    """The format called `name`, which is not `auto`."""
    if name == "messages":
        return RowFormat(name, "messages: a list of role and content", from_messages)
    if name == "sharegpt":
        return RowFormat(name, "ShareGPT: conversations of from and value", from_sharegpt)
    if name == "alpaca":
        return RowFormat(name, "Alpaca: instruction, input and output", from_alpaca)
    if name == "preference":
        return RowFormat(name, "preference: a chosen and a rejected answer to a prompt", from_preference)
    if name == "sections":
        return RowFormat(name, "sections: a heading asks, the text under it answers", from_section)
    prompt, completion = prompt_column or _PAIRS[0][0], completion_column or _PAIRS[0][1]
    return RowFormat(
        "prompt-completion", f"pairs: '{prompt}' asks, '{completion}' answers", from_pair(prompt, completion)
    )


def _recognise(row: Any) -> RowFormat | None:
    """The format of one row by its field names."""
    if not isinstance(row, dict):
        return None
    # First of all: beside the two there may be columns that alone would be conversations.
    if "chosen" in row and "rejected" in row:
        return known_format("preference", None, None)
    if "messages" in row:
        return known_format("messages", None, None)
    if "conversations" in row:
        return known_format("sharegpt", None, None)
    if "instruction" in row and "output" in row:
        return known_format("alpaca", None, None)
    for prompt, completion in _PAIRS:
        if prompt in row and completion in row:
            return known_format("prompt-completion", prompt, completion)
    return None


@dataclass
class Reader:
    """Conversations or preferences out of a source, one at a time. `format` and the counts are set as it goes."""

    source: Source
    format_name: Format = PrepareDefaults.format
    prompt_column: str | None = None
    completion_column: str | None = None
    format: RowFormat | None = field(default=None, init=False)
    rows_in: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.source.documents:
            self.format_name = "sections"
        elif self.format_name == "sections":
            raise DataError(f"{self._name()} holds rows, not documents", hint="leave --format sections out")
        elif self.format_name == "auto" and (self.prompt_column or self.completion_column):
            self.format_name = "prompt-completion"
        if self.format_name != "auto":
            self.format = known_format(self.format_name, self.prompt_column, self.completion_column)

    def read(self) -> Iterator[Row | Refused]:
        """Each row as what its format makes of it, or as what is wrong with it.

        Raises:
            DataError: no row at all, or no row of a known format among the first.
        """
        rows = self.source.rows()
        if self.format is None:
            ahead = list(islice(rows, _LOOK_AHEAD))
            self.format = next((found for row in ahead if (found := _recognise(row.value))), None)
            if self.format is None and ahead:
                raise self._unknown_format(ahead)
            rows = chain(ahead, rows)
        convert = self.format.convert if self.format else None
        for row in rows:
            self.rows_in += 1
            value = row.value
            try:
                if type(value) is not dict:
                    raise _not_an_object(value)
                assert convert is not None
                made = convert(value)
            except RowError as error:
                yield Refused(row, error.field_name, error.reason)
            else:
                yield made
        if not self.rows_in and self.source.documents:
            raise DataError(
                f"{self._name()} holds headings but no text under any of them", hint="give documents with some text"
            )
        if not self.rows_in:
            raise DataError(f"{self._name()} holds no rows", hint="give a file with at least one conversation")

    def _name(self) -> str:
        return "stdin" if self.source.name == "-" else self.source.name

    def _unknown_format(self, rows: list[RawRow]) -> DataError:
        for row in rows:
            if isinstance(row.value, dict) and ("chosen" in row.value or "rejected" in row.value):
                return DataError(
                    f"{row.file}:{row.line}: {'rejected' if 'chosen' in row.value else 'chosen'}: is missing; the row "
                    f"has {columns(row.value)}",
                    hint="a row of preference data has both chosen and rejected",
                )
            if isinstance(row.value, dict):
                return DataError(
                    f"{row.file}:{row.line}: messages: no known format; the row has {columns(row.value)}",
                    hint="name the columns: --prompt-column COLUMN --completion-column COLUMN",
                )
        first = Refused(rows[0], *_malformed_parts(rows[0].value))
        return DataError(f"{first}", hint='each row must be a JSON object such as {"messages": [...]}')


def _malformed_parts(value: Any) -> tuple[str, str]:
    error = _not_an_object(value)
    return error.field_name, error.reason


def _not_an_object(value: Any) -> RowError:
    if isinstance(value, Malformed):
        return RowError("row", value.reason)
    return RowError("row", f"must be an object with fields, but is {kind(value)}")


def explain_refusals(shown: list[Refused], total: int, hint: str) -> DataError:
    """The error for rows that were refused: the first ones, and how many in all."""
    lines = [str(refusal) for refusal in shown]
    rows = "1 row was refused" if total == 1 else f"{total:,} rows were refused"
    if total > len(shown):
        lines.append(f"… and {total - len(shown):,} more")
    return DataError("\n  ".join([f"{rows}:", *lines]), hint=hint)


def add_system(row: Row, system: str) -> None:
    """Put a system message before the messages of a row that begins with none."""
    messages = row["prompt"] if "prompt" in row else row["messages"]
    if messages[0]["role"] in ("system", "developer"):
        return
    messages = [{"role": "system", "content": system}, *messages]
    if "prompt" in row:
        row["prompt"] = messages
    else:
        row["messages"] = messages


def read_all(source: Source, errors_shown: int, most: int = 0) -> tuple[list[Conversation], RowFormat]:
    """All conversations of a source that must have no bad row, or the first `most` of them, for training and scoring.

    Raises:
        DataError: a row is refused; the first `errors_shown` are named. Or they are no conversations.
    """
    rows, row_format = _read_good(source, errors_shown, most, preferences=False)
    return cast("list[Conversation]", rows), row_format


def read_preferences(source: Source, errors_shown: int, most: int = 0) -> tuple[list[Preference], RowFormat]:
    """All preferences of a source that must have no bad row, or the first `most` of them.

    Raises:
        DataError: a row is refused; the first `errors_shown` are named. Or they are no preferences.
    """
    rows, row_format = _read_good(source, errors_shown, most, preferences=True)
    return cast("list[Preference]", rows), row_format


def _read_good(
    source: Source, errors_shown: int, most: int, *, preferences: bool
) -> tuple[Sequence[Row], RowFormat]:  # fmt: skip
    reader = Reader(source)
    good: list[Row] = []
    refused: list[Refused] = []
    count = 0
    for item in reader.read():
        assert reader.format is not None
        if reader.format.preferences != preferences:
            raise _other_data(source, reader.format)
        if isinstance(item, Refused):
            count += 1
            if len(refused) < errors_shown:
                refused.append(item)
        else:
            good.append(item)
            if len(good) == most:
                break
    if count:
        raise explain_refusals(
            refused,
            count,
            f"leave them out: tt prepare --dataset {shlex.quote(source.name)} --skip-bad --output CLEAN.jsonl",
        )
    assert reader.format is not None
    return good, reader.format


def _other_data(source: Source, found: RowFormat) -> DataError:
    """The error for preferences where conversations are wanted, and the other way round."""
    if found.preferences:
        return DataError(
            f"{source.name} holds preference data (chosen and rejected answers), not conversations",
            hint="tt train --method dpo trains on it; a column of conversations in it can be had with tt prepare "
            "--format messages or sharegpt",
        )
    return DataError(
        f"{source.name} holds conversations ({found.description}), but preference methods need a chosen and a rejected "
        "answer to each prompt",
        hint=f"give rows such as {_PREFERENCE_ROW} (tt prepare --format preference says what is missing), or leave "
        "--method out to train on conversations",
    )
