"""The one form of a conversation that every later stage may rely on, and how what people write becomes it.

Data come in many dialects: content as text or as parts, tool calls with their arguments as text or as objects, fields
that a table has filled with null. All of them end here; what is in this form already is passed through as it is.
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, NotRequired, TypedDict, TypeGuard, final

import orjson

Message = dict[str, Any]
Tool = dict[str, Any]

# What marks a message for `--train-on-what CUSTOMIZED`.
FLAGS = ("trainable", "weight", "loss_weight")


@final
class Conversation(TypedDict):
    """What is trained on: messages, the tools that the assistant may call, and where it all came from.

    A message has a `role` (system, developer, user, assistant, tool) and a `content`: text, or, where it holds images,
    a list of parts. An assistant's may have `reasoning_content` (text) and `tool_calls`, each `{"type": "function",
    "function": {"name": text, "arguments": JSON text of an object}}`. `trainable`, `weight` and `loss_weight` stay for
    the mask; fields that are not understood stay as they are. A tool is `{"type": "function", "function": {"name": …,
    "description": …, "parameters": …}}`.
    """

    messages: list[Message]
    tools: NotRequired[list[Tool]]
    metadata: NotRequired[dict[str, Any]]


class RowError(Exception):
    """Why a row is refused: the field, and the reason."""

    def __init__(self, field_name: str, reason: str) -> None:
        super().__init__(f"{field_name}: {reason}")
        self.field_name = field_name
        self.reason = reason


_ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
_RENAMED_ROLES = {"function": "tool", "ipython": "tool", "observation": "tool"}
_TEXT_PARTS = ("text", "input_text", "output_text")
# The fields in which a part of reasoning may hold its text.
_REASONING_PARTS = {"thinking": ("thinking",), "reasoning": ("text", "reasoning")}
_IMAGE_PARTS = ("image_url", "image")
# Where an assistant message may hold its reasoning; the first is the name it goes by afterwards.
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


def validate(messages: Any, where: str = "messages") -> list[Message]:
    """The messages in the form that `Conversation` tells; `messages` itself when they are in it already.

    Args:
        messages: what stands where a list of messages should.
        where: the field it stands in, for what is said of it.

    Raises:
        RowError: this is no conversation that can be trained on, with the field (such as `messages[2].content`).
    """
    if _are_plain(messages):
        return messages
    if type(messages) is not list:
        raise RowError(where, f"must be a list of messages, but is {kind(messages)}")
    if not messages:
        raise RowError(where, "is empty")
    normal: list[Message] = []
    user_spoke = answered = called = False
    for i, given in enumerate(messages):
        if type(given) is not dict:
            raise RowError(f"{where}[{i}]", f"must be an object with role and content, but is {kind(given)}")
        message = _normal_message(given, f"{where}[{i}]")
        role = message["role"]
        if role == "system" and i:
            raise RowError(f"{where}[{i}].role", "a system message must come first")
        if role == "developer" and i and (i > 1 or normal[0]["role"] != "system"):
            raise RowError(f"{where}[{i}].role", "a developer message must come first or after a system message")
        if role == "assistant" and not user_spoke:
            raise RowError(f"{where}[{i}].role", "the assistant speaks first; a user message must come before")
        if role == "tool" and not called:
            raise RowError(
                f"{where}[{i}].role",
                "a tool message answers an assistant message with tool_calls, and none stands before this one",
            )
        _check_not_empty(message, f"{where}[{i}].content")
        user_spoke = user_spoke or role == "user"
        answered = answered or role == "assistant"
        called = role == "tool" or "tool_calls" in message
        normal.append(message)
    if not answered:
        raise RowError(where, "no assistant message, so nothing to train on")
    check_writable(normal, where)
    return messages if all(a is b for a, b in zip(messages, normal, strict=True)) else normal


def _are_plain(messages: Any) -> TypeGuard[list[Message]]:
    """Whether these are messages in order, each a role and some text: as most are, and soon seen."""
    if type(messages) is not list:
        return False
    user_spoke = answered = False
    for i, message in enumerate(messages):
        if type(message) is not dict or len(message) != 2 or "role" not in message or "content" not in message:
            return False
        role, content = message["role"], message["content"]
        if type(content) is not str or not content or content.isspace():
            return False
        if not (content.isascii() or _is_unicode(content)):
            return False
        if role == "user":
            user_spoke = True
        elif role == "assistant":
            if not user_spoke:
                return False
            answered = True
        elif i or role != "system":
            return False
    return answered


def _is_unicode(text: str) -> bool:
    """Whether `text` can be written: Python's may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_not_empty(message: Message, where: str) -> None:
    role, content = message["role"], message["content"]
    if type(content) is list or (content and not content.isspace()):
        return
    if role == "assistant" and "reasoning_content" in message and "tool_calls" not in message:
        raise RowError(where, "the assistant message has reasoning, but neither text nor tool_calls")
    if role == "user" or (role == "assistant" and "tool_calls" not in message):
        raise RowError(where, f"the {role} message is empty")


def _normal_message(given: Message, where: str) -> Message:
    """`given` in normal form, itself when it is in it; the order of messages is not looked at."""
    # Tables fill the fields that a row does not have with null.
    message = {name: value for name, value in given.items() if value is not None}
    role = message.get("role")
    if not isinstance(role, str):
        raise role_error(f"{where}.role", given)
    role = _RENAMED_ROLES.get(role, role)
    if role not in _ROLES:
        raise role_error(f"{where}.role", given)
    message["role"] = role
    _check_fields(message, where)
    calls = _calls_of(message, role, where)
    reasoning = _reasoning_of(message, where) if role == "assistant" else {}
    content = message.get("content")
    if type(content) is list and (role != "tool" or any(map(_is_part, content))):
        message["content"], thoughts = _normal_parts(content, role, f"{where}.content")
        if thoughts:
            reasoning["content"] = thoughts
    elif role == "tool" and type(content) in (dict, list):
        message["content"] = _as_json(content, f"{where}.content")
    elif content is None and (calls or reasoning):
        message["content"] = ""
    elif type(content) is not str:
        raise _content_error(f"{where}.content", role, given)
    if text := _one_reasoning(reasoning, where):
        message["reasoning_content"] = text
    if calls:
        message["tool_calls"] = calls
    return _itself_if_same(given, message)


def _itself_if_same(given: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """`given` where `made` holds the same values, so that what is in normal form is not copied."""
    same = len(given) == len(made) and all(name in made and made[name] is value for name, value in given.items())
    return given if same else made


def role_error(where: str, message: Message, key: str = "role", known: Sequence[str] = ()) -> RowError:
    """Why `message[key]` is no role: it is missing, it is no text, or it is none of `known`."""
    if key not in message:
        return RowError(where, f"is missing; the message has {columns(message)}")
    role = message[key]
    if not isinstance(role, str):
        return RowError(where, f"must be text, but is {kind(role)}")
    *names, last = known or ("system", "developer", "user", "assistant", "tool")
    return RowError(where, f"unknown role {_quoted(role)}; known are {', '.join(names)} and {last}")


def _content_error(where: str, role: str, message: Message) -> RowError:
    if "content" not in message:
        return RowError(where, f"is missing; the message has {columns(message)}")
    wanted = "text, a list or an object" if role == "tool" else "text or a list of parts"
    return RowError(where, f"must be {wanted}, but is {kind(message['content'])}")


def _check_fields(message: Message, where: str) -> None:
    for name in ("name", "tool_call_id") if message["role"] == "tool" else ("name",):
        if name in message and not isinstance(message[name], str):
            raise RowError(f"{where}.{name}", f"must be text, but is {kind(message[name])}")
    if type(message.get("trainable", True)) is not bool:
        raise RowError(f"{where}.trainable", f"must be true or false, but is {kind(message['trainable'])}")
    for name in ("weight", "loss_weight"):
        value = message.get(name, 1)
        if type(value) not in (int, float):
            raise RowError(f"{where}.{name}", f"must be a number of 0 or more, but is {kind(value)}")
        if not 0 <= value < math.inf:
            raise RowError(f"{where}.{name}", f"must be a number of 0 or more, but is {value}")


def _reasoning_of(message: Message, where: str) -> dict[str, str]:
    """The reasoning that stands in fields of an assistant message, by their names; they are taken out of it."""
    found = {name: message.pop(name) for name in _REASONING_FIELDS if isinstance(message.get(name), str)}
    if "reasoning_content" in message:
        raise RowError(f"{where}.reasoning_content", f"must be text, but is {kind(message['reasoning_content'])}")
    return found


def _one_reasoning(found: dict[str, str], where: str) -> str:
    """What all of `found` say, "" where there is none; servers give the same reasoning under several names."""
    said = {name: text for name, text in found.items() if text}
    if not said:
        return ""
    (first, text), *others = said.items()
    for name, other in others:
        if other != text:
            raise RowError(f"{where}.{name}", f"holds other reasoning than {first}; keep one of the two")
    return text


def _is_part(value: Any) -> bool:
    """Whether an element of a tool's result is a part of a message rather than data that look like one."""
    if type(value) is not dict:
        return False
    name = value.get("type")
    payload = value.get("text" if name in _TEXT_PARTS else name) if isinstance(name, str) else None
    return (name in _TEXT_PARTS and isinstance(payload, str)) or (name in _IMAGE_PARTS and payload is not None)


def _normal_parts(parts: list[Any], role: str, where: str) -> tuple[str | list[Any], str]:
    """The content that `parts` are: text, or parts where there are images; and the reasoning among them."""
    normal: list[Message] = []
    thoughts: list[str] = []
    images = False
    for i, given in enumerate(parts):
        if isinstance(given, str):
            normal.append({"type": "text", "text": given})
            continue
        if type(given) is not dict:
            raise RowError(f"{where}[{i}]", f"must be text or an object with a type, but is {kind(given)}")
        part = {name: value for name, value in given.items() if value is not None}
        part_type = part["type"] if isinstance(part.get("type"), str) else ""
        if part_type in _TEXT_PARTS:
            text = _part_text(part, ("text",), f"{where}[{i}]")
            normal.append(given if given == {"type": "text", "text": text} else {"type": "text", "text": text})
        elif part_type in _IMAGE_PARTS:
            if role == "assistant":
                raise RowError(f"{where}[{i}].type", "an assistant message cannot hold an image")
            images = True
            normal.append(_itself_if_same(given, _normal_image(part, part_type, f"{where}[{i}]")))
        elif part_type in _REASONING_PARTS and role == "assistant":
            thoughts.append(_part_text(part, _REASONING_PARTS[part_type], f"{where}[{i}]"))
        else:
            raise _part_error(part, role, f"{where}[{i}].type")
    if not images:
        return "".join(part["text"] for part in normal), "".join(thoughts)
    same = all(part is given for part, given in zip(normal, parts, strict=True))
    return parts if same else normal, ""


def _part_error(part: Message, role: str, where: str) -> RowError:
    if "type" not in part:
        return RowError(where, f"is missing; the part has {columns(part)}")
    if not isinstance(part["type"], str):
        return RowError(where, f"must be text, but is {kind(part['type'])}")
    known = "text, thinking and reasoning" if role == "assistant" else "text, image_url and image"
    return RowError(where, f"unknown part {_quoted(part['type'])}; parts of {role} messages may be {known}")


def _part_text(part: Message, names: Sequence[str], where: str) -> str:
    name = next((name for name in names if name in part), None)
    if name is None:
        raise RowError(f"{where}.{names[0]}", f"is missing; the part has {columns(part)}")
    if not isinstance(part[name], str):
        raise RowError(f"{where}.{name}", f"must be text, but is {kind(part[name])}")
    return str(part[name])


def _normal_image(part: Message, name: str, where: str) -> Message:
    """A part with an image, as it is; whether the image can be had is for whoever looks at it."""
    where = f"{where}.{name}"
    if name not in part:
        raise RowError(where, f"is missing; the part has {columns(part)}")
    image = part[name]
    if type(image) is dict:
        part[name] = _itself_if_same(image, {key: value for key, value in image.items() if value is not None})
        where, image = f"{where}.url", part[name].get("url")
        if image is None:
            raise RowError(where, f"is missing; the image has {columns(part[name])}")
    if not isinstance(image, str):
        raise RowError(where, f"must be text (a URL, a data URL or a path), but is {kind(image)}")
    if not image:
        raise RowError(where, "is empty; it must be a URL, a data URL or a path")
    return part


def _calls_of(message: Message, role: str, where: str) -> list[Any]:
    """The tool calls of a message, under their present name or the old one; they are taken out of it."""
    calls = message.pop("tool_calls", None)
    old = message.pop("function_call", None)
    for name, found in (("tool_calls", calls), ("function_call", old)):
        if found and role != "assistant":
            raise RowError(f"{where}.{name}", f"only an assistant message can call tools, not a {role} message")
    if old is not None:
        if calls:
            raise RowError(f"{where}.function_call", "stands beside tool_calls; keep one of the two")
        return [normal_call(old, f"{where}.function_call")]
    if calls is None:
        return []
    if type(calls) is not list:
        raise RowError(f"{where}.tool_calls", f"must be a list of calls, but is {kind(calls)}")
    normal = [normal_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return calls if all(a is b for a, b in zip(calls, normal, strict=True)) else normal


def normal_call(given: Any, where: str) -> dict[str, Any]:
    """A tool call in normal form, from `{"function": {"name": …, "arguments": …}}` or what stands inside of it.

    Raises:
        RowError: it is neither.
    """
    if type(given) is not dict:
        raise RowError(where, f"must be an object with name and arguments, but is {kind(given)}")
    call = {name: value for name, value in given.items() if value is not None}
    _check_type_is_function(call, "call", where)
    if not isinstance(call.get("id", ""), str):
        raise RowError(f"{where}.id", f"must be text, but is {kind(call['id'])}")
    call = {"type": "function", **call}
    if "function" in call:
        where = f"{where}.function"
        inner = call["function"]
        if type(inner) is not dict:
            raise RowError(where, f"must be an object with name and arguments, but is {kind(inner)}")
        function = {name: value for name, value in inner.items() if value is not None}
    else:
        inner = {}
        function = {name: call.pop(name) for name in ("name", "arguments", "parameters") if name in call}
        call = {name: call.pop(name) for name in ("type", "id") if name in call} | call
    _check_name(function, "call", where)
    function["arguments"] = _arguments(function, f"{where}.arguments")
    call["function"] = _itself_if_same(inner, function)
    return _itself_if_same(given, call)


def _check_type_is_function(value: dict[str, Any], what: str, where: str) -> None:
    found = value.get("type", "function")
    if found != "function":
        shown = _quoted(found) if isinstance(found, str) else kind(found)
        raise RowError(f"{where}.type", f"must be 'function', but is {shown}; no other kind of {what} can be used")


def _check_name(function: dict[str, Any], what: str, where: str) -> None:
    if "name" not in function:
        raise RowError(f"{where}.name", f"is missing; the {what} has {columns(function)}")
    if not isinstance(function["name"], str):
        raise RowError(f"{where}.name", f"must be text, but is {kind(function['name'])}")
    if not function["name"]:
        raise RowError(f"{where}.name", "is empty")


def _arguments(function: dict[str, Any], where: str) -> str:
    """The arguments of a call as JSON text; text stays as it is, to the byte."""
    if "arguments" not in function:
        if "parameters" in function:
            raise RowError(where, f"is missing; the call has {columns(function)}")
        return "{}"
    given = function["arguments"]
    if type(given) is dict:
        return _as_json(given, where)
    if not isinstance(given, str):
        raise RowError(where, f"must be an object, or JSON text of one, but is {kind(given)}")
    if not given or given.isspace():
        return "{}"
    found = from_json_text(given, where, "an object, or JSON text of one")
    if type(found) is not dict:
        raise RowError(where, f"must be an object, or JSON text of one, but is JSON text of {kind(found)}")
    return given


def from_json_text(text: str, where: str, wanted: str) -> Any:
    """What a field that may hold JSON as text says.

    Raises:
        RowError: it is no JSON, but must be `wanted`.
    """
    check_text(text, where)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RowError(where, f"must be {wanted}, but is no JSON: {error.msg} at character {error.pos + 1}") from None


def normal_tools(given: Any, where: str = "tools") -> list[Tool]:
    """The tools of a conversation in normal form: a list, or JSON text of one; null, "" and [] are none.

    Null fields are left out, inside the parameters as well: tables fill the fields of all tools into each. Only a
    default of null stays where the parameter may be null.

    Raises:
        RowError: it is no list of tools, with the field (such as `tools[0].function.name`).
    """
    tools = given
    wanted = "a list of tools, or JSON text of one"
    if isinstance(tools, str):
        tools = from_json_text(tools, where, wanted) if tools and not tools.isspace() else None
        if tools is not None and type(tools) is not list:
            raise RowError(where, f"must be {wanted}, but is JSON text of {kind(tools)}")
    if tools is None:
        return []
    if type(tools) is not list:
        raise RowError(where, f"must be {wanted}, but is {kind(tools)}")
    check_writable(tools, where)
    normal = [_normal_tool(tool, f"{where}[{i}]") for i, tool in enumerate(tools)]
    return tools if all(a is b for a, b in zip(tools, normal, strict=True)) else normal


def _normal_tool(given: Any, where: str) -> Tool:
    if type(given) is not dict:
        raise RowError(where, f"must be an object with name, description and parameters, but is {kind(given)}")
    tool = {name: value for name, value in given.items() if value is not None}
    _check_type_is_function(tool, "tool", where)
    if "function" in tool:
        where = f"{where}.function"
        inner = tool["function"]
        if type(inner) is not dict:
            raise RowError(where, f"must be an object with name, description and parameters, but is {kind(inner)}")
        tool = {"type": "function", **tool}
    else:
        inner = {name: value for name, value in tool.items() if name != "type"}
        tool = {"type": "function"}
    function: dict[str, Any] = _without_nulls(inner)
    _check_name(function, "tool", where)
    if not isinstance(function.get("description", ""), str):
        raise RowError(f"{where}.description", f"must be text, but is {kind(function['description'])}")
    if type(function.get("parameters", {})) is not dict:
        raise RowError(
            f"{where}.parameters", f"must be an object (a JSON schema), but is {kind(function['parameters'])}"
        )
    tool["function"] = function
    return _itself_if_same(given, tool)


def _without_nulls(value: Any) -> Any:
    """`value` less the null fields of all objects in it, itself where there are none."""
    if type(value) is dict:
        kept = {
            name: _without_nulls(inner)
            for name, inner in value.items()
            if inner is not None or (name == "default" and _may_be_null(value))
        }
        return _itself_if_same(value, kept)
    if type(value) is list:
        elements = [_without_nulls(inner) for inner in value]
        return value if all(a is b for a, b in zip(value, elements, strict=True)) else elements
    return value


def _may_be_null(schema: dict[str, Any]) -> bool:
    """Whether null is a value that a JSON schema allows, by the ways that generators of schemas say so."""
    choices = [schema]
    for name in ("anyOf", "oneOf"):
        if type(schema.get(name)) is list:
            choices += [choice for choice in schema[name] if type(choice) is dict]
    types = [choice.get("type") for choice in choices]
    return schema.get("nullable") is True or any(t == "null" or (type(t) is list and "null" in t) for t in types)


def check_text(text: str, where: str) -> None:
    """Refuse what Python holds as text but no file can: half of a surrogate pair.

    Raises:
        RowError: there is one.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        shown = f"{ascii(text[at])[1:-1]} at character {at + 1}"
        raise RowError(where, f"holds half of a surrogate pair ({shown}), which is no character") from None


def check_writable(value: Any, where: str) -> None:
    """Refuse what could not be written as a part of a line of JSON.

    Raises:
        RowError: something in `value` could not.
    """
    try:
        # A line holds it inside other objects, which count where nesting has its limit.
        orjson.dumps([[value]], default=str)
    except orjson.JSONEncodeError as error:
        raise _not_writable(value, where, error) from None


def _as_json(value: Any, where: str) -> str:
    try:
        return orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError as error:
        raise _not_writable(value, where, error) from None


def _not_writable(value: Any, where: str, error: Exception) -> RowError:
    return _find_half_pair(value, where) or RowError(where, f"cannot be written as JSON: {error}")


def _find_half_pair(value: Any, where: str) -> RowError | None:
    # Not by recursion: what is nested too deep comes here as well.
    left = [(value, where)]
    while left:
        value, where = left.pop()
        if isinstance(value, str):
            try:
                check_text(value, where)
            except RowError as error:
                return error
        elif isinstance(value, dict):
            for name, inner in reversed(value.items()):
                left += [(inner, f"{where}.{name}"), (name, where)]
        elif isinstance(value, list):
            left += [(inner, f"{where}[{i}]") for i, inner in reversed(list(enumerate(value)))]
    return None


def kind(value: Any) -> str:
    """What JSON calls the type of `value`, in words."""
    names = {
        type(None): "null", dict: "an object", list: "a list", str: "text", bool: "true or false",
        int: "a number", float: "a number",
    }  # fmt: skip
    return names.get(type(value), f"of type {type(value).__name__}")


def columns(row: dict[str, Any]) -> str:
    """The names of the fields that `row` has, the first dozen."""
    return ", ".join(_quoted(str(key)) for key in islice(row, 12)) or "no fields"


def _quoted(text: str) -> str:
    """Text of the data in quotes, halves of surrogate pairs, which cannot be shown, by their numbers."""
    return f"'{text.encode(errors='backslashreplace').decode()}'"
