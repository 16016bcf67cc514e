"""Rows become preferences: each form with its exact result, each reason to refuse, and the way through `tt prepare`."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.chat.records import Preference, Reader, RowError, known_format, read_all, read_preferences
from tinkertools.chat.sources import find_source
from tinkertools.chat.splitting import split_preferences
from tinkertools.config import AUTO_RENDERER
from tinkertools.errors import DataError
from tinkertools.prepare import prepare
from tinkertools.preparing import PrepareOptions

Tt = Callable[..., Any]

LETTERS = {"s": "system", "u": "user", "a": "assistant", "d": "developer", "t": "tool"}
SPEAKERS = {"s": "system", "u": "human", "a": "gpt"}


def said(*messages: str) -> list[dict[str, Any]]:
    """Messages from `s:…`, `u:…` and `a:…`."""
    return [{"role": LETTERS[message[0]], "content": message[2:]} for message in messages]


def turns(*messages: str) -> list[dict[str, Any]]:
    """The same as ShareGPT writes them."""
    return [{"from": SPEAKERS[message[0]], "value": message[2:]} for message in messages]


def preferred(prompt: list[str], chosen: list[str], rejected: list[str], **beside: Any) -> dict[str, Any]:
    """The normal form."""
    return {"prompt": said(*prompt), "chosen": said(*chosen), "rejected": said(*rejected), **beside}


SIMPLE = preferred(["u:q"], ["a:good"], ["a:bad"])
CHAT = ["s:s", "u:q", "a:a", "u:r"]
LONG = preferred(CHAT, ["a:good"], ["a:bad"])
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
NORMAL_CALL = {
    "role": "assistant", "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}],
}  # fmt: skip
TEXTS = {"chosen": "good", "rejected": "bad"}
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"

FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the normal form": (LONG, LONG),
    "answers of several messages": (
        {"prompt": said("u:q"), "chosen": [CALL, *said("t:1", "a:good")], "rejected": said("a:bad")},
        {"prompt": said("u:q"), "chosen": [NORMAL_CALL, *said("t:1", "a:good")], "rejected": said("a:bad")},
    ),
    "whole conversations": ({"chosen": said(*CHAT, "a:good"), "rejected": said(*CHAT, "a:bad")}, LONG),
    "whole conversations beside a prompt as text, as UltraFeedback's": (
        {
            "prompt": "q",
            "prompt_id": "x",
            "messages": said("u:q", "a:good"),
            "chosen": said("u:q", "a:good"),
            "rejected": said("u:q", "a:bad"),
            "score_chosen": 8.5,
            "score_rejected": 7,
        },
        {**SIMPLE, "margin": 1.5},
    ),
    "whole conversations beside their prompt": (
        {"prompt": said(*CHAT), "chosen": said(*CHAT, "a:good"), "rejected": said(*CHAT, "a:bad")},
        LONG,
    ),
    "a prompt that ends before the turns that differ": (
        {"chosen": said("u:q", "a:a", "a:good"), "rejected": said("u:q", "a:a", "a:bad")},
        preferred(["u:q"], ["a:a", "a:good"], ["a:a", "a:bad"]),
    ),
    "a conversation that goes on after the other's end": (
        {"chosen": said("u:q", "a:good"), "rejected": said("u:q", "a:good", "u:r", "a:bad")},
        preferred(["u:q"], ["a:good"], ["a:good", "u:r", "a:bad"]),
    ),
    "conversations that part at a tool's result": (
        {
            "chosen": [*said("u:q"), CALL, *said("t:1", "a:good")],
            "rejected": [*said("u:q"), CALL, *said("t:2", "a:bad")],
        },
        {
            "prompt": said("u:q"),
            "chosen": [NORMAL_CALL, *said("t:1", "a:good")],
            "rejected": [NORMAL_CALL, *said("t:2", "a:bad")],
        },
    ),
    "texts": ({"prompt": "q", **TEXTS}, SIMPLE),
    "texts after a list": ({"prompt": said(*CHAT), **TEXTS}, LONG),
    "texts and a system column": (
        {"system": "s", "question": "q", **TEXTS},
        preferred(["s:s", "u:q"], ["a:good"], ["a:bad"]),
    ),
    "a system column that says it again": ({"system": "s", "prompt": said(*CHAT), **TEXTS}, LONG),
    "an empty system column": ({"system": "", "prompt": "q", **TEXTS}, SIMPLE),
    "an instruction": ({"instruction": "q", **TEXTS}, SIMPLE),
    "an instruction and its input": (
        {"instruction": "q", "input": "x", **TEXTS},
        preferred(["u:q\n\nx"], ["a:good"], ["a:bad"]),
    ),
    "an instruction with an empty input": ({"instruction": "q", "input": "", **TEXTS}, SIMPLE),
    "a query": ({"query": "q", **TEXTS}, SIMPLE),
    "an input alone": ({"input": "q", "system": "s", **TEXTS}, preferred(["s:s", "u:q"], ["a:good"], ["a:bad"])),
    "messages beside the answers": (
        {"messages": said("u:q"), "chosen": said("a:good")[0], "rejected": said("a:bad")[0]},
        SIMPLE,
    ),
    "HH-RLHF": (
        {"chosen": f"{HH} good", "rejected": f"{HH} bad"},
        preferred(["u:q", "a:a", "u:r"], ["a:good"], ["a:bad"]),
    ),
    "HH-RLHF with lines and spaces of its own": (
        {
            "chosen": "\n\nHuman:  q \n\nx\n\nAssistant: good\n\n- b ",
            "rejected": "\n\nHuman:  q \n\nx\n\nAssistant:bad",
        },
        preferred(["u: q \n\nx"], ["a:good\n\n- b "], ["a:bad"]),
    ),
    "HH-RLHF with a prompt": ({"prompt": HH, **TEXTS}, preferred(["u:q", "a:a", "u:r"], ["a:good"], ["a:bad"])),
    "HH-RLHF beside its prompt": (
        {"prompt": HH, "chosen": f"{HH} good", "rejected": f"{HH} bad"},
        preferred(["u:q", "a:a", "u:r"], ["a:good"], ["a:bad"]),
    ),
    "ShareGPT's": (
        {"conversations": turns(*CHAT), "chosen": turns("a:good")[0], "rejected": turns("a:bad")[0]},
        LONG,
    ),
    "ShareGPT's with lists and a system column": (
        {"system": "s", "conversations": turns(*CHAT[1:]), "chosen": turns("a:good"), "rejected": turns("a:bad")},
        LONG,
    ),
    "ShareGPT's, whole": ({"chosen": turns(*CHAT, "a:good"), "rejected": turns(*CHAT, "a:bad")}, LONG),
    "a margin": ({**SIMPLE, "margin": 2}, {**SIMPLE, "margin": 2.0}),
    "a margin as text, as CSV has it": ({"prompt": "q", **TEXTS, "margin": "-0.5"}, {**SIMPLE, "margin": -0.5}),
    "a margin before scores": (
        {**SIMPLE, "margin": 0, "score_chosen": 2, "score_rejected": 1},
        {**SIMPLE, "margin": 0.0},
    ),
    "no margin": ({**SIMPLE, "margin": None, "score_chosen": None, "score_rejected": ""}, SIMPLE),
    "scores by another name": ({**SIMPLE, "chosen_score": 1, "rejected_score": 3.5}, {**SIMPLE, "margin": -2.5}),
    "ratings": ({**SIMPLE, "chosen-rating": 5.0, "rejected-rating": 4}, {**SIMPLE, "margin": 1.0}),
    "tools and metadata": (
        {**SIMPLE, "tools": '[{"name": "f"}]', "metadata": {"id": 1, "x": None}},
        {**SIMPLE, "tools": [{"type": "function", "function": {"name": "f"}}], "metadata": {"id": 1}},
    ),
    "fields of null": (
        {
            "prompt": [{"role": "user", "content": "q", "weight": None, "name": None}],
            "chosen": said("a:good"),
            "rejected": [{"role": "assistant", "content": "bad", "tool_calls": None}],
        },
        SIMPLE,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_found_and_read(tmp_path: Path, name: str) -> None:
    row, expected = FORMS[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(orjson.dumps(row))
    found, row_format = read_preferences(find_source(str(path)), 10)
    assert (row_format.name, found) == ("preference", [expected])
    before = copy.deepcopy(row)
    assert known_format("preference", None, None).convert(row) == expected
    assert row == before


WHOLE = "both must be answers, or neither"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "q", "chosen": "a"}, "rejected: is missing; the row has 'prompt', 'chosen'"),
    ({"messages": said("u:q", "a:a")}, "chosen: is missing; the row has 'messages'"),
    (
        {"prompt": "q", "chosen": None, "rejected": "a"},
        "chosen: must be text, a message or a list of messages, but is null",
    ),
    ({"prompt": "q", "chosen": "a", "rejected": []}, "rejected: is empty"),
    (
        {"prompt": "q", "chosen": "a", "rejected": [1]},
        "rejected[0]: must be an object with role and content, but is a number",
    ),
    (TEXTS, "prompt: is missing; the row has 'chosen', 'rejected'"),
    ({"prompt": " ", **TEXTS}, "prompt: is empty"),
    ({"prompt": [], **TEXTS}, "prompt: is empty"),
    ({"prompt": 1, **TEXTS}, "prompt: must be text, a message or a list of messages, but is a number"),
    ({"instruction": "q", "input": 1, **TEXTS}, "input: must be text, but is a number"),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected: is the same as chosen"),
    ({"prompt": "q", "chosen": "a", "rejected": said("a:a")}, "rejected: is the same as chosen"),
    (preferred(["u:q"], ["a:a"], ["a:a"]), "rejected: is the same as chosen"),
    ({"chosen": said("u:q", "a:a"), "rejected": said("u:q", "a:a")}, "rejected: is the same as chosen"),
    (
        {"prompt": "q", "chosen": said("a:a"), "rejected": [{**said("a:a")[0], "score": 1}]},
        "rejected: is the same as chosen",
    ),
    ({"prompt": "q", "chosen": "", "rejected": "a"}, "chosen: the assistant message is empty"),
    ({"prompt": "q", "chosen": "a", "rejected": " \n"}, "rejected: the assistant message is empty"),
    (preferred(["u:q"], ["a:"], ["a:b"]), "chosen[0].content: the assistant message is empty"),
    ({"prompt": "q", "chosen": "a", "rejected": turns("a:")}, "rejected[0].value: the assistant message is empty"),
    ({"prompt": "q", "chosen": "a", "rejected": turns("a:")[0]}, "rejected.value: the assistant message is empty"),
    ({"chosen": f"{HH} a", "rejected": HH}, "rejected: the assistant message is empty"),
    (
        {"chosen": f"{HH} a", "rejected": "b"},
        f"rejected: begins with an assistant message, but chosen does not; {WHOLE}",
    ),
    (
        {"prompt": said("u:q"), "chosen": said("a:a"), "rejected": said("u:q", "a:b")},
        f"chosen: begins with an assistant message, but rejected does not; {WHOLE}",
    ),
    (preferred(["s:s"], ["a:a"], ["a:b"]), "prompt: has no user message, so nothing is asked"),
    (
        {"chosen": said("s:s", "a:a"), "rejected": said("s:s", "a:b")},
        "chosen: has no user message, so nothing is asked",
    ),
    ({"conversations": turns("s:s"), **TEXTS}, "conversations: has no user message, so nothing is asked"),
    (
        {"chosen": said("u:q", "a:a"), "rejected": said("u:r", "a:b")},
        "rejected: shares no messages with chosen that end before an assistant's turn, so there is no prompt",
    ),
    (
        {"chosen": said("u:q"), "rejected": said("u:q", "a:b")},
        "rejected: shares no messages with chosen that end before an assistant's turn, so there is no prompt",
    ),
    (
        preferred(["u:q"], ["u:r", "a:a"], ["u:r", "a:b"]),
        "chosen[0].role: an answer to prompt must begin with an assistant message, or with all of prompt",
    ),
    (
        {"conversations": turns("u:q"), "chosen": turns("u:r", "a:a"), "rejected": turns("u:r", "a:b")},
        "chosen[0].from: an answer to conversations must begin with an assistant message, or with all of conversations",
    ),
    (preferred(["u:q"], ["u:q", "a:a"], ["u:q"]), "rejected: holds no answer after prompt"),
    (
        preferred(["u:q"], ["u:q", "u:r", "a:a"], ["u:q", "a:b"]),
        "chosen[1].role: the answer must begin with an assistant message",
    ),
    (preferred(["u:q"], ["a:a", "u:r"], ["a:b"]), "chosen[1].role: the answer must end with an assistant message"),
    (
        preferred(["u:q", "a:x"], ["a:a"], ["a:b"]),
        "prompt[1].role: the prompt ends with an assistant message; the answers come after it",
    ),
    (preferred(["u:q", "s:s"], ["a:a"], ["a:b"]), "prompt[1].role: a system message must come first"),
    (
        {"system": "x", "prompt": said("s:s", "u:q"), **TEXTS},
        "system: stands beside the system message in prompt[0]; keep one of the two",
    ),
    (
        {"prompt": [{"role": "bot", "content": "x"}, *said("u:q")], **TEXTS},
        "prompt[0].role: unknown role 'bot'; known are system, developer, user, assistant and tool",
    ),
    (
        {"prompt": [{"from": "bot", "value": "x"}, *turns("u:q")], **TEXTS},
        "prompt[0].from: unknown role 'bot'; known are system, human, gpt, function_call and observation",
    ),
    (
        {"prompt": "q", "chosen": {**said("a:a")[0], "weight": 0.5}, "rejected": "b"},
        "chosen.weight: whole answers are compared, so messages have no such mark; remove it",
    ),
    ({**SIMPLE, "margin": True}, "margin: must be a number, but is true or false"),
    ({**SIMPLE, "margin": "much"}, "margin: must be a number, but is text: 'much'"),
    ({**SIMPLE, "margin": "nan"}, "margin: must be a finite number, but is nan"),
    ({**SIMPLE, "margin": "1e999"}, "margin: must be a finite number, but is inf"),
    (
        {**SIMPLE, "score_chosen": 1},
        "score_rejected: is missing beside score_chosen, but a margin is the difference of the two",
    ),
    (
        {**SIMPLE, "rejected_score": 1},
        "chosen_score: is missing beside rejected_score, but a margin is the difference of the two",
    ),
    (
        {**SIMPLE, "tools": "x"},
        "tools: must be a list of tools, or JSON text of one, but is no JSON: unexpected character, "
        "expected a JSON value at character 1",
    ),
]


@pytest.mark.parametrize(("row", "expected"), REFUSED)
def test_a_refused_row_has_its_place_its_field_and_the_reason(
    tmp_path: Path, row: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(orjson.dumps(SIMPLE) + b"\n" + orjson.dumps(row))
    assert [str(item) for item in Reader(find_source(str(path)), "preference").read()][1:] == [f"{path}:2: {expected}"]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({**SIMPLE, "margin": float("nan")}, "margin", "must be a finite number, but is nan"),
        ({**SIMPLE, "margin": 10**400}, "margin", f"must be a finite number, but is 1{'0' * 400}"),
        ({"prompt": "q", "chosen": "a\ud83d", "rejected": "b"}, "chosen", "holds half of a surrogate pair"),
        ({"prompt": "q", "chosen": "a", "rejected": said("a:\ud83d")}, "rejected[0].content", "holds half of a"),
        ({"system": "\ud83d", "prompt": "q", **TEXTS}, "system", "holds half of a surrogate pair"),
        (
            {**SIMPLE, "score_chosen": 1e308, "score_rejected": -1e308},
            "score_chosen",
            "is 1e+308 and score_rejected is",
        ),
    ],
)
def test_what_json_cannot_say_but_tables_can_is_refused(row: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(RowError) as refused:
        known_format("preference", None, None).convert(row)
    assert refused.value.field_name == field
    assert refused.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": said("u:q", "a:a"), **TEXTS}, "preference"),
        ({"conversations": turns("u:q"), "chosen": None, "rejected": None}, "preference"),
        ({"messages": said("u:q", "a:a"), "chosen": "a"}, "messages"),
        ({"conversations": turns("u:q", "a:a"), "rejected": "a"}, "sharegpt"),
        ({"prompt": "q", "completion": "a", "rejected": "b"}, "prompt-completion"),
    ],
)
def test_only_both_answers_make_a_preference(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(orjson.dumps(row))
    reader = Reader(find_source(str(path)))
    list(reader.read())
    assert reader.format is not None
    assert reader.format.name == name


def test_one_answer_alone_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"q","chosen":"a"}')
    with pytest.raises(DataError) as caught:
        list(Reader(find_source(str(path))).read())
    assert caught.value.message == f"{path}:1: rejected: is missing; the row has 'text', 'chosen'"
    assert caught.value.hint == "a row of preference data has both chosen and rejected"


def test_preferences_are_no_conversations(tt: Tt, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(orjson.dumps(SIMPLE))
    with pytest.raises(DataError) as caught:
        read_all(find_source(str(path)), 1)
    assert caught.value.message == f"{path} holds preference data (chosen and rejected answers), not conversations"
    found = tt("train", "--data", path, "--dry-run")
    assert (found.code, found.out) == (1, "")
    assert f"error: {path} holds preference data" in found.err
    assert "tt train --method dpo" in found.err


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.jsonl", orjson.dumps({"messages": said("u:q", "a:a")}), "messages: a list of role and content"),
        ("a.csv", b"question,answer\nq,a\n", "pairs: 'question' asks, 'answer' answers"),
        ("a.md", b"# H\n\ntext\n", "sections: a heading asks, the text under it answers"),
    ],
)
def test_conversations_are_no_preferences(tmp_path: Path, name: str, content: bytes, form: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_preferences(find_source(str(path)), 1)
    assert caught.value.message == (
        f"{path} holds conversations ({form}), but preference methods need a chosen and a rejected answer to each "
        "prompt"
    )
    assert '{"prompt": [...], "chosen": [...], "rejected": [...]}' in str(caught.value.hint)


def test_preferences_that_must_all_be_good(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = {"prompt": "q", "chosen": "a", "rejected": "a"}
    path.write_bytes(b"\n".join(map(orjson.dumps, [SIMPLE, bad, bad, LONG])))
    with pytest.raises(DataError) as caught:
        read_preferences(find_source(str(path)), 1)
    assert caught.value.message == (
        f"2 rows were refused:\n  {path}:2: rejected: is the same as chosen\n  … and 1 more"
    )
    assert read_preferences(find_source(str(path)), 1, most=1)[0] == [SIMPLE]


def lines_of(path: Path) -> list[Any]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_prepare(tt: Tt, tmp_path: Path) -> None:
    data, output = tmp_path / "a.jsonl", tmp_path / "o.jsonl"
    rows = [
        {"prompt": "q", **TEXTS, "metadata": {"id": 1}},
        {"prompt": "q", **TEXTS, "metadata": {"id": 2}},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": said("d:d", "u:q"), **TEXTS, "margin": 1},
        {"messages": said("u:q", "a:a")},
        {"prompt": "beyond", **TEXTS},
    ]
    data.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    command = ("prepare", "--dataset", data, "--output", output, "--system", "s", "--dedupe", "--max-examples", 2)
    found = tt(*command)
    assert found.code == 1
    assert not output.exists()
    found = tt(*command, "--skip-bad")
    assert (found.code, found.out) == (0, f"{output}\n")
    assert "format: preference: a chosen and a rejected answer to a prompt\n" in found.err
    assert f"next: tt train --method dpo --data {output}\n" in found.err
    assert lines_of(output) == [
        preferred(["s:s", "u:q"], ["a:good"], ["a:bad"], metadata={"id": 1}),
        preferred(["d:d", "u:q"], ["a:good"], ["a:bad"], margin=1.0),
    ]
    rejects = lines_of(tmp_path / "o.jsonl.rejects.jsonl")
    assert [(r["place"], r["field"], r["row"]) for r in rejects] == [(f"{data}:3", "rejected", rows[2])]
    assert "rows in: 4 = 2 kept + 1 refused + 1 duplicates\n" in found.err


def test_csv_with_texts_and_scores(tt: Tt, tmp_path: Path) -> None:
    data, output = tmp_path / "a.csv", tmp_path / "o.jsonl"
    data.write_text("system,question,chosen,rejected,score_chosen,score_rejected\ns,q,good,bad,2,0.5\n,q,good,bad,,\n")
    assert tt("prepare", "--dataset", data, "--output", output).code == 0
    assert lines_of(output) == [preferred(["s:s", "u:q"], ["a:good"], ["a:bad"], margin=1.5), SIMPLE]


def test_the_demo_of_llama_factory(tt: Tt, tmp_path: Path, shared_data: Path) -> None:
    output = tmp_path / "o.jsonl"
    found = tt("prepare", "--dataset", shared_data / "dpo_en_demo.json", "--output", output, "--val-fraction", 0.1)
    assert found.code == 0
    assert (
        "format: preference: a chosen and a rejected answer to a prompt\nrows in: 300 = 300 kept + 0 refused\n"
        in found.err
    )
    trained, held_out = lines_of(output), lines_of(tmp_path / "o.val.jsonl")
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    expected = [
        {
            side: [{"role": roles[turn["from"]], "content": turn["value"]} for turn in given]
            for side, given in (
                ("prompt", row["conversations"]), ("chosen", [row["chosen"]]), ("rejected", [row["rejected"]]),
            )
        }
        for row in orjson.loads((shared_data / "dpo_en_demo.json").read_bytes())
    ]  # fmt: skip
    asked = [row["prompt"] for row in held_out]
    assert trained == [row for row in expected if row["prompt"] not in asked]
    assert held_out == [row for row in expected if row["prompt"] in asked]
    assert 30 <= len(held_out) <= 32
    again = tmp_path / "again.jsonl"
    assert tt("prepare", "--dataset", output, "--output", again).code == 0
    assert again.read_bytes() == output.read_bytes()


# Texts with no mark of HH-RLHF's in them.
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip()) and "\n\n" not in text
)
exchanges = st.lists(st.tuples(words, words), max_size=2)


@st.composite
def preferences(draw: st.DrawFn) -> dict[str, Any]:
    """The normal form with any texts."""
    prompt = [*said(*(f"s:{draw(words)}" for _ in range(draw(st.integers(0, 1)))))]
    for question, answer in draw(exchanges):
        prompt += said(f"u:{question}", f"a:{answer}")
    prompt += said(f"u:{draw(words)}")
    chosen, rejected = draw(st.lists(words, min_size=2, max_size=2, unique=True))
    row: dict[str, Any] = {"prompt": prompt, "chosen": said(f"a:{chosen}"), "rejected": said(f"a:{rejected}")}
    if draw(st.booleans()):
        row["margin"] = draw(st.floats(allow_nan=False, allow_infinity=False))
    return row


def hh(messages: list[dict[str, Any]]) -> str:
    """Messages as HH-RLHF writes them."""
    speakers = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{speakers[message['role']]}: {message['content']}" for message in messages)


def sharegpt(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as turns."""
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": speakers[message["role"]], "value": message["content"]} for message in messages]


@given(preferences(), st.sampled_from(["whole", "turns", "text", "system", "hh"]))
def test_every_way_to_write_a_preference_is_read_as_the_same(row: dict[str, Any], form: str) -> None:
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    written = {"margin": row["margin"]} if "margin" in row else {}
    if form == "whole":
        written |= {"chosen": prompt + chosen, "rejected": prompt + rejected}
    elif form == "turns":
        written |= {
            "conversations": sharegpt(prompt), "chosen": sharegpt(chosen)[0], "rejected": sharegpt(rejected),
        }  # fmt: skip
    elif form == "system" and prompt[0]["role"] == "system":
        written |= {"system": prompt[0]["content"], "prompt": prompt[1:], "chosen": chosen, "rejected": rejected}
    elif form == "hh" and prompt[0]["role"] == "user":
        written |= {"chosen": hh(prompt + chosen), "rejected": hh(prompt + rejected)}
    else:
        written |= {"prompt": prompt, "chosen": chosen[0]["content"], "rejected": rejected[0]["content"]}
    assert known_format("preference", None, None).convert(written) == row


def options_for(data: Path, output: Path, **changed: Any) -> PrepareOptions:
    settings: dict[str, Any] = {
        "dataset": str(data), "output": output, "split": "train", "config_name": None, "max_examples": None,
        "format": "auto", "prompt_column": None, "completion_column": None, "system": None, "val_fraction": 0.0,
        "shuffle": False, "seed": 0, "dedupe": False, "skip_bad": False, "preview": 0, "base_model": None,
        "renderer": AUTO_RENDERER,
    }  # fmt: skip
    return PrepareOptions(**settings | changed)


@given(rows=st.lists(preferences(), min_size=1, max_size=5))
def test_the_normal_form_goes_through_prepare_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("prepare")
    data, output = folder / "a.jsonl", folder / "o.jsonl"
    data.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    counts = prepare(options_for(data, output))
    assert (counts.kept, counts.rows_in, counts.preferences) == (len(rows), len(rows), True)
    assert output.read_bytes() == data.read_bytes()
    assert read_preferences(find_source(str(output)), 1)[0] == rows


# Few questions, so that some are asked twice.
asked_often: st.SearchStrategy[list[Preference]] = st.lists(
    st.builds(
        lambda question, chosen: preferred([f"u:{question}"], [f"a:{chosen}"], ["a:bad"]),
        st.sampled_from("pqrst"),
        st.sampled_from("xyz"),
    ),
    min_size=2,
    max_size=30,
).filter(lambda rows: len({row["prompt"][0]["content"] for row in rows}) > 1)  # type: ignore[assignment]


@given(rows=asked_often, fraction=st.floats(0.01, 0.99))
def test_equal_prompts_stay_on_one_side(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Preference], fraction: float
) -> None:
    kept, held_out = split_preferences(rows, fraction)
    prompts = {row["prompt"][0]["content"] for row in held_out}
    assert kept
    assert held_out
    assert kept == [row for row in rows if row["prompt"][0]["content"] not in prompts]
    assert held_out == [row for row in rows if row["prompt"][0]["content"] in prompts]
    # `tt prepare` holds out the same.
    folder = tmp_path_factory.mktemp("split")
    (folder / "a.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    prepare(options_for(folder / "a.jsonl", folder / "o.jsonl", val_fraction=fraction))
    assert (lines_of(folder / "o.jsonl"), lines_of(folder / "o.val.jsonl")) == (kept, held_out)


def test_nothing_is_held_out() -> None:
    rows: list[Preference] = [preferred(["u:q"], ["a:x"], ["a:y"])] * 2  # type: ignore[list-item]
    assert split_preferences(rows, 0.0) == (rows, [])
    with pytest.raises(DataError, match="--val-fraction needs at least two different prompts"):
        split_preferences(rows, 0.5)
