"""Rows become conversations: the formats that are understood, and what makes a conversation valid."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

from tinkertools.chat.sources import Malformed, RawRow, Source
from tinkertools.config import Format, PrepareDefaults
from tinkertools.errors import DataError

Message = dict[str, Any]
Conversation = list[Message]

_ROLES_TO_COME = frozenset(("tool", "function", "developer", "observation", "function_call", "ipython"))
_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system",
}  # fmt: skip
# Column names of single-turn datasets, asked in this order.
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "response"),
    ("query", "response"), ("problem", "solution"), ("input", "output"),
)  # fmt: skip
# How many rows `auto` looks at before it gives up.
_LOOK_AHEAD = 100


class RowError(Exception):
    """Why a row is refused: the field, and the reason."""

    def __init__(self, field_name: str, reason: str) -> None:
        super().__init__(f"{field_name}: {reason}")
        self.field_name = field_name
        self.reason = reason


class Refused(NamedTuple):
    """A row that is no conversation, with its place, the field and the reason."""

    row: RawRow
    field_name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.row.file}:{self.row.line}: {self.field_name}: {self.reason}"


@dataclass(frozen=True)
class RowFormat:
    """How rows are read: a name, words that say so, and the function from a row to messages."""

    name: str
    description: str
    convert: Callable[[dict[str, Any]], Conversation]


def validate(messages: Any) -> Conversation:
    """`messages` itself, when it is a conversation that can be trained on.

    Raises:
        RowError: it is not, with the field (such as `messages[2].content`) and the reason.
    """
    if type(messages) is not list:
        raise RowError("messages", f"must be a list of messages, but is {_kind(messages)}")
    if not messages:
        raise RowError("messages", "is empty")
    expects_opening = True
    answered = False
    for i, message in enumerate(messages):
        if type(message) is not dict:
            raise RowError(f"messages[{i}]", f"must be an object with role and content, but is {_kind(message)}")
        role = message.get("role")
        content = message.get("content")
        if role == "user":
            expects_opening = False
        elif role == "assistant":
            if expects_opening:
                raise RowError(f"messages[{i}].role", "the assistant speaks first; a user message must come before")
            answered = True
        elif role == "system":
            if i:
                raise RowError(f"messages[{i}].role", "a system message must come first")
        else:
            raise _role_error(f"messages[{i}].role", message)
        if type(content) is not str:
            raise _content_error(f"messages[{i}].content", message)
        if role != "system" and (not content or content.isspace()):
            raise RowError(f"messages[{i}].content", f"the {role} message is empty")
    if not answered:
        raise RowError("messages", "no assistant message, so nothing to train on")
    return messages


def _role_error(where: str, message: Message, key: str = "role") -> RowError:
    if key not in message:
        return RowError(where, f"is missing; the message has {_columns(message)}")
    role = message[key]
    if not isinstance(role, str):
        return RowError(where, f"must be text, but is {_kind(role)}")
    if role in _ROLES_TO_COME:
        return RowError(where, f"'{role}' messages cannot be used yet; only system, user and assistant can")
    return RowError(where, f"unknown role '{role}'; known are system, user and assistant")


def _content_error(where: str, message: Message) -> RowError:
    if "content" not in message:
        return RowError(where, f"is missing; the message has {_columns(message)}")
    return RowError(where, f"must be text, but is {_kind(message['content'])}")


def _kind(value: Any) -> str:
    names = {
        type(None): "null", dict: "an object", list: "a list", str: "text", bool: "true or false",
        int: "a number", float: "a number",
    }  # fmt: skip
    return names.get(type(value), f"of type {type(value).__name__}")


def _columns(row: dict[str, Any]) -> str:
    return ", ".join(f"'{key}'" for key in islice(row, 12)) or "no fields"


def _from_messages(row: dict[str, Any]) -> Conversation:
    try:
        messages = row["messages"]
    except KeyError:
        raise RowError("messages", f"is missing; the row has {_columns(row)}") from None
    return validate(messages)


def _from_sharegpt(row: dict[str, Any]) -> Conversation:
    if "conversations" not in row:
        raise RowError("conversations", f"is missing; the row has {_columns(row)}")
    turns = row["conversations"]
    if type(turns) is not list:
        raise RowError("conversations", f"must be a list of turns, but is {_kind(turns)}")
    opening = _system_column(row)
    messages = [*opening]
    for i, turn in enumerate(turns):
        if type(turn) is not dict:
            raise RowError(f"conversations[{i}]", f"must be an object with from and value, but is {_kind(turn)}")
        speaker = turn.get("from")
        role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise _role_error(f"conversations[{i}].from", turn, "from")
        if "value" not in turn:
            raise RowError(f"conversations[{i}].value", f"is missing; the message has {_columns(turn)}")
        messages.append({"role": role, "content": turn["value"]})
    try:
        return validate(messages)
    except RowError as error:
        raise RowError(_turn_field(error.field_name, len(opening)), error.reason) from None


def _turn_field(field_name: str, before: int) -> str:
    """The name in a ShareGPT row of a field of the messages made from it, `before` of which are no turns."""
    found = re.fullmatch(r"messages\[(\d+)\]\.(role|content)", field_name)
    if not found:
        return "conversations"
    return f"conversations[{int(found[1]) - before}].{'from' if found[2] == 'role' else 'value'}"


def _from_alpaca(row: dict[str, Any]) -> Conversation:
    instruction, extra, output = row.get("instruction"), row.get("input"), row.get("output")
    for name, value in (("instruction", instruction), ("output", output)):
        if name not in row:
            raise RowError(name, f"is missing; the row has {_columns(row)}")
        if not isinstance(value, str):
            raise RowError(name, f"must be text, but is {_kind(value)}")
    if extra is not None and not isinstance(extra, str):
        raise RowError("input", f"must be text, but is {_kind(extra)}")
    ask = "\n\n".join(part for part in (instruction, extra) if part)
    messages = [*_system_column(row), {"role": "user", "content": ask}, {"role": "assistant", "content": output}]
    if not ask or ask.isspace():
        raise RowError("instruction", "is empty")
    if not output or output.isspace():
        raise RowError("output", "is empty")
    return messages


def _system_column(row: dict[str, Any]) -> Conversation:
    """The system message that stands in a column of its own, where there is one."""
    system = row.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system else []


def _from_pair(prompt_column: str, completion_column: str) -> Callable[[dict[str, Any]], Conversation]:
    def convert(row: dict[str, Any]) -> Conversation:
        try:
            prompt, completion = row[prompt_column], row[completion_column]
        except KeyError as error:
            raise RowError(str(error.args[0]), f"is missing; the row has {_columns(row)}") from None
        if type(prompt) is str and type(completion) is str:
            # The common case, checked in place: a valid pair needs no second look.
            if prompt and completion and not prompt.isspace() and not completion.isspace():
                return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            empty = prompt_column if not prompt or prompt.isspace() else completion_column
            raise RowError(empty, "is empty")
        if type(prompt) is list and type(completion) is list:
            return _validate_as(f"{prompt_column}+{completion_column}", prompt + completion)
        wrong = prompt_column if type(prompt) is not str else completion_column
        raise RowError(wrong, f"must be text, but is {_kind(row[wrong])}")

    return convert


def _validate_as(name: str, messages: Conversation) -> Conversation:
    try:
        return validate(messages)
    except RowError as error:
        raise RowError(error.field_name.replace("messages", name, 1), error.reason) from None


def known_format(name: str, prompt_column: str | None, completion_column: str | None) -> RowFormat:
    """The format called `name`, which is not `auto`."""
    if name == "messages":
        return RowFormat(name, "messages: a list of role and content", _from_messages)
    if name == "sharegpt":
        return RowFormat(name, "ShareGPT: conversations of from and value", _from_sharegpt)
    if name == "alpaca":
        return RowFormat(name, "Alpaca: instruction, input and output", _from_alpaca)
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
        if self.format_name == "auto" and (self.prompt_column or self.completion_column):
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
        if not self.rows_in:
            raise DataError(f"{self._name()} holds no rows", hint="give a file with at least one conversation")

    def _name(self) -> str:
        return "stdin" if self.source.name == "-" else self.source.name

    def _unknown_format(self, rows: list[RawRow]) -> DataError:
        for row in rows:
            if isinstance(row.value, dict):
                return DataError(
                    f"{row.file}:{row.line}: messages: no known format; the row has {_columns(row.value)}",
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
    return RowError("row", f"must be an object with fields, but is {_kind(value)}")


def explain_refusals(shown: list[Refused], total: int, hint: str) -> DataError:
    """The error for rows that were refused: the first ones, and how many in all."""
    lines = [str(refusal) for refusal in shown]
    rows = "1 row was refused" if total == 1 else f"{total:,} rows were refused"
    if total > len(shown):
        lines.append(f"… and {total - len(shown):,} more")
    return DataError("\n  ".join([f"{rows}:", *lines]), hint=hint)


def read_all(source: Source, errors_shown: int) -> tuple[list[Conversation], RowFormat]:
    """All conversations of a source that must have no bad row, for training and scoring.

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
    if count:
        raise explain_refusals(
            refused, count, f"leave them out: tt prepare --dataset {source.name} --skip-bad --output CLEAN.jsonl"
        )
    assert reader.format is not None
    return good, reader.format
