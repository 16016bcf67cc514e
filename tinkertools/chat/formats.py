"""How the row of each format becomes a conversation."""

import re
from collections.abc import Callable, Collection
from typing import Any

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


def with_columns(row: dict[str, Any], messages: list[Message], used: Collection[str] = ()) -> Conversation:
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


def from_messages(row: dict[str, Any]) -> Conversation:
    """A row of `messages`."""
    try:
        messages = row["messages"]
    except KeyError:
        raise RowError("messages", f"is missing; the row has {columns(row)}") from None
    messages = validate(messages)
    return {"messages": messages} if len(row) == 1 else with_columns(row, messages)


def from_sharegpt(row: dict[str, Any]) -> Conversation:
    """A row of `conversations`, turns of `from` and `value`."""
    if "conversations" not in row:
        raise RowError("conversations", f"is missing; the row has {columns(row)}")
    turns = row["conversations"]
    if type(turns) is not list:
        raise RowError("conversations", f"must be a list of turns, but is {kind(turns)}")
    opening = system_column(row)
    messages = [*opening]
    messages += [message_of_turn(turn, f"conversations[{i}]") for i, turn in enumerate(turns)]
    try:
        messages = validate(messages)
    except RowError as error:
        raise RowError(_turn_field(error.field_name, len(opening)), error.reason) from None
    return {"messages": messages} if len(row) == 1 else with_columns(row, messages)


def message_of_turn(turn: Any, where: str) -> Message:
    """The message that a ShareGPT turn is; only its speaker has been looked at.

    Raises:
        RowError: it is no turn.
    """
    if type(turn) is not dict:
        raise RowError(where, f"must be an object with from and value, but is {kind(turn)}")
    speaker = turn.get("from")
    role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise role_error(f"{where}.from", turn, "from", _SHAREGPT_KNOWN)
    if "value" not in turn:
        raise RowError(f"{where}.value", f"is missing; the message has {columns(turn)}")
    message = {"role": role, "content": turn["value"]}
    if speaker == "function_call":
        message = {"role": role, "content": "", "tool_calls": _calls_in(turn["value"], f"{where}.value")}
    if len(turn) > 2:
        message |= {name: turn[name] for name in _TURN_FIELDS if turn.get(name) is not None}
    return message


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


def from_alpaca(row: dict[str, Any]) -> Conversation:
    """A row of `instruction`, `output`, and `input`, which may be missing."""
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
    messages = [*system_column(row), {"role": "user", "content": ask}, {"role": "assistant", "content": output}]
    if not ask or ask.isspace():
        raise RowError("instruction", "is empty")
    if not output or output.isspace():
        raise RowError("output", "is empty")
    return with_columns(row, messages)


def system_column(row: dict[str, Any]) -> list[Message]:
    """The system message that stands in a column of its own, where there is one."""
    system = row.get("system")
    if not isinstance(system, str) or not system:
        return []
    check_text(system, "system")
    return [{"role": "system", "content": system}]


def from_pair(prompt_column: str, completion_column: str) -> Callable[[dict[str, Any]], Conversation]:
    """What reads rows of two columns, texts or lists of messages."""
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
        return {"messages": messages} if len(row) == 2 else with_columns(row, messages, used)

    return convert


def from_section(row: dict[str, Any]) -> Conversation:
    """A section of a document: its heading asks, its text answers."""
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
