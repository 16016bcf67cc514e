"""Rows become conversations: each format, each reason to refuse, and what `auto` finds."""

import copy
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.chat.records import (
    Conversation,
    Reader,
    Refused,
    RowError,
    explain_refusals,
    known_format,
    read_all,
)
from tinkertools.chat.sources import RawRow, find_source
from tinkertools.config import Format
from tinkertools.errors import DataError

LETTERS = {"system": "s", "user": "u", "assistant": "a", "developer": "d"}


def said(*turns: str) -> list[dict[str, str]]:
    """Messages from `s:…`, `u:…` and `a:…`."""
    role_of = {letter: role for role, letter in LETTERS.items()}
    return [{"role": role_of[turn[0]], "content": turn[2:]} for turn in turns]


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    """A ShareGPT row."""
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in said]}


def using(*calls: tuple[str, str]) -> dict[str, Any]:
    """An assistant message that calls tools, each a name and arguments."""
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def tool_says(content: str) -> dict[str, Any]:
    """A tool's message."""
    return {"role": "tool", "content": content}


# Fields that are not understood stay as they are.
NAMED = [{"role": "user", "content": "q", "name": "n"}, {"role": "assistant", "content": "a", "score": 1}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


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
    assert (row_format.name, conversations) == (found, [{"messages": expected}])


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        # Beside the messages of every format there may be tools.
        ("messages", {"messages": said("u:q", "a:a"), "tools": TOOLS}, {"tools": TOOLS}),
        ("messages", {"tools": None, "messages": said("u:q", "a:a"), "functions": '[{"name":"f"}]'}, {"tools": TOOLS}),
        ("messages", {"messages": said("u:q", "a:a"), "tools": [{"name": "f"}], "functions": TOOLS}, {"tools": TOOLS}),
        ("messages", {"messages": said("u:q", "a:a"), "tools": "", "functions": []}, {}),
        ("sharegpt", {**turns(("human", "q"), ("gpt", "a")), "tools": '[{"name": "f"}]'}, {"tools": TOOLS}),
        ("alpaca", {"instruction": "q", "output": "a", "tools": [{"name": "f", "parameters": None}]}, {"tools": TOOLS}),
        ("prompt-completion", {"prompt": "q", "completion": "a", "functions": TOOLS}, {"tools": TOOLS}),
        ("prompt-completion", {"prompt": said("u:q"), "completion": said("a:a"), "tools": TOOLS}, {"tools": TOOLS}),
        # So may there be what says where a row comes from; a table fills it with null.
        (
            "messages",
            {"messages": said("u:q", "a:a"), "metadata": {"source": "f", "n": None, "headings": ["a", None]}},
            {"metadata": {"source": "f", "headings": ["a", None]}},
        ),
        ("messages", {"messages": said("u:q", "a:a"), "metadata": {"source": None}}, {}),
        ("messages", {"messages": said("u:q", "a:a"), "metadata": {}}, {}),
        ("messages", {"messages": said("u:q", "a:a"), "metadata": "text"}, {}),
        ("prompt-completion", {"prompt": "q", "completion": "a", "metadata": {"id": 1}}, {"metadata": {"id": 1}}),
    ],
)
def test_what_stands_beside_the_messages(format: Format, row: dict[str, Any], expected: dict[str, Any]) -> None:
    before = copy.deepcopy(row)
    found = known_format(format, None, None).convert(row)
    assert found == {"messages": said("u:q", "a:a"), **expected}
    assert row == before


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # Tool calls as Glaive and others write them: each turn is a message of its own.
        (
            turns(
                ("human", "q"),
                ("gpt", "wait"),
                ("function_call", '{"name": "f", "arguments": {"b": 1.5, "a": ["é"]}}'),
                ("observation", '{"x": 1}'),
                ("gpt", "a"),
            ),
            [*said("u:q", "a:wait"), using(("f", '{"b":1.5,"a":["é"]}')), tool_says('{"x": 1}'), *said("a:a")],
        ),
        (
            turns(
                ("human", "q"),
                ("function_call", '[{"name": "f", "arguments": "{ }"}, {"name": "g"}]'),
                ("observation", ""),
                ("tool", {"x": None}),
                ("ipython", "z"),
                ("function", [1]),
            ),
            [
                *said("u:q"),
                using(("f", "{ }"), ("g", "{}")),
                tool_says(""),
                tool_says('{"x":null}'),
                tool_says("z"),
                tool_says("[1]"),
            ],
        ),
        (turns(("human", "q"), ("function_call", {"name": "f"})), [*said("u:q"), using(("f", "{}"))]),
        (turns(("developer", "d"), ("human", "q"), ("gpt", "a")), said("d:d", "u:q", "a:a")),
        ({"system": "s", **turns(("developer", "d"), ("human", "q"), ("gpt", "a"))}, said("s:s", "d:d", "u:q", "a:a")),
        # What a turn says beside its text is kept where a message has the like of it.
        (
            {
                "conversations": [
                    {"from": "human", "value": ["q"], "id": 1, "name": None},
                    {"from": "gpt", "value": "a", "weight": 0, "trainable": False, "thinking": "r"},
                ]
            },
            [
                *said("u:q"),
                {"role": "assistant", "content": "a", "weight": 0, "trainable": False, "reasoning_content": "r"},
            ],
        ),
    ],
)
def test_turns_of_sharegpt(row: dict[str, Any], expected: Any) -> None:
    before = copy.deepcopy(row)
    assert known_format("sharegpt", None, None).convert(row) == {"messages": expected}
    assert row == before


@pytest.mark.parametrize("name", ["glaive_toolcall_en_demo.json", "sharegpt_dummy_conversation.json"])
def test_real_sharegpt_conversations_are_all_understood(shared_data: Path, name: str) -> None:
    rows = orjson.loads((shared_data / name).read_bytes())
    found, row_format = read_all(find_source(str(shared_data / name)), 10)
    assert (row_format.name, len(found)) == ("sharegpt", len(rows))
    roles = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
    for row, conversation in zip(rows, found, strict=True):
        tools = [{"type": "function", "function": tool} for tool in orjson.loads(row.get("tools", "[]"))]
        assert conversation.get("tools", []) == tools
        for turn, message in zip(row["conversations"], conversation["messages"], strict=True):
            assert message["role"] == roles[turn["from"]]
            if turn["from"] == "function_call":
                (call,) = message["tool_calls"]
                function = {**call["function"], "arguments": orjson.loads(call["function"]["arguments"])}
                assert (message["content"], function) == ("", orjson.loads(turn["value"]))
            else:
                assert message == {"role": message["role"], "content": turn["value"]}


def one(role: Any, content: Any) -> dict[str, Any]:
    """A message with anything in it."""
    return {"role": role, "content": content}


FIRST = "the assistant speaks first; a user message must come before"
NO_CALL = "a tool message answers an assistant message with tool_calls, and none stands before this one"
HALF = "holds half of a surrogate pair (\\ud83d at character 2), which is no character"
MESSAGES = [
    ("x", "messages: must be a list of messages, but is text"),
    ([], "messages: is empty"),
    (said("u:q"), "messages: no assistant message, so nothing to train on"),
    (["x"], "messages[0]: must be an object with role and content, but is text"),
    (said("a:a", "u:q"), f"messages[0].role: {FIRST}"),
    ([*said("u:q"), one("tool", "x")], f"messages[1].role: {NO_CALL}"),
    (said("u:q", "a: \n"), "messages[1].content: the assistant message is empty"),
]
BESIDE: list[tuple[dict[str, Any], str]] = [
    ({"tools": "x"}, "tools: must be a list of tools, or JSON text of one, but is no JSON: unexpected character, "
     "expected a JSON value at character 1"),
    ({"tools": {"name": "f"}}, "tools: must be a list of tools, or JSON text of one, but is an object"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name: is missing; the tool has no fields"),
    ({"functions": [{"description": "d"}]}, "functions[0].name: is missing; the tool has 'description'"),
    ({"tools": [{"name": "f"}], "functions": [{"name": "g"}]}, "functions: stands beside tools; keep one of the two"),
]  # fmt: skip
SHAREGPT = [
    ({"messages": []}, "conversations: is missing; the row has 'messages'"),
    ({"conversations": {}}, "conversations: must be a list of turns, but is an object"),
    ({"conversations": []}, "conversations: is empty"),
    ({"conversations": [1.5]}, "conversations[0]: must be an object with from and value, but is a number"),
    ({"conversations": [{"value": "x"}]}, "conversations[0].from: is missing; the message has 'value'"),
    ({"conversations": [{"from": "human"}]}, "conversations[0].value: is missing; the message has 'from'"),
    (
        turns(("bot", "x")),
        "conversations[0].from: unknown role 'bot'; known are system, human, gpt, function_call and observation",
    ),
    (turns(("human", "q")), "conversations: no assistant message, so nothing to train on"),
    (turns(("gpt", "a")), f"conversations[0].from: {FIRST}"),
    (turns(("human", "q"), ("observation", "x")), f"conversations[1].from: {NO_CALL}"),
    (turns(("human", True)), "conversations[0].value: must be text or a list of parts, but is true or false"),
    (turns(("human", ["x", 1])), "conversations[0].value[1]: must be text or an object with a type, but is a number"),
    ({"system": "s", **turns(("human", ""))}, "conversations[0].value: the user message is empty"),
    (
        {"system": "s", "conversations": [{"from": "human", "value": "q", "weight": "x"}]},
        "conversations[0].weight: must be a number of 0 or more, but is text",
    ),
    (
        turns(("human", "q"), ("function_call", "call f")),
        "conversations[1].value: must be JSON text with name and arguments, but is no JSON: unexpected character, "
        "expected a JSON value at character 1",
    ),
    (turns(("human", "q"), ("function_call", "[]")), "conversations[1].value: holds no call"),
    (
        turns(("human", "q"), ("function_call", '{"name": "f", "arguments": [1]}')),
        "conversations[1].value.arguments: must be an object, or JSON text of one, but is a list",
    ),
    (
        turns(("human", "q"), ("function_call", '[{"name": "f"}, {"arguments": {}}]')),
        "conversations[1].value[1].name: is missing; the call has 'arguments'",
    ),
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
        *(("messages", {"messages": said("u:q", "a:a"), **beside}, expected) for beside, expected in BESIDE),
        *(("prompt-completion", {"prompt": "q", "completion": "a", **beside}, expected) for beside, expected in BESIDE),
        *(("alpaca", {"instruction": "q", "output": "a", **beside}, expected) for beside, expected in BESIDE),
        *(("sharegpt", {**turns(("human", "q"), ("gpt", "a")), **beside}, expected) for beside, expected in BESIDE),
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


@pytest.mark.parametrize(
    ("format", "row", "field"),
    [
        ("messages", {"messages": said("u:q\ud83d", "a:a")}, "messages[0].content"),
        ("messages", {"messages": said("u:q", "a:a"), "metadata": {"source": ["q\ud83d"]}}, "metadata.source[0]"),
        ("messages", {"messages": said("u:q", "a:a"), "tools": [{"name": "q\ud83d"}]}, "tools[0].name"),
        ("messages", {"messages": said("u:q", "a:a"), "tools": "[\ud83d]"}, "tools"),
        ("sharegpt", turns(("human", "q"), ("gpt", "q\ud83d")), "conversations[1].value"),
        ("sharegpt", turns(("human", "q"), ("function_call", "q\ud83d")), "conversations[1].value"),
        ("sharegpt", {"system": "q\ud83d", **turns(("human", "q"), ("gpt", "a"))}, "system"),
        ("alpaca", {"instruction": "q\ud83d", "output": "a"}, "instruction"),
        ("alpaca", {"instruction": "q", "input": "q\ud83d", "output": "a"}, "input"),
        ("alpaca", {"instruction": "q", "output": "q\ud83d"}, "output"),
        ("prompt-completion", {"prompt": "q\ud83d", "completion": "a"}, "prompt"),
        ("prompt-completion", {"prompt": "q", "completion": "q\ud83d"}, "completion"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused(format: Format, row: dict[str, Any], field: str) -> None:
    with pytest.raises(RowError) as refused:
        known_format(format, None, None).convert(row)
    assert (refused.value.field_name, refused.value.reason) == (field, HALF)


def test_tools_may_be_what_is_learnt(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"functions":"def f(): ...","doc":"a"}')
    reader = Reader(find_source(str(path)), prompt_column="doc", completion_column="functions")
    assert list(reader.read()) == [{"messages": said("u:a", "a:def f(): ...")}]


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
    assert list(reader.read()) == [{"messages": said("u:was?", "a:das")}]
    assert reader.format is not None
    assert reader.format.description == "pairs: 'Frage' asks, 'Antwort' answers"


def test_documents_are_read_as_sections_and_nothing_else_is(tmp_path: Path) -> None:
    document, rows = tmp_path / "a.md", tmp_path / "a.jsonl"
    document.write_text("# H\n\ntext\n")
    rows.write_text('{"prompt":"q","completion":"a"}\n')
    reader = Reader(find_source(str(document)))
    assert list(reader.read()) == [
        {
            "messages": said("u:Explain: H", "a:text"),
            "metadata": {"source": str(document), "headings": ["H"]},
        }
    ]
    assert reader.format is not None
    assert reader.format.description == "sections: a heading asks, the text under it answers"
    with pytest.raises(DataError, match="holds rows, not documents"):
        Reader(find_source(str(rows)), "sections")


conversations = st.lists(
    st.fixed_dictionaries(
        {"messages": st.sampled_from([NAMED, said("s:s", "u:q", "a:a"), [*said("u:q"), using(("f", "{}"))]])},
        optional={
            "tools": st.sampled_from(
                [TOOLS, [{"type": "function", "function": {"name": "g", "parameters": {"a": "b"}}}]]
            ),
            "metadata": st.sampled_from([{"source": "a"}, {"source": "b", "headings": ["x"]}]),
        },
    ),
    min_size=1,
    max_size=4,
)


@given(conversations)
def test_what_is_written_reads_as_it_was(rows: list[Conversation]) -> None:
    convert = known_format("messages", None, None).convert
    for row in rows:
        written = orjson.dumps(convert({**row}))
        assert orjson.loads(written) == row
        assert orjson.dumps(convert(orjson.loads(written))) == written
    empty = {"tools": None, "metadata": None}
    table = pyarrow.Table.from_pylist([{**empty, **row} for row in rows]).to_pylist()
    assert [convert(row) for row in table] == rows


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


def test_the_hint_quotes_what_a_shell_would_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(b'{"messages":[]}\n')
    with pytest.raises(DataError) as stopped:
        read_all(find_source("*.jsonl"), 2)
    assert stopped.value.hint == "leave them out: tt prepare --dataset '*.jsonl' --skip-bad --output CLEAN.jsonl"
