"""Rows become conversations: each format, each reason to refuse, and what `auto` finds."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.chat.records import Reader, Refused, RowError, explain_refusals, read_all, validate
from tinkertools.chat.sources import RawRow, find_source
from tinkertools.config import Format
from tinkertools.errors import DataError

LETTERS = {"system": "s", "user": "u", "assistant": "a"}

roles = st.sampled_from(["system", "user", "assistant"])
contents = st.sampled_from(["hello", "0", "\n.", "", " ", "\n\t"])
messages = st.fixed_dictionaries({"role": roles, "content": contents}, optional={"name": st.just("n")})
odd: st.SearchStrategy[Any] = st.sampled_from(
    [
        None, [], "user", {}, {"role": "user"}, {"content": "x"}, {"role": "User", "content": "x"},
        {"role": "tool", "content": "x"}, {"role": None, "content": "x"}, {"role": ["user"], "content": "x"},
        {"role": "user", "content": None}, {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "assistant", "content": 3}, {"role": "system", "content": None},
    ]
)  # fmt: skip


def can_be_trained_on(conversation: Any) -> bool:
    """The rules again, said another way: an optional system message, then the user, and an answer somewhere."""
    if not isinstance(conversation, list) or not all(isinstance(m, dict) for m in conversation):
        return False
    shape = "".join(LETTERS.get(str(m.get("role")), "?") for m in conversation)
    texts = [m.get("content") for m in conversation]
    spoken = [text for letter, text in zip(shape, texts, strict=True) if letter != "s"]
    return (
        re.fullmatch("s?u+a[ua]*", shape) is not None
        and all(isinstance(text, str) for text in texts)
        and all(re.search(r"\S", str(text)) for text in spoken)
    )


@given(st.lists(messages, max_size=5) | st.lists(messages | odd, max_size=5) | odd)
def test_validate_accepts_what_can_be_trained_on_and_nothing_else(conversation: Any) -> None:
    try:
        assert validate(conversation) is conversation
        accepted = True
    except RowError:
        accepted = False
    assert accepted == can_be_trained_on(conversation)


def said(*turns: str) -> list[dict[str, str]]:
    """Messages from `s:…`, `u:…` and `a:…`."""
    role_of = {letter: role for role, letter in LETTERS.items()}
    return [{"role": role_of[turn[0]], "content": turn[2:]} for turn in turns]


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    """A ShareGPT row."""
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in said]}


# Fields that are not understood stay as they are.
NAMED = [{"role": "user", "content": "q", "name": "n"}, {"role": "assistant", "content": "a", "score": 1}]


@pytest.mark.parametrize(
    ("row", "found", "expected"),
    [
        ({"messages": said("u:q", "a:a"), "id": 1}, "messages", said("u:q", "a:a")),
        ({"messages": said("s:", "u:q", "u:r", "a:a", "u:z")}, "messages", said("s:", "u:q", "u:r", "a:a", "u:z")),
        ({"messages": NAMED}, "messages", NAMED),
        (turns(("human", "q"), ("gpt", "a")), "sharegpt", said("u:q", "a:a")),
        (turns(("system", "s"), ("user", "q"), ("assistant", "a")), "sharegpt", said("s:s", "u:q", "a:a")),
        (turns(("human", "q"), ("bing", "a"), ("model", "b")), "sharegpt", said("u:q", "a:a", "a:b")),
        ({"system": "s", **turns(("human", "q"), ("chatgpt", "a"))}, "sharegpt", said("s:s", "u:q", "a:a")),
        ({"system": "", "tools": "[]", **turns(("human", "q"), ("bard", "a"))}, "sharegpt", said("u:q", "a:a")),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", said("u:q", "a:a")),
        ({"instruction": "q", "input": "x", "output": "a"}, "alpaca", said("u:q\n\nx", "a:a")),
        ({"instruction": "", "input": "x", "output": "a"}, "alpaca", said("u:x", "a:a")),
        ({"instruction": "q", "input": None, "output": "a", "system": "s"}, "alpaca", said("s:s", "u:q", "a:a")),
        ({"instruction": "q", "output": "a"}, "alpaca", said("u:q", "a:a")),
        ({"prompt": "q", "completion": " a"}, "prompt-completion", said("u:q", "a: a")),
        ({"prompt": said("u:q"), "completion": said("a:a")}, "prompt-completion", said("u:q", "a:a")),
        ({"question": "q", "answer": "a", "n": 1}, "prompt-completion", said("u:q", "a:a")),
        ({"instruction": "q", "response": "a"}, "prompt-completion", said("u:q", "a:a")),
        ({"query": "q", "response": "a"}, "prompt-completion", said("u:q", "a:a")),
        ({"problem": "q", "solution": "a"}, "prompt-completion", said("u:q", "a:a")),
        ({"input": "q", "output": "a"}, "prompt-completion", said("u:q", "a:a")),
    ],
)
def test_auto_finds_the_format(tmp_path: Path, row: dict[str, Any], found: str, expected: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(orjson.dumps(row))
    conversations, row_format = read_all(find_source(str(path)), 10)
    assert (row_format.name, conversations) == (found, [expected])


def one(role: Any, content: Any) -> dict[str, Any]:
    """A message with anything in it."""
    return {"role": role, "content": content}


FIRST = "the assistant speaks first; a user message must come before"
LATER = "messages cannot be used yet; only system, user and assistant can"
MESSAGES = [
    ("x", "messages: must be a list of messages, but is text"),
    ([], "messages: is empty"),
    (said("u:q"), "messages: no assistant message, so nothing to train on"),
    (["x"], "messages[0]: must be an object with role and content, but is text"),
    (said("a:a", "u:q"), f"messages[0].role: {FIRST}"),
    (said("s:s", "a:a"), f"messages[1].role: {FIRST}"),
    (said("u:q", "s:s", "a:a"), "messages[1].role: a system message must come first"),
    ([one("bot", "x")], "messages[0].role: unknown role 'bot'; known are system, user and assistant"),
    ([*said("u:q"), one("tool", "x")], f"messages[1].role: 'tool' {LATER}"),
    ([{"from": "human", "value": "x"}], "messages[0].role: is missing; the message has 'from', 'value'"),
    ([one(1, "x")], "messages[0].role: must be text, but is a number"),
    ([{"role": "user"}], "messages[0].content: is missing; the message has 'role'"),
    ([one("user", None)], "messages[0].content: must be text, but is null"),
    ([one("user", [{"type": "text", "text": "x"}])], "messages[0].content: must be text, but is a list"),
    (said("u:q", "a: \n"), "messages[1].content: the assistant message is empty"),
]
SHAREGPT = [
    ({"messages": []}, "conversations: is missing; the row has 'messages'"),
    ({"conversations": {}}, "conversations: must be a list of turns, but is an object"),
    ({"conversations": []}, "conversations: is empty"),
    ({"conversations": [1.5]}, "conversations[0]: must be an object with from and value, but is a number"),
    ({"conversations": [{"value": "x"}]}, "conversations[0].from: is missing; the message has 'value'"),
    ({"conversations": [{"from": "human"}]}, "conversations[0].value: is missing; the message has 'from'"),
    (turns(("human", "q")), "conversations: no assistant message, so nothing to train on"),
    (turns(("human", "q"), ("function_call", "x")), f"conversations[1].from: 'function_call' {LATER}"),
    (turns(("gpt", "a")), f"conversations[0].from: {FIRST}"),
    (turns(("human", True)), "conversations[0].value: must be text, but is true or false"),
    ({"system": "s", **turns(("human", ""))}, "conversations[0].value: the user message is empty"),
]
ALPACA = [
    ({"instruction": "q"}, "output: is missing; the row has 'instruction'"),
    ({"instruction": 1, "output": "a"}, "instruction: must be text, but is a number"),
    ({"instruction": "q", "input": {}, "output": "a"}, "input: must be text, but is an object"),
    ({"instruction": " ", "output": "a"}, "instruction: is empty"),
    ({"instruction": "q", "output": ""}, "output: is empty"),
]
PAIRS = [
    ({"prompt": "q"}, "completion: is missing; the row has 'prompt'"),
    ({"prompt": "", "completion": "a"}, "prompt: is empty"),
    ({"prompt": "q", "completion": "\n"}, "completion: is empty"),
    ({"prompt": "q", "completion": None}, "completion: must be text, but is null"),
    ({"prompt": [], "completion": "a"}, "prompt: must be text, but is a list"),
    ({"prompt": [], "completion": said("a:a")}, f"prompt+completion[0].role: {FIRST}"),
]
ROWS = [
    ({"text": "x", "id": 1}, "messages: is missing; the row has 'text', 'id'"),
    ({}, "messages: is missing; the row has no fields"),
    ([1], "row: must be an object with fields, but is a list"),
    (None, "row: must be an object with fields, but is null"),
]


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        *(("messages", row, expected) for row, expected in ROWS),
        *(("messages", {"messages": messages}, expected) for messages, expected in MESSAGES),
        *(("sharegpt", row, expected) for row, expected in SHAREGPT),
        *(("alpaca", row, expected) for row, expected in ALPACA),
        *(("prompt-completion", row, expected) for row, expected in PAIRS),
    ],
)
def test_a_refused_row_has_its_place_its_field_and_the_reason(
    tmp_path: Path, format: Format, row: Any, expected: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"{}\n" + orjson.dumps(row))
    reader = Reader(find_source(str(path)), format)
    assert str(list(reader.read())[1]) == f"{path}:2: {expected}"
    assert reader.rows_in == 2


@pytest.mark.parametrize(("bad", "found"), [(99, True), (100, False)])
def test_auto_looks_at_the_first_hundred_rows(tmp_path: Path, bad: int, found: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x":1}\n' * bad + b'{"question":"q","answer":"a"}\n')
    reader = Reader(find_source(str(path)))
    if found:
        items = list(reader.read())
        assert [isinstance(item, Refused) for item in items] == [True] * bad + [False]
        assert reader.format is not None
        assert reader.format.description == "pairs: 'question' asks, 'answer' answers"
    else:
        with pytest.raises(DataError) as stopped:
            list(reader.read())
        assert stopped.value.message == f"{path}:1: messages: no known format; the row has 'x'"
        assert stopped.value.hint == "name the columns: --prompt-column COLUMN --completion-column COLUMN"


def test_columns_with_any_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"Frage,messages,Antwort\nwas?,x,das\n")
    reader = Reader(find_source(str(path)), prompt_column="Frage", completion_column="Antwort")
    assert list(reader.read()) == [said("u:was?", "a:das")]
    assert reader.format is not None
    assert reader.format.description == "pairs: 'Frage' asks, 'Antwort' answers"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]"])
@pytest.mark.parametrize("format", ["auto", "messages"])
def test_no_rows(tmp_path: Path, content: bytes, format: Format) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="holds no rows"):
        list(Reader(find_source(str(path)), format).read())


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, ["1 row was refused:", "f:1: x: bad"]),
        (2, ["2 rows were refused:", "f:1: x: bad", "f:2: x: bad"]),
        (1234, ["1,234 rows were refused:", "f:1: x: bad", "f:2: x: bad", "… and 1,232 more"]),
    ],
)
def test_explain_refusals(total: int, expected: list[str]) -> None:
    shown = [Refused(RawRow("f", line, {}), "x", "bad") for line in range(1, min(total, 2) + 1)]
    assert explain_refusals(shown, total, "hint").message == "\n  ".join(expected)


def test_read_all_refuses_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt":"q","completion":"a"}\n' + b'{"prompt":"q"}\n' * 3)
    with pytest.raises(DataError) as stopped:
        read_all(find_source(str(path)), 2)
    reason = "completion: is missing; the row has 'prompt'"
    assert stopped.value.message == (
        f"3 rows were refused:\n  {path}:2: {reason}\n  {path}:3: {reason}\n  … and 1 more"
    )
    assert stopped.value.hint == f"leave them out: tt prepare --dataset {path} --skip-bad --output CLEAN.jsonl"
