"""The normal form of conversations: what becomes what, what is refused and why, and what passes through untouched."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import orjson
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkertools.chat.conversations import RowError, normal_call, normal_tools, validate

LETTERS = {"system": "s", "user": "u", "assistant": "a", "developer": "d", "tool": "t"}

roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
contents = st.sampled_from(["hello", "0", "\n.", "é", "", " ", "\n\t"])
messages = st.fixed_dictionaries({"role": roles, "content": contents}, optional={"name": st.just("n")})
odd: st.SearchStrategy[Any] = st.sampled_from(
    [
        None, [], "user", {}, {"role": "user"}, {"content": "x"}, {"role": "User", "content": "x"},
        {"role": None, "content": "x"}, {"role": ["user"], "content": "x"}, {"role": "user", "content": None},
        {"role": "user", "content": {"type": "text", "text": "x"}}, {"role": "assistant", "content": 3},
        {"role": "system", "content": None}, {"role": "user", "content": "\ud800"},
    ]
)  # fmt: skip


def can_be_trained_on(conversation: Any) -> bool:
    """The rules for messages of text, said another way: instructions, then the user, and an answer somewhere."""
    if not isinstance(conversation, list) or not all(isinstance(m, dict) for m in conversation):
        return False
    shape = "".join(LETTERS.get(str(m.get("role")), "?") for m in conversation)
    texts = [m.get("content") for m in conversation]
    spoken = [text for letter, text in zip(shape, texts, strict=True) if letter in "ua"]
    return (
        re.fullmatch("s?d?u+a[ua]*", shape) is not None
        and all(isinstance(text, str) and text.isprintable() | text.isspace() | ("\n" in text) for text in texts)
        and all(re.search(r"\S", str(text)) for text in spoken)
    )


@settings(max_examples=300)
@given(st.lists(messages, max_size=5) | st.lists(messages | odd, max_size=5) | odd)
def test_text_is_accepted_where_it_can_be_trained_on_and_passed_through(conversation: Any) -> None:
    try:
        assert validate(conversation) is conversation
        accepted = True
    except RowError:
        accepted = False
    assert accepted == can_be_trained_on(conversation)


ASK = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def call(arguments: Any = '{"a": 1}', name: Any = "f", **more: Any) -> dict[str, Any]:
    """A tool call."""
    return {"type": "function", **more, "function": {"name": name, "arguments": arguments}}


def calling(*calls: Any, content: Any = "", **more: Any) -> dict[str, Any]:
    """An assistant message that calls tools."""
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def text(value: str, kind: str = "text") -> dict[str, Any]:
    """A part of text."""
    return {"type": kind, "text": value}


IMAGES: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    {"type": "image_url", "image_url": "a.png"},
    {"type": "image", "image": "a.png", "min_pixels": 3},
]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        # Parts of text are joined as they are.
        ({"role": "user", "content": [text("a"), text("b\n"), text("c")]}, {"role": "user", "content": "ab\nc"}),
        ({"role": "user", "content": ["a", text(" b", "input_text")]}, {"role": "user", "content": "a b"}),
        ({"role": "user", "content": [{**text("a"), "cache_control": {}}]}, {"role": "user", "content": "a"}),
        ({"role": "user", "content": [{**text("a"), "image_url": None}]}, {"role": "user", "content": "a"}),
        (
            {"role": "assistant", "content": [text("x", "output_text"), {**text("y"), "annotations": []}]},
            {"role": "assistant", "content": "xy"},
        ),
        # Images stay in their places.
        (
            {"role": "user", "content": ["look ", IMAGES[0], text("!", "input_text"), IMAGES[2]]},
            {"role": "user", "content": [text("look "), IMAGES[0], text("!"), IMAGES[2]]},
        ),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "u", "detail": None}, "text": None}],
            },
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        ),
        # Reasoning under all its names.
        ({**ANSWER, "reasoning": "r"}, {**ANSWER, "reasoning_content": "r"}),
        ({**ANSWER, "thinking": "r"}, {**ANSWER, "reasoning_content": "r"}),
        ({**ANSWER, "thinking": "r", "reasoning_content": "r"}, {**ANSWER, "reasoning_content": "r"}),
        ({**ANSWER, "reasoning": "r", "reasoning_content": ""}, {**ANSWER, "reasoning_content": "r"}),
        ({**ANSWER, "reasoning": "", "thinking": None}, ANSWER),
        ({**ANSWER, "reasoning_content": ""}, ANSWER),
        ({**ANSWER, "thinking": True}, {**ANSWER, "thinking": True}),
        ({**ANSWER, "content": "<think>r</think>a"}, {**ANSWER, "content": "<think>r</think>a"}),
        (
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "r1", "signature": "s"},
                    text("a"),
                    {"type": "reasoning", "text": " r2"},
                    {"type": "reasoning", "reasoning": " r3", "text": None},
                    text("b"),
                ],
            },
            {"role": "assistant", "content": "ab", "reasoning_content": "r1 r2 r3"},
        ),
        (
            {"role": "assistant", "content": [{"type": "thinking", "thinking": ""}, text("a")]},
            {"role": "assistant", "content": "a"},
        ),
        # Tool calls: text of arguments to the byte, objects in their order.
        (calling(call(' {"b":1.0,\n"a":"\\u00e9"}')), calling(call(' {"b":1.0,\n"a":"\\u00e9"}'))),
        (calling(call({"b": None, "a": ["é", {}]})), calling(call('{"b":null,"a":["é",{}]}'))),
        (calling(call({})), calling(call("{}"))),
        (calling(call("")), calling(call("{}"))),
        (calling(call(" \n")), calling(call("{}"))),
        (calling(call(None)), calling(call("{}"))),
        (calling({"function": {"name": "f"}}), calling(call("{}"))),
        (calling({"name": "f", "arguments": {"a": 1}, "id": "1"}), calling(call('{"a":1}', id="1"))),
        (calling(call(id=None), call(index=0)), calling(call(), call(index=0))),
        (calling({**call(), "function": {"name": "f", "arguments": "{}", "x": None}}), calling(call("{}"))),
        ({"role": "assistant", "tool_calls": [call()]}, calling(call())),
        (calling(call(), content=None), calling(call())),
        (calling(call(), content=[]), calling(call())),
        (calling(call(), content=" "), calling(call(), content=" ")),
        ({**calling(call(), content=None), "reasoning": "r"}, calling(call(), reasoning_content="r")),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            calling(call("{}")),
        ),
        ({**ANSWER, "tool_calls": [], "function_call": None}, ANSWER),
        ({**ASK, "tool_calls": []}, ASK),
        # What says how much a message is trained, and what is not understood.
        (
            {**ANSWER, "trainable": False, "weight": 0, "loss_weight": 0.5, "name": "n"},
            {**ANSWER, "trainable": False, "weight": 0, "loss_weight": 0.5, "name": "n"},
        ),
        ({**ANSWER, "weight": None, "score": None, "refusal": None}, ANSWER),
        ({**ANSWER, "odd": [{"a": None}], "tool_call_id": 3}, {**ANSWER, "odd": [{"a": None}], "tool_call_id": 3}),
    ],
)
def test_a_message_becomes(message: dict[str, Any], expected: dict[str, Any]) -> None:
    row = [message, ANSWER] if message["role"] == "user" else [ASK, message]
    before = copy.deepcopy(row)
    found = validate(row)
    assert found[row.index(message)] == expected
    assert row == before
    # What is in normal form is the very same object.
    assert validate(found) is found


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"role": "tool", "content": ""}, ""),
        ({"role": "tool", "content": "x", "tool_call_id": "1", "name": "f"}, "x"),
        ({"role": "function", "content": "x", "name": "f"}, "x"),
        ({"role": "ipython", "content": "x"}, "x"),
        ({"role": "observation", "content": "x"}, "x"),
        ({"role": "tool", "content": {"b": None, "a": [1.5, "é"]}}, '{"b":null,"a":[1.5,"é"]}'),
        ({"role": "tool", "content": []}, "[]"),
        ({"role": "tool", "content": ["a", "b"]}, '["a","b"]'),
        ({"role": "tool", "content": [{"type": "fire", "name": "n"}]}, '[{"type":"fire","name":"n"}]'),
        ({"role": "tool", "content": [{"type": "image", "name": "cat"}]}, '[{"type":"image","name":"cat"}]'),
        ({"role": "tool", "content": [{"type": ["text"], "text": "n"}]}, '[{"type":["text"],"text":"n"}]'),
        ({"role": "tool", "content": [text("a"), "b", text("c")]}, "abc"),
        ({"role": "tool", "content": [text("a"), IMAGES[0]]}, [text("a"), IMAGES[0]]),
    ],
)
def test_the_answer_of_a_tool_becomes(message: dict[str, Any], content: Any) -> None:
    row = [ASK, calling(call()), message, {**message}, ANSWER]
    found = validate(row)
    assert found[2] == found[3] == {**message, "role": "tool", "content": content}
    assert found[0] is ASK
    assert found[4] is ANSWER
    assert validate(found) is found


def test_images_pass_through() -> None:
    row = [
        {"role": "system", "content": [text("look"), IMAGES[0]]},
        {"role": "user", "content": [*IMAGES, text(" ")]},
        ANSWER,
        {"role": "user", "content": IMAGES[:1]},
        ANSWER,
    ]
    assert validate(row) is row


@pytest.mark.parametrize(
    "shape", ["ua", "uaua", "uuaa", "sua", "dua", "sdua", "uTta", "uTtTta", "uTtt", "uTa", "uTuTta", "suaTtua"]
)
def test_orders_of_messages_that_are_used(shape: str) -> None:
    row = [calling(call()) if c == "T" else {"role": role_of(c), "content": "x"} for c in shape]
    assert validate(row) is row


def role_of(letter: str) -> str:
    """The role that a letter stands for."""
    return next(role for role, short in LETTERS.items() if short == letter)


FIRST = "the assistant speaks first; a user message must come before"
NO_CALL = "a tool message answers an assistant message with tool_calls, and none stands before this one"
DEVELOPER = "a developer message must come first or after a system message"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("u", "messages: no assistant message, so nothing to train on"),
        ("sd", "messages: no assistant message, so nothing to train on"),
        ("au", f"messages[0].role: {FIRST}"),
        ("Tta", f"messages[0].role: {FIRST}"),
        ("sda", f"messages[2].role: {FIRST}"),
        ("ssua", "messages[1].role: a system message must come first"),
        ("dsua", "messages[1].role: a system message must come first"),
        ("uas", "messages[2].role: a system message must come first"),
        ("ddua", f"messages[1].role: {DEVELOPER}"),
        ("sddua", f"messages[2].role: {DEVELOPER}"),
        ("uda", f"messages[1].role: {DEVELOPER}"),
        ("tua", f"messages[0].role: {NO_CALL}"),
        ("uta", f"messages[1].role: {NO_CALL}"),
        ("uat", f"messages[2].role: {NO_CALL}"),
        ("uTuta", f"messages[3].role: {NO_CALL}"),
        ("uTtat", f"messages[4].role: {NO_CALL}"),
    ],
)
def test_orders_of_messages_that_are_refused(shape: str, expected: str) -> None:
    with pytest.raises(RowError, match=f"^{re.escape(expected)}$"):
        validate([calling(call()) if c == "T" else {"role": role_of(c), "content": "x"} for c in shape])


KNOWN = "known are system, developer, user, assistant and tool"
USER_PARTS = "parts of user messages may be text, image_url and image"
ANSWER_PARTS = "parts of assistant messages may be text, thinking and reasoning"
ARGUMENTS = "must be an object, or JSON text of one, but is"
ONLY_REASONING = "the assistant message has reasoning, but neither text nor tool_calls"
EMPTY: list[Any] = [None, "", "\t", []]
NUMBER = "must be a number of 0 or more, but is"


def half(where: str, code: str, character: int) -> str:
    """What is said of half of a surrogate pair."""
    return f"{where}: holds half of a surrogate pair (\\{code} at character {character}), which is no character"


DEEP: list[Any] = []
for _ in range(400):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("x", ": must be an object with role and content, but is text"),
        ({}, ".role: is missing; the message has no fields"),
        ({"from": "human", "value": "x"}, ".role: is missing; the message has 'from', 'value'"),
        ({"role": None, "content": "x"}, ".role: must be text, but is null"),
        ({"role": ["user"], "content": "x"}, ".role: must be text, but is a list"),
        ({"role": "bot", "content": "x"}, f".role: unknown role 'bot'; {KNOWN}"),
        ({"role": "\ud800", "content": "x"}, f".role: unknown role '\\ud800'; {KNOWN}"),
        ({"role": "user"}, ".content: is missing; the message has 'role'"),
        ({"role": "user", "content": None}, ".content: must be text or a list of parts, but is null"),
        ({"role": "user", "content": {}}, ".content: must be text or a list of parts, but is an object"),
        ({"role": "assistant", "content": None}, ".content: must be text or a list of parts, but is null"),
        ({"role": "assistant", "content": 7}, ".content: must be text or a list of parts, but is a number"),
        ({"role": "tool", "content": 7}, ".content: must be text, a list or an object, but is a number"),
        ({"role": "function", "content": None}, ".content: must be text, a list or an object, but is null"),
        ({"role": "user", "content": " \n"}, ".content: the user message is empty"),
        ({"role": "user", "content": []}, ".content: the user message is empty"),
        ({"role": "user", "content": [text(" "), text("")]}, ".content: the user message is empty"),
        ({"role": "assistant", "content": ""}, ".content: the assistant message is empty"),
        ({"role": "assistant", "content": "", "tool_calls": []}, ".content: the assistant message is empty"),
        *(({"role": "assistant", "content": c, "reasoning": "r"}, f".content: {ONLY_REASONING}") for c in EMPTY),
        (
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "r"}]},
            f".content: {ONLY_REASONING}",
        ),
        ({"role": "user", "content": [1]}, ".content[0]: must be text or an object with a type, but is a number"),
        ({"role": "user", "content": [None]}, ".content[0]: must be text or an object with a type, but is null"),
        ({"role": "user", "content": ["a", {"text": "b"}]}, ".content[1].type: is missing; the part has 'text'"),
        ({"role": "user", "content": [{"type": 1}]}, ".content[0].type: must be text, but is a number"),
        ({"role": "user", "content": [{"type": "video"}]}, f".content[0].type: unknown part 'video'; {USER_PARTS}"),
        (
            {"role": "user", "content": [{"type": "thinking", "thinking": "r"}]},
            f".content[0].type: unknown part 'thinking'; {USER_PARTS}",
        ),
        (
            {"role": "assistant", "content": [{"type": "tool_use"}]},
            f".content[0].type: unknown part 'tool_use'; {ANSWER_PARTS}",
        ),
        (
            {"role": "assistant", "content": ["x", IMAGES[0]]},
            ".content[1].type: an assistant message cannot hold an image",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text: is missing; the part has 'type'"),
        ({"role": "user", "content": [text(1)]}, ".content[0].text: must be text, but is a number"),  # type: ignore[arg-type]
        (
            {"role": "assistant", "content": [{"type": "reasoning", "summary": []}]},
            ".content[0].text: is missing; the part has 'type', 'summary'",
        ),
        (
            {"role": "assistant", "content": [{"type": "thinking", "thinking": ["r"]}]},
            ".content[0].thinking: must be text, but is a list",
        ),
        ({"role": "user", "content": [{"type": "image"}]}, ".content[0].image: is missing; the part has 'type'"),
        (
            {"role": "user", "content": [{"type": "image", "image": {"path": "a", "url": None}}]},
            ".content[0].image.url: is missing; the image has 'path'",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": [1]}]},
            ".content[0].image_url: must be text (a URL, a data URL or a path), but is a list",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]},
            ".content[0].image_url.url: is empty; it must be a URL, a data URL or a path",
        ),
        ({**ANSWER, "reasoning_content": ["r"]}, ".reasoning_content: must be text, but is a list"),
        (
            {**ANSWER, "reasoning_content": "r", "thinking": "s"},
            ".thinking: holds other reasoning than reasoning_content; keep one of the two",
        ),
        (
            {**ANSWER, "content": ["a", {"type": "thinking", "thinking": "s"}], "reasoning": "r"},
            ".content: holds other reasoning than reasoning; keep one of the two",
        ),
        ({**ASK, "name": 1}, ".name: must be text, but is a number"),
        ({"role": "tool", "content": "", "tool_call_id": 1}, ".tool_call_id: must be text, but is a number"),
        ({**ANSWER, "trainable": 1}, ".trainable: must be true or false, but is a number"),
        ({**ANSWER, "trainable": "no"}, ".trainable: must be true or false, but is text"),
        ({**ANSWER, "weight": True}, f".weight: {NUMBER} true or false"),
        ({**ANSWER, "weight": "1"}, f".weight: {NUMBER} text"),
        ({**ANSWER, "weight": -1}, f".weight: {NUMBER} -1"),
        ({**ANSWER, "loss_weight": float("nan")}, f".loss_weight: {NUMBER} nan"),
        ({**ANSWER, "loss_weight": float("inf")}, f".loss_weight: {NUMBER} inf"),
        (
            {**ASK, "tool_calls": [call()]},
            ".tool_calls: only an assistant message can call tools, not a user message",
        ),
        (
            {**ASK, "function_call": {"name": "f"}},
            ".function_call: only an assistant message can call tools, not a user message",
        ),
        (
            {**calling(call()), "function_call": {"name": "f"}},
            ".function_call: stands beside tool_calls; keep one of the two",
        ),
        ({**ANSWER, "function_call": {}}, ".function_call.name: is missing; the call has no fields"),
        ({**ANSWER, "tool_calls": "[]"}, ".tool_calls: must be a list of calls, but is text"),
        (calling("f"), ".tool_calls[0]: must be an object with name and arguments, but is text"),
        (
            calling(call(), {**call(), "type": "custom"}),
            ".tool_calls[1].type: must be 'function', but is 'custom'; no other kind of call can be used",
        ),
        (
            calling({**call(), "type": 1}),
            ".tool_calls[0].type: must be 'function', but is a number; no other kind of call can be used",
        ),
        (calling(call(id=1)), ".tool_calls[0].id: must be text, but is a number"),
        (
            calling({"function": "f"}),
            ".tool_calls[0].function: must be an object with name and arguments, but is text",
        ),
        (
            calling({"function": {"arguments": "{}"}}),
            ".tool_calls[0].function.name: is missing; the call has 'arguments'",
        ),
        (calling(call(name=1)), ".tool_calls[0].function.name: must be text, but is a number"),
        (calling(call(name="")), ".tool_calls[0].function.name: is empty"),
        (
            calling({"name": "f", "parameters": {}}),
            ".tool_calls[0].arguments: is missing; the call has 'name', 'parameters'",
        ),
        (calling(call([])), f".tool_calls[0].function.arguments: {ARGUMENTS} a list"),
        (calling(call("[1]")), f".tool_calls[0].function.arguments: {ARGUMENTS} JSON text of a list"),
        (calling(call("null")), f".tool_calls[0].function.arguments: {ARGUMENTS} JSON text of null"),
        (
            calling(call("{'a': 1}")),
            f".tool_calls[0].function.arguments: {ARGUMENTS} no JSON: unexpected character, expected a string key at "
            "character 2",
        ),
        # What Python can hold and no file can.
        ({**ASK, "content": "é\ud83d"}, half(".content", "ud83d", 2)),
        (
            {**ASK, "content": [text("é"), text("\udc00")]},
            half(".content", "udc00", 2),
        ),
        (
            {**ASK, "content": [text("\ud800"), IMAGES[0]]},
            half(".content[0].text", "ud800", 1),
        ),
        (
            {**ASK, "extra": {"a": [0, {"\udfff": 1}]}},
            half(".extra.a[1]", "udfff", 1),
        ),
        (
            calling(call({"a": "\ud800"})),
            half(".tool_calls[0].function.arguments.a", "ud800", 1),
        ),
        (
            calling(call('{"a": "\ud800"}')),
            half(".tool_calls[0].function.arguments", "ud800", 8),
        ),
    ],
)
def test_a_message_is_refused(message: Any, expected: str) -> None:
    role = message.get("role") if isinstance(message, dict) else None
    before = [ASK, calling(call())] if role in ("tool", "function") else [ASK]
    with pytest.raises(RowError) as refused:
        validate([*before, message, ANSWER])
    assert str(refused.value) == f"messages[{len(before)}]{expected}"


@pytest.mark.parametrize(
    "message",
    [
        {**ASK, "extra": DEEP},
        {**ASK, "extra": 2**64},
        {"role": "assistant", "content": "a", "tool_calls": [call({"a": DEEP})]},
    ],
    ids=["deep", "number", "arguments"],
)
def test_what_cannot_be_written_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=r"^messages.*: cannot be written as JSON: "):
        validate([ASK, message, ANSWER])


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("x", "prompt: must be a list of messages, but is text"),
        ([], "prompt: is empty"),
        ([ASK, {"role": "user", "content": ""}], "prompt[1].content: the user message is empty"),
    ],
)
def test_the_field_is_named_as_it_is_asked_for(messages: Any, expected: str) -> None:
    with pytest.raises(RowError, match=f"^{re.escape(expected)}$"):
        validate(messages, "prompt")


def tool(name: str = "f", **more: Any) -> dict[str, Any]:
    """A tool in normal form."""
    return {"type": "function", "function": {"name": name, **more}}


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NULLABLE = {
    "a": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    "b": {"type": ["integer", "null"], "default": None},
    "c": {"type": "string", "nullable": True, "default": None},
    "d": {"enum": [None, "x"], "type": "null", "default": None},
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, []),
        ("", []),
        (" \n", []),
        ([], []),
        ("[]", []),
        ("null", []),
        ([tool()], [tool()]),
        ([{"name": "f"}], [tool()]),
        ([{"type": "function", "name": "f", "strict": True}], [tool(strict=True)]),
        ([{"function": {"name": "f"}}], [tool()]),
        ([tool(description=None, parameters=SCHEMA), {"name": "g"}], [tool(parameters=SCHEMA), tool("g")]),
        ([{**tool(), "strict": None, "x": 1}], [{**tool(), "x": 1}]),
        (
            json.dumps([{"name": "f", "description": "d", "parameters": SCHEMA}]),
            [tool(description="d", parameters=SCHEMA)],
        ),
        (
            [tool(parameters={"properties": {"a": {"type": "string", "enum": None, "default": None}, "b": None}})],
            [tool(parameters={"properties": {"a": {"type": "string"}}})],
        ),
        ([tool(parameters={"properties": NULLABLE})], [tool(parameters={"properties": NULLABLE})]),
    ],
)
def test_tools_become(given: Any, expected: list[Any]) -> None:
    before = copy.deepcopy(given)
    found = normal_tools(given)
    assert found == expected
    assert given == before
    assert normal_tools(found) is found
    assert normal_tools(orjson.dumps(found).decode()) == found


NO_OTHER = "no other kind of tool can be used"
LIST = "must be a list of tools, or JSON text of one, but is"
PARTS = "must be an object with name, description and parameters, but is"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, f"tools: {LIST} an object"),
        (True, f"tools: {LIST} true or false"),
        ("hammer", f"tools: {LIST} no JSON: unexpected character, expected a JSON value at character 1"),
        ('{"name": "f"}', f"tools: {LIST} JSON text of an object"),
        ("[\ud800]", half("tools", "ud800", 2)),
        (["f"], f"tools[0]: {PARTS} text"),
        ([tool(), None], f"tools[1]: {PARTS} null"),
        ([{"type": "web_search"}], f"tools[0].type: must be 'function', but is 'web_search'; {NO_OTHER}"),
        ([{"type": "function", "function": "f"}], f"tools[0].function: {PARTS} text"),
        ([tool(name="")], "tools[0].function.name: is empty"),
        ([{"function": {"description": "d"}}], "tools[0].function.name: is missing; the tool has 'description'"),
        ([{"description": "d"}], "tools[0].name: is missing; the tool has 'description'"),
        ([{"name": 1}], "tools[0].name: must be text, but is a number"),
        ([tool(description=1)], "tools[0].function.description: must be text, but is a number"),
        ([tool(parameters="{}")], "tools[0].function.parameters: must be an object (a JSON schema), but is text"),
        (
            [{"name": "f", "description": "\ud800"}],
            half("tools[0].description", "ud800", 1),
        ),
        ([{"name": "f", "parameters": {"a": DEEP}}], "tools: cannot be written as JSON: Recursion limit reached"),
    ],
)
def test_tools_are_refused(given: Any, expected: str) -> None:
    with pytest.raises(RowError) as refused:
        normal_tools(given)
    assert str(refused.value) == expected


def test_a_call_may_be_nested_as_deep_as_a_line_allows() -> None:
    value: Any = {}
    deepest = 0
    for depth in range(1, 300):
        value = {"a": value}
        try:
            validate([ASK, {**ANSWER, "extra": value}])
        except RowError:
            break
        orjson.dumps({"messages": [ASK, {**ANSWER, "extra": value}]})
        deepest = depth
    assert deepest > 200


# Anything that a message may hold, in any of its forms.
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5).filter(lambda t: not t.isspace())
any_text = st.text(st.characters(codec="utf-8"), max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | any_text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(any_text, inner, max_size=2),
    max_leaves=4,
)
objects = st.dictionaries(any_text, json_values, max_size=3)
argument_forms = objects | objects.map(lambda o: json.dumps(o, indent=1)) | st.sampled_from(["", " "])
functions = st.fixed_dictionaries({"name": words, "arguments": argument_forms})
calls = functions | st.fixed_dictionaries(
    {"function": functions}, optional={"type": st.just("function"), "id": any_text, "index": st.integers(0, 9)}
)
text_parts = any_text | st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text"]), "text": any_text})
image_parts = st.sampled_from(IMAGES)
extras: dict[Any, Any] = {"name": any_text, "weight": st.floats(0, 9), "trainable": st.booleans(), "x": objects}
thoughts = st.fixed_dictionaries({"type": st.just("thinking"), "thinking": any_text})
asking = st.fixed_dictionaries(
    {
        "role": st.just("user"),
        "content": words | st.lists(text_parts | image_parts, max_size=3).map(lambda p: [*p, "?"]),
    },
    optional=extras,
)
answering = st.fixed_dictionaries(
    {
        "role": st.just("assistant"),
        "content": words | st.lists(text_parts | thoughts, max_size=3).map(lambda p: [*p, "!"]),
    },
    optional=extras | {"tool_calls": st.lists(calls, max_size=2)},
)
using = st.fixed_dictionaries(
    {
        "role": st.just("assistant"),
        "content": st.none() | any_text,
        "tool_calls": st.lists(calls, min_size=1, max_size=2),
    },
    optional=extras | {"reasoning": any_text},
)
tool_answering = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["tool", "function", "observation"]),
        "content": any_text | objects | st.lists(json_values),
    },
    optional={"tool_call_id": any_text, "name": any_text},
)
exchanges = st.tuples(asking, answering) | st.tuples(asking, using, tool_answering, tool_answering, answering)
conversations = st.lists(exchanges, min_size=1, max_size=2).map(lambda found: [m for part in found for m in part])


@given(conversations)
def test_the_normal_form_of_the_normal_form_is_itself(row: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(row)
    found = validate(row)
    assert row == before
    assert validate(found) is found
    written = orjson.dumps(found)
    again = validate(orjson.loads(written))
    assert again == found
    assert orjson.dumps(again) == written


@given(conversations)
def test_every_message_has_what_later_stages_rely_on(row: list[dict[str, Any]]) -> None:
    for message in validate(row):
        assert message["role"] in LETTERS
        assert None not in message.values()
        if isinstance(message["content"], list):
            assert message["role"] == "user"
            assert any(part["type"] in ("image", "image_url") for part in message["content"])
        else:
            assert isinstance(message["content"], str)
        assert isinstance(message.get("reasoning_content", "r"), str)
        assert message.get("reasoning_content") != ""
        assert message.get("tool_calls") != []
        for made in message.get("tool_calls", []):
            assert made["type"] == "function"
            assert isinstance(made["function"]["name"], str)
            assert isinstance(orjson.loads(made["function"]["arguments"]), dict)


FILLERS = {
    "message": ["name", "tool_calls", "function_call", "tool_call_id", "reasoning", "weight", "trainable", "odd"],
    "call": ["id", "type", "index"],
    "function": ["description"],
    "part": ["image_url", "image", "thinking", "cache_control"],
}


def filled(row: list[dict[str, Any]], choose: Callable[[list[str]], list[str]]) -> list[dict[str, Any]]:
    """The row with null in fields that are not there, as tables have it."""

    def fill(value: dict[str, Any], kind: str) -> dict[str, Any]:
        return {**dict.fromkeys(choose(FILLERS[kind])), **value}

    filled_row = []
    for message in (fill(message, "message") for message in row):
        if isinstance(message["content"], list) and message["role"] in ("user", "assistant"):
            message["content"] = [fill(p, "part") if isinstance(p, dict) else p for p in message["content"]]
        if message.get("tool_calls"):
            message["tool_calls"] = [
                fill({**c, "function": fill(c["function"], "function")} if "function" in c else c, "call")
                for c in message["tool_calls"]
            ]
        filled_row.append(message)
    return filled_row


@given(data=st.data(), row=conversations)
def test_null_fields_mean_nothing(data: st.DataObject, row: list[dict[str, Any]]) -> None:
    with_nulls = filled(row, lambda names: data.draw(st.lists(st.sampled_from(names), unique=True)))
    assert validate(with_nulls) == validate(row)


# What a table can hold: each field of one type.
table_calls = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": words, "arguments": objects.map(json.dumps)}),
    },
    optional={"id": any_text},
)
table_messages = {
    "ask": st.fixed_dictionaries({"role": st.just("user"), "content": words}, optional={"name": words}),
    "use": st.fixed_dictionaries(
        {"role": st.just("assistant"), "tool_calls": st.lists(table_calls, min_size=1, max_size=2)},
        optional={"content": st.none() | any_text, "reasoning_content": any_text},
    ),
    "tool": st.fixed_dictionaries({"role": st.just("tool"), "content": any_text}, optional={"tool_call_id": words}),
    "answer": st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": words},
        optional={"reasoning": words, "weight": st.floats(0, 1), "tool_calls": st.just([])},
    ),
}
table_tools = st.lists(
    st.fixed_dictionaries(
        {"name": words},
        optional={
            "description": any_text,
            "parameters": st.fixed_dictionaries(
                {"type": st.just("object")},
                optional={
                    "properties": st.dictionaries(words, st.just({"type": "string"}), max_size=3),
                    "required": st.lists(words, max_size=2),
                },
            ),
        },
    ),
    max_size=2,
)
table_rows = st.fixed_dictionaries(
    {
        "messages": st.sampled_from([("ask", "answer"), ("ask", "use", "tool", "answer"), ("ask", "use")]).flatmap(
            lambda shape: st.tuples(*(table_messages[name] for name in shape)).map(list)
        )
    },
    optional={"tools": table_tools},
)


@given(st.lists(table_rows, min_size=1, max_size=4))
def test_a_table_of_mixed_rows_gives_the_same_conversations(rows: list[dict[str, Any]]) -> None:
    # The columns of the table are those of its first row.
    from_table = pyarrow.Table.from_pylist([{"tools": None, **row} for row in rows]).to_pylist()
    for row, found in zip(rows, from_table, strict=True):
        assert validate(found["messages"]) == validate(row["messages"])
        assert normal_tools(found.get("tools")) == normal_tools(row.get("tools"))


@given(functions | calls)
def test_a_call_is_the_same_in_all_its_forms(made: dict[str, Any]) -> None:
    inner = made.get("function", made)
    found = normal_call(made, "x")["function"]
    arguments = inner["arguments"]
    expected = arguments if isinstance(arguments, dict) else json.loads(arguments if arguments.strip() else "{}")
    assert (found["name"], json.loads(found["arguments"])) == (inner["name"], expected)
    if isinstance(arguments, str) and arguments.strip():
        assert found["arguments"] == arguments
    else:
        assert list(json.loads(found["arguments"])) == list(expected)
