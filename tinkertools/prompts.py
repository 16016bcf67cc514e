"""What models are asked: prompts from files and from conversations, with what a good answer is where somebody says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tinkertools.errors import DataError
from tinkertools.files import explain_os_errors
from tinkertools.shipped import GENERAL_PROMPTS, SAMPLE_PROMPTS, is_starter

if TYPE_CHECKING:
    from tinkertools.chat.conversations import Conversation

_HINT = 'a prompt is "text", [{"role": "user", "content": "text"}] or {"messages": [...]}'


@dataclass(frozen=True)
class Prompt:
    """What to ask.

    Attributes:
        conversation: all before the answer.
        check: a regular expression that a good answer matches, where the file gives one.
        reference: a good answer, where the file or the data give one.
    """

    conversation: "Conversation"
    check: str | None = None
    reference: str | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said so far."""
        return self.conversation["messages"]

    @property
    def question(self) -> str:
        """The text of the last message."""
        from tinkertools.chat.examples import texts_of

        return "".join(texts_of(self.messages[-1]))


def load_prompts(path: Path) -> list[Prompt]:
    """Prompts from JSON or JSON Lines: strings, lists of messages, or objects with `messages` (and maybe `check`).

    An assistant turn at the end of a prompt is what the model is asked for: it becomes the reference.

    Raises:
        DataError: the file is not of that form.
    """
    with explain_os_errors(path):
        raw = path.read_bytes()
    if not raw.strip():
        raise DataError(f"{path} is empty", hint='write prompts into it, for example ["Hello!"]')
    try:
        values = orjson.loads(raw)
        places = [f"{path}: prompt {i}" for i in range(1, len(values) + 1)] if isinstance(values, list) else [str(path)]
        values = values if isinstance(values, list) else [values]
    except orjson.JSONDecodeError:
        values, places = _json_lines(path, raw)
    prompts = [_prompt(value, place) for value, place in zip(values, places, strict=True)]
    if not prompts:
        raise DataError(f"{path} holds no prompts", hint='write prompts into it, for example ["Hello!"]')
    return prompts


def prompts_of(conversations: Sequence["Conversation"], count: int) -> list[Prompt]:
    """The first conversations up to their last answer, which is the reference."""
    from tinkertools.chat.examples import texts_of

    found: list[Prompt] = []
    for conversation in conversations:
        messages = conversation["messages"]
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        if len(found) == count:
            break
        if not last:  # nothing was asked
            continue
        shortened = conversation.copy()
        shortened["messages"] = messages[:last]
        found.append(Prompt(shortened, reference="".join(texts_of(messages[last])) or None))
    return found


def default_prompts(base_model: str) -> Path:
    """The prompts that ship: the samples' for the starter model, else general ones."""
    return SAMPLE_PROMPTS if is_starter(base_model) else GENERAL_PROMPTS


def _json_lines(path: Path, raw: bytes) -> tuple[list[Any], list[str]]:
    values: list[Any] = []
    places: list[str] = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: invalid JSON at column {error.colno}: {error.msg}",
                hint="the file must be a JSON list of prompts, or one prompt a line",
            ) from error
        places.append(f"{path}:{number}")
    return values, places


def _prompt(value: Any, place: str) -> Prompt:
    from tinkertools.chat.conversations import Conversation, RowError, normal_tools, validate

    check = None
    conversation: Conversation = {"messages": []}
    if isinstance(value, dict):
        check = value.get("check")
        try:
            if tools := normal_tools(value.get("tools")):
                conversation["tools"] = tools
        except RowError as error:
            raise DataError(f"{place}: {error}", hint=_HINT) from error
        value = value.get("messages")
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: expected a string, a list of messages, or an object with messages", hint=_HINT)
    reference = None
    if isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
        content = value[-1].get("content")
        reference = content if isinstance(content, str) else None
        value = value[:-1]
    if not any(isinstance(message, dict) and message.get("role") == "user" for message in value):
        raise DataError(f"{place}: messages: the user says nothing", hint=_HINT)
    try:
        # A prompt is a conversation whose last answer is still to come.
        conversation["messages"] = validate([*value, {"role": "assistant", "content": "…"}])[:-1]
    except RowError as error:
        raise DataError(f"{place}: {error}", hint=_HINT) from error
    if conversation["messages"][-1]["role"] not in ("user", "tool"):
        raise DataError(f"{place}: the last message must be the user's, for the model to answer", hint=_HINT)
    if check is not None:
        try:
            re.compile(check)
        except (re.error, TypeError) as error:
            raise DataError(f"{place}: check is not a regular expression: {error}", hint="mend or remove it") from error
    return Prompt(conversation, check, reference)
