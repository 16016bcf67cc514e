"""Rows become conversations: the formats that are understood, and how each is read."""

import re
import shlex
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

from tinkertools.chat.conversations import (
    Conversation,
    Message,
    RowError,
    Tool,
    check_text,
    check_writable,
    columns,
    from_json_text,
    kind,
    normal_call,
    normal_tools,
    role_error,
    validate,
)
from tinkertools.chat.sources import Malformed, RawRow, Source
from tinkertools.config import Format, PrepareDefaults
from tinkertools.errors import DataError

__all__ = ["Conversation", "Message", "Reader", "Refused", "RowError", "RowFormat", "explain_refusals", "read_all"]

_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "function_call": "assistant", "system": "system",
    "developer": "developer", "observation": "tool", "tool": "tool", "ipython": "tool", "function": "tool",
}  # fmt: skip
# What is told of them where a speaker is none of these.
_SHAREGPT_KNOWN = ("system", "human", "gpt", "function_call", "observation")
# Fields of a turn that mean the same as in a message.
_TURN_FIELDS = (
    "name", "tool_call_id", "reasoning_content", "reasoning", "thinking", "trainable", "weight", "loss_weight",
)  # fmt: skip
# Column names of single-turn datasets, asked in this order.
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "response"),
    ("query", "response"), ("problem", "solution"), ("input", "output"),
)  # fmt: skip
# How many rows `auto` looks at before it gives up.
_LOOK_AHEAD = 100


class Refused(NamedTuple):
    """A row that is no conversation, with its place, the field and the reason."""

    row: RawRow
    field_name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.row.file}:{self.row.line}: {self.field_name}: {self.reason}"


@dataclass(frozen=True)
class RowFormat:
    """How rows are read: a name, words that say so, and the function from a row to a conversation."""

    name: str
    description: str
    convert: Callable[[dict[str, Any]], Conversation]


def _with_columns(row: dict[str, Any], messages: list[Message], used: Collection[str] = ()) -> Conversation:
    """The conversation of `messages` and of what stands beside them in the row, less the columns that are `used`."""
    conversation: Conversation = {"messages": messages}
    if tools := _tools_beside(row, used):
        conversation["tools"] = tools
    metadata = row.get("metadata")
    # As in messages, a null is what a table writes where a row has no such field.
    if type(metadata) is dict and any(value is not None for value in metadata.values()):
        conversation["metadata"] = {name: value for name, value in metadata.items() if value is not None}
        check_writable(conversation["metadata"], "metadata")
    return conversation


def _tools_beside(row: dict[str, Any], used: Collection[str]) -> list[Tool]:
    found = {name: normal_tools(row.get(name), name) for name in ("tools", "functions") if name not in used}
    tools, functions = found.get("tools", []), found.get("functions", [])
    if tools and functions and tools != functions:
        raise RowError("functions", "stands beside tools; keep one of the two")
    return tools or functions


def _from_messages(row: dict[str, Any]) -> Conversation:
    try:
        messages = row["messages"]
    except KeyError:
        raise RowError("messages", f"is missing; the row has {columns(row)}") from None
    messages = validate(messages)
    return {"messages": messages} if len(row) == 1 else _with_columns(row, messages)


def _from_sharegpt(row: dict[str, Any]) -> Conversation:
    if "conversations" not in row:
        raise RowError("conversations", f"is missing; the row has {columns(row)}")
    turns = row["conversations"]
    if type(turns) is not list:
        raise RowError("conversations", f"must be a list of turns, but is {kind(turns)}")
    opening = _system_column(row)
    messages = [*opening]
    for i, turn in enumerate(turns):
        if type(turn) is not dict:
            raise RowError(f"conversations[{i}]", f"must be an object with from and value, but is {kind(turn)}")
        speaker = turn.get("from")
        role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise role_error(f"conversations[{i}].from", turn, "from", _SHAREGPT_KNOWN)
        if "value" not in turn:
            raise RowError(f"conversations[{i}].value", f"is missing; the message has {columns(turn)}")
        message = {"role": role, "content": turn["value"]}
        if speaker == "function_call":
            calls = _calls_in(turn["value"], f"conversations[{i}].value")
            message = {"role": role, "content": "", "tool_calls": calls}
        if len(turn) > 2:
            message |= {name: turn[name] for name in _TURN_FIELDS if turn.get(name) is not None}
        messages.append(message)
    try:
        messages = validate(messages)
    except RowError as error:
        raise RowError(_turn_field(error.field_name, len(opening)), error.reason) from None
    return {"messages": messages} if len(row) == 1 else _with_columns(row, messages)


def _calls_in(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls of a ShareGPT turn, which writes them as JSON text."""
    if isinstance(value, str):
        value = from_json_text(value, where, "JSON text with name and arguments")
    if type(value) is not list:
        return [normal_call(value, where)]
    if not value:
        raise RowError(where, "holds no call")
    return [normal_call(call, f"{where}[{i}]") for i, call in enumerate(value)]


def _turn_field(field_name: str, before: int) -> str:
    """The name in a ShareGPT row of a field of the messages made from it, `before` of which are no turns."""
    found = re.fullmatch(r"messages\[(\d+)\](?:\.(role|content))?(.*)", field_name, re.DOTALL)
    if not found:
        return "conversations"
    name = {"role": ".from", "content": ".value", None: ""}[found[2]]
    return f"conversations[{int(found[1]) - before}]{name}{found[3]}"


def _from_alpaca(row: dict[str, Any]) -> Conversation:
    instruction, extra, output = row.get("instruction"), row.get("input"), row.get("output")
    for name, value in (("instruction", instruction), ("output", output)):
        if name not in row:
            raise RowError(name, f"is missing; the row has {columns(row)}")
        if not isinstance(value, str):
            raise RowError(name, f"must be text, but is {kind(value)}")
        check_text(value, name)
    if extra is not None:
        if not isinstance(extra, str):
            raise RowError("input", f"must be text, but is {kind(extra)}")
        check_text(extra, "input")
    ask = "\n\n".join(part for part in (instruction, extra) if part)
    messages = [*_system_column(row), {"role": "user", "content": ask}, {"role": "assistant", "content": output}]
    if not ask or ask.isspace():
        raise RowError("instruction", "is empty")
    if not output or output.isspace():
        raise RowError("output", "is empty")
    return _with_columns(row, messages)


def _system_column(row: dict[str, Any]) -> list[Message]:
    """The system message that stands in a column of its own, where there is one."""
    system = row.get("system")
    if not isinstance(system, str) or not system:
        return []
    check_text(system, "system")
    return [{"role": "system", "content": system}]


def _from_pair(prompt_column: str, completion_column: str) -> Callable[[dict[str, Any]], Conversation]:
    used = (prompt_column, completion_column)

    def convert(row: dict[str, Any]) -> Conversation:
        try:
            prompt, completion = row[prompt_column], row[completion_column]
        except KeyError as error:
            raise RowError(str(error.args[0]), f"is missing; the row has {columns(row)}") from None
        if type(prompt) is str and type(completion) is str:
            # The common case, checked in place: a valid pair needs no second look.
            if not prompt or not completion or prompt.isspace() or completion.isspace():
                raise RowError(prompt_column if not prompt or prompt.isspace() else completion_column, "is empty")
            if not prompt.isascii():
                check_text(prompt, prompt_column)
            if not completion.isascii():
                check_text(completion, completion_column)
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        elif type(prompt) is list and type(completion) is list:
            messages = validate(prompt + completion, f"{prompt_column}+{completion_column}")
        else:
            wrong = prompt_column if type(prompt) is not str else completion_column
            raise RowError(wrong, f"must be text, but is {kind(row[wrong])}")
        return {"messages": messages} if len(row) == 2 else _with_columns(row, messages, used)

    return convert


def _from_section(row: dict[str, Any]) -> Conversation:
    headings = row["headings"]
    if not headings:
        raise RowError("headings", "the document has none, so there is nothing to ask for its text")
    if not headings[-1]:
        raise RowError("headings", "the heading is empty, so there is nothing to ask for its text")
    return {
        "messages": [
            {"role": "user", "content": f"Explain: {headings[-1]}"},
            {"role": "assistant", "content": row["text"]},
        ],
        "metadata": {"source": row["source"], "headings": headings},
    }


def known_format(name: str, prompt_column: str | None, completion_column: str | None) -> RowFormat:
    """The format called `name`, which is not `auto`."""
    if name == "messages":
        return RowFormat(name, "messages: a list of role and content", _from_messages)
    if name == "sharegpt":
        return RowFormat(name, "ShareGPT: conversations of from and value", _from_sharegpt)
    if name == "alpaca":
        return RowFormat(name, "Alpaca: instruction, input and output", _from_alpaca)
    if name == "sections":
        return RowFormat(name, "sections: a heading asks, the text under it answers", _from_section)
    prompt, completion = prompt_column or _PAIRS[0][0], completion_column or _PAIRS[0][1]
    return RowFormat(
        "prompt-completion", f"pairs: '{prompt}' asks, '{completion}' answers", _from_pair(prompt, completion)
    )


def _recognise(row: Any) -> RowFormat | None:
    """The format of one row by its field names."""
    if not isinstance(row, dict):
        return None
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
    """Conversations out of a source, one at a time. `format` and the counts are set as it goes."""

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

    def read(self) -> Iterator[Conversation | Refused]:
        """Each row as a conversation, or as what is wrong with it.

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
                conversation = convert(value)
            except RowError as error:
                yield Refused(row, error.field_name, error.reason)
            else:
                yield conversation
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


def read_all(source: Source, errors_shown: int, most: int = 0) -> tuple[list[Conversation], RowFormat]:
    """All conversations of a source that must have no bad row, or the first `most` of them, for training and scoring.

    Raises:
        DataError: a row is refused; the first `errors_shown` are named.
    """
    reader = Reader(source)
    good: list[Conversation] = []
    refused: list[Refused] = []
    count = 0
    for item in reader.read():
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
