"""Rows of preference data: two answers to one prompt, one of them chosen, however the row is written."""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, final

from tinkertools.chat.conversations import FLAGS, Message, RowError, Tool, columns, kind, validate
from tinkertools.chat.formats import message_of_turn, system_column, with_columns


@final
class Preference(TypedDict):
    """What preference methods train on: messages that ask, and two ways to go on from them.

    `prompt` ends before a turn of the assistant's; `chosen` and `rejected` begin and end with a message of the
    assistant's, and hold nothing of the prompt. It is what TRL calls conversational with an explicit prompt. Messages
    and tools are as in `Conversation`, but for `trainable`, `weight` and `loss_weight`, which none has. `margin` is by
    how much the chosen answer is the better one.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: NotRequired[float]
    tools: NotRequired[list[Tool]]
    metadata: NotRequired[dict[str, Any]]


class _Placed(NamedTuple):
    """A message as the row has it, and where: a message, a ShareGPT turn, or (a part of) a text."""

    message: Message
    where: str
    form: Literal["message", "turn", "text"]

    @property
    def role(self) -> Any:
        return self.message.get("role")

    def field(self, name: Literal["role", "content", ""]) -> str:
        """What the row calls a field of the message."""
        if self.form == "text" or not name:
            return self.where
        return f"{self.where}.{name if self.form == 'message' else {'role': 'from', 'content': 'value'}[name]}"


# Where the prompt of answers that stand alone may be, asked in this order; `input` goes on after `instruction`.
_PROMPTS = ("prompt", "conversations", "messages", "question", "instruction", "query", "problem", "input")
# Whole conversations beside their prompt begin with it; in other columns stands something else, or a copy.
_PROMPTS_OF_CONVERSATIONS = ("prompt", "conversations")
# Columns whose difference is the margin.
_SCORES = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)  # fmt: skip
# As Anthropic's HH-RLHF writes conversations.
_HH_OPENING = "\n\nHuman:"
_HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
# What of a message a model sees.
_SEEN = (
    "role",
    "content",
    "reasoning_content",
    "reasoning",
    "thinking",
    "tool_calls",
    "function_call",
    "name",
    "tool_call_id",
)


def from_preference(row: dict[str, Any]) -> Preference:
    """The preference that a row is.

    `chosen` and `rejected` are answers to a prompt in another column, or whole conversations, whose prompt is the
    messages that they share, up to a turn of the assistant's; a `prompt` of text beside whole conversations is taken
    for a copy. Each is a text (HH-RLHF's for a conversation), a message, or a list of messages or of ShareGPT turns. A
    `system` column comes first in the prompt. The margin is `margin`, else the difference of the scores of the two.

    Raises:
        RowError: it is none, with the field and the reason.
    """
    for name in ("chosen", "rejected"):
        if name not in row:
            raise RowError(name, f"is missing; the row has {columns(row)}")
    prompt, chosen, rejected = _divided(
        row, _messages_in(row["chosen"], "chosen"), _messages_in(row["rejected"], "rejected")
    )
    prompt = _with_system_column(row, prompt)
    if all(placed.role != "user" for placed in prompt):
        raise RowError(prompt[0].where.partition("[")[0], "has no user message, so nothing is asked")
    if prompt[-1].role == "assistant":
        raise RowError(prompt[-1].field("role"), "the prompt ends with an assistant message; the answers come after it")
    asked, first = _checked(prompt, chosen)
    _, second = _checked(prompt, rejected)
    if _seen(first) == _seen(second):
        raise RowError("rejected", "is the same as chosen")
    preference: Preference = {"prompt": asked, "chosen": first, "rejected": second}
    if (margin := _margin(row)) is not None:
        preference["margin"] = margin
    beside = with_columns(row, asked)
    if "tools" in beside:
        preference["tools"] = beside["tools"]
    if "metadata" in beside:
        preference["metadata"] = beside["metadata"]
    return preference


def _messages_in(value: Any, column: str) -> list[_Placed]:
    """What a column says, message by message; a text that is no conversation is an answer."""
    if isinstance(value, str):
        if value.startswith(_HH_OPENING):
            return _hh_messages(value, column)
        return [_Placed({"role": "assistant", "content": value}, column, "text")]
    if type(value) is dict:
        return [_placed(value, column)]
    if type(value) is not list:
        raise RowError(column, f"must be text, a message or a list of messages, but is {kind(value)}")
    if not value:
        raise RowError(column, "is empty")
    return [_placed(element, f"{column}[{i}]") for i, element in enumerate(value)]


def _placed(value: Any, where: str) -> _Placed:
    if type(value) is not dict:
        raise RowError(where, f"must be an object with role and content, but is {kind(value)}")
    if value.get("role") is None and "from" in value:
        return _Placed(message_of_turn(value, where), where, "turn")
    return _Placed(value, where, "message")


def _hh_messages(text: str, column: str) -> list[_Placed]:
    """The messages of "\\n\\nHuman: …\\n\\nAssistant: …": one space after the colon belongs to the mark."""
    _, *pieces = _HH_TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        _Placed({"role": roles[speaker], "content": said}, column, "text")
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _divided(
    row: dict[str, Any], chosen: list[_Placed], rejected: list[_Placed]
) -> tuple[list[_Placed], list[_Placed], list[_Placed]]:
    """The prompt and what is said after it, chosen and rejected."""
    whole = [side[0].role != "assistant" for side in (chosen, rejected)]
    if whole == [False, False]:
        return _prompt_column(row), chosen, rejected
    if whole != [True, True]:
        of = "chosen" if whole[0] else "rejected"
        other = "rejected" if whole[0] else "chosen"
        raise RowError(other, f"begins with an assistant message, but {of} does not; both must be answers, or neither")
    if _seen_in(chosen) == _seen_in(rejected):
        raise RowError("rejected", "is the same as chosen")
    given = next((name for name in _PROMPTS_OF_CONVERSATIONS if type(row.get(name)) is list and row[name]), None)
    if given is None:
        length = _shared(chosen, rejected)
        if not length:
            raise RowError(
                "rejected", "shares no messages with chosen that end before an assistant's turn, so there is no prompt"
            )
        return chosen[:length], chosen[length:], rejected[length:]
    prompt = _messages_in(row[given], given)
    length = len(prompt)
    for side in (chosen, rejected):
        if _seen_in(side[:length]) != _seen_in(prompt):
            raise RowError(
                side[0].field("role"),
                f"an answer to {given} must begin with an assistant message, or with all of {given}",
            )
        if len(side) == length:
            raise RowError(side[0].where.partition("[")[0], f"holds no answer after {given}")
    return prompt, chosen[length:], rejected[length:]


def _shared(chosen: list[_Placed], rejected: list[_Placed]) -> int:
    """How many messages at the front are the same, less those of the turn in which the two begin to differ."""
    shorter = min(len(chosen), len(rejected))
    length = 0
    while length < shorter and _seen_in(chosen[length : length + 1]) == _seen_in(rejected[length : length + 1]):
        length += 1
    while length and not (
        length < shorter
        and chosen[length].role == rejected[length].role == "assistant"
        and chosen[length - 1].role != "assistant"
    ):
        length -= 1
    return length


def _prompt_column(row: dict[str, Any]) -> list[_Placed]:
    """The prompt that stands in a column of its own."""
    name = next((name for name in _PROMPTS if row.get(name) is not None), None)
    if name is None:
        raise RowError("prompt", f"is missing; the row has {columns(row)}")
    value = row[name]
    if not isinstance(value, str):
        return _messages_in(value, name)
    if value.startswith(_HH_OPENING):
        messages = _hh_messages(value, name)
        # The mark that the answer comes after.
        return messages[:-1] if messages[-1].role == "assistant" and not messages[-1].message["content"] else messages
    if name == "instruction" and row.get("input") is not None:
        extra = row["input"]
        if not isinstance(extra, str):
            raise RowError("input", f"must be text, but is {kind(extra)}")
        value = "\n\n".join(part for part in (value, extra) if part)
    if not value or value.isspace():
        raise RowError(name, "is empty")
    return [_Placed({"role": "user", "content": value}, name, "text")]


def _with_system_column(row: dict[str, Any], prompt: list[_Placed]) -> list[_Placed]:
    opening = [_Placed(message, "system", "text") for message in system_column(row)]
    if not opening or prompt[0].role != "system":
        return [*opening, *prompt]
    if _seen_in(opening) != _seen_in(prompt[:1]):
        raise RowError("system", f"stands beside the system message in {prompt[0].where}; keep one of the two")
    return prompt


def _checked(prompt: list[_Placed], answer: list[_Placed]) -> tuple[list[Message], list[Message]]:
    """A prompt and an answer to it in normal form."""
    for end, place in (("begin", answer[0]), ("end", answer[-1])):
        if place.role != "assistant":
            raise RowError(place.field("role"), f"the answer must {end} with an assistant message")
    placed = [*prompt, *answer]
    for place in placed:
        if marks := [flag for flag in FLAGS if place.message.get(flag) is not None]:
            raise RowError(
                f"{place.where}.{marks[0]}", "whole answers are compared, so messages have no such mark; remove it"
            )
    try:
        messages = validate([place.message for place in placed])
    except RowError as error:
        raise _renamed(error, placed) from None
    return messages[: len(prompt)], messages[len(prompt) :]


def _renamed(error: RowError, placed: Sequence[_Placed]) -> RowError:
    """The error with the name that the field has in the row."""
    found = re.fullmatch(r"messages\[(\d+)\](?:\.(role|content))?(.*)", error.field_name, re.DOTALL)
    assert found is not None
    name: Literal["role", "content", ""] = found[2] or ""  # type: ignore[assignment]
    return RowError(placed[int(found[1])].field(name) + found[3], error.reason)


def _seen_in(placed: Sequence[_Placed]) -> list[Message]:
    return _seen([place.message for place in placed])


def _seen(messages: Sequence[Message]) -> list[Message]:
    """What a model sees of messages: what else is said of them makes them no other."""
    return [{name: message[name] for name in _SEEN if message.get(name) is not None} for message in messages]


def _margin(row: dict[str, Any]) -> float | None:
    """By how much the chosen answer is the better one, where the row says so."""
    if (margin := _number(row, "margin")) is not None:
        return margin
    for names in _SCORES:
        chosen, rejected = (_number(row, name) for name in names)
        if chosen is not None and rejected is not None:
            if not math.isfinite(chosen - rejected):
                raise RowError(
                    names[0], f"is {chosen} and {names[1]} is {rejected}, whose difference is no finite number"
                )
            return chosen - rejected
        if chosen is not None or rejected is not None:
            raise RowError(
                names[chosen is not None],
                f"is missing beside {names[chosen is None]}, but a margin is the difference of the two",
            )
    return None


def _number(row: dict[str, Any], name: str) -> float | None:
    """The number in a column, which tables of text write as text."""
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowError(name, f"must be a number, but is text: {ascii(value)[:40]}") from None
    if type(value) not in (int, float):
        raise RowError(name, f"must be a number, but is {kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError(name, f"must be a finite number, but is {value}")
    return number
