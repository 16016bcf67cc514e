"""What of a model's reply is taken: which arrays are read, which answers are supported, and which questions repeat."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.generating.documents import PART_CHARACTERS, cut, spread
from tinkertools.generating.questions import Pair, Read, numbers_of, read_pairs, ungrounded, words_of
from tinkertools.generating.repeats import Repeats

AB = {"question": "a?", "answer": "b"}
CD = {"question": "c?", "answer": "d"}
PAIRS = (Pair("a?", "b"), Pair("c?", "d"))
BOTH = json.dumps([AB, CD])

READABLE: list[tuple[str, Read | None]] = [
    (BOTH, Read(PAIRS, 0, False)),
    (f"```json\n{BOTH}\n```", Read(PAIRS, 0, False)),
    (f"Here are [2] pairs [as asked](x):\n\n{BOTH}\n\nAnything [else]?", Read(PAIRS, 0, False)),
    (f'{{"pairs": {BOTH}}}', Read(PAIRS, 0, False)),
    (f"<think>[{json.dumps(AB)}] or so</think>\n{BOTH}", Read(PAIRS, 0, False)),
    (json.dumps([AB, CD], indent=2), Read(PAIRS, 0, False)),
    ('[{"question": " a? ", "answer": "b\n", "why": 1}]', Read(PAIRS[:1], 0, False)),
    ("[]", Read((), 0, False)),
    ("There is nothing to ask: []", Read((), 0, False)),
    # Elements that are no pairs.
    ('[{"question": "a?"}, {"question": "a?", "answer": ""}, {"question": " ", "answer": "b"}]', Read((), 3, False)),
    (json.dumps([AB, "c?", 3, None, {"question": "c?", "answer": ["d"]}]), Read(PAIRS[:1], 4, False)),
    ('[{"question": "a?", "answer": "half of a pair: \\ud83d"}]', Read((), 1, False)),
    # Cut replies.
    (BOTH[:-1], Read(PAIRS, 0, True)),
    (BOTH[:-2], Read(PAIRS[:1], 0, True)),
    (f"```json\n{BOTH[:-12]}", Read(PAIRS[:1], 0, True)),
    ('[{"question": "a?", "answer": "b"}, {"question": "c?", "answer": "\\u00', Read(PAIRS[:1], 0, True)),
    ('[{"question": "a?", "ans', None),
    ("[", None),
    # No array of objects, or more than one.
    ("", None),
    ("I cannot do that.", None),
    (json.dumps(AB), None),
    ('["a?", "b"]', None),
    (f"{BOTH}\n{BOTH}", None),
    ('[{"question": "a?" "answer": "b"}]', None),
    ("[{'question': 'a?', 'answer': 'b'}]", None),
    ("[" * 100_000, None),
    ('[{"a":' * 20_000, None),
]


@pytest.mark.parametrize(("reply", "meaning"), READABLE)
def test_an_array_is_read_whatever_stands_around_it(reply: str, meaning: Read | None) -> None:
    assert read_pairs(reply) == meaning


@given(st.text(), st.integers(0))
def test_no_reply_breaks_the_reading(reply: str, _: int) -> None:
    found = read_pairs(reply)
    assert found is None or all(pair.question.strip() and pair.answer.strip() for pair in found.pairs)


# What JSON is made of: put in any order, it makes replies that are nearly right.
PIECES = st.sampled_from([
    "[", "]", "{", "}", '"', ",", ":", "\\", " ", "\n", "a", "1", "null", '"question"', '"answer"', '"a"',
    json.dumps(AB), json.dumps(CD), json.dumps({"question": "e?"}), f"[{json.dumps(AB)}", f", {json.dumps(CD)}]",
])  # fmt: skip


def objects_in(text: str) -> list[Any]:
    """Every JSON object that a text holds, wherever it begins."""
    found = []
    for brace in re.finditer("{", text):
        with suppress(ValueError):
            found.append(json.JSONDecoder(strict=False).raw_decode(text, brace.start())[0])
    return found


def pairs_of(objects: Sequence[dict[str, Any]]) -> tuple[Pair, ...]:
    both = [(one.get("question"), one.get("answer")) for one in objects]
    return tuple(
        Pair(q.strip(), a.strip())
        for q, a in both
        if isinstance(q, str) and isinstance(a, str) and q.strip() and a.strip()
    )


@given(st.lists(PIECES).map("".join))
def test_what_is_read_of_anything_like_json_stands_in_it(reply: str) -> None:
    found = read_pairs(reply)
    assert found is None or set(found.pairs) <= set(pairs_of(objects_in(reply)))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.data())
def test_what_breaks_off_gives_the_whole_pairs(pairs: Sequence[tuple[str, str]], data: Any) -> None:
    """Cut anywhere, an array gives the pairs that end before the cut, and no others."""
    elements = [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in pairs]
    text = f"[{', '.join(elements)}]"
    ends = [1 + sum(len(e) for e in elements[: i + 1]) + 2 * i for i in range(len(elements))]
    at = data.draw(st.integers(0, len(text)))
    if "</think>" in text:
        return
    whole = tuple(Pair(q.strip(), a.strip()) for (q, a), end in zip(pairs, ends, strict=True) if end <= at)
    expected = Read(whole, 0, at < len(text)) if whole else None
    assert read_pairs(text[:at]) == expected


PART = "The Kestrel engine of 1934 made 1,275 horsepower at 2.5 bar. 机器学习是人工智能的一个分支。"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("The Kestrel engine made 1275 horsepower.", None),
        ("In 1934.", None),
        ("1934", None),
        ("Engines at 2.5 bar, of Kestrel.", None),
        ("人工智能的一个分支", None),
        ("It made 1,276 horsepower.", "a number that the part does not have"),
        ("It made 127 horsepower.", "a number that the part does not have"),
        ("At 25 bar.", "a number that the part does not have"),
        ("A steam locomotive built by Stephenson.", "too few words of the part"),
        ("Yes.", "too few words of the part"),
        ("今天天气很好我们去公园", "too few words of the part"),
    ],
)
def test_answers_must_be_in_the_part(answer: str, reason: str | None) -> None:
    assert ungrounded(answer, PART) == reason


def test_the_share_of_words_decides() -> None:
    part = "alpha bravo charlie delta echoes"
    assert ungrounded("alpha bravo charlie xxxx yyyy", part) is None  # 3 of 5
    assert ungrounded("alpha bravo wwww xxxx yyyy", part) == "too few words of the part"  # 2 of 5
    assert ungrounded("alpha of an in to by as", part) is None  # short words do not count


@given(st.text())
def test_a_text_supports_itself(text: str) -> None:
    assert ungrounded(text, text) is None


def test_numbers_and_words() -> None:
    assert numbers_of("1,275 and 12,5 or 3.14, 7.") == {"1275", "12,5", "3.14", "7"}
    assert words_of("Straße ＡＢ x_y 学习吗") == ["strasse", "ab", "x", "y", "学习", "习吗"]


def test_repeated_questions_are_found() -> None:
    repeats = Repeats()
    first = Pair("What does the Kestrel engine burn in winter?", "It burns leaded petrol, heated before it is sprayed.")
    assert repeats.add(first)
    assert not repeats.add(Pair("what DOES the kestrel engine burn, in winter", "Something else."))
    assert not repeats.add(Pair("What does a Kestrel engine burn in winter?", "It burns leaded petrol, heated first."))
    # The same but for a name or a number asks for something else.
    assert repeats.add(Pair("What does the Kestrel engine burn in summer?", "Alcohol."))
    assert repeats.add(Pair("What did it make in 1934?", "1,275 horsepower at the shaft"))
    assert repeats.add(Pair("What did it make in 1935?", "1,275 horsepower at the shaft"))
    assert repeats.add(Pair("?", "x")) and repeats.add(Pair("!", "x")) and not repeats.add(Pair("?", "x"))


@given(st.text(st.sampled_from("ab#.。 \n\r\t"), max_size=400) | st.text(max_size=400), st.integers(2, 60))
def test_the_parts_joined_are_the_document(text: str, most: int) -> None:
    parts = cut(text, most)
    assert "".join(parts) == text
    assert all(0 < len(part) <= most for part in parts)
    assert all(len(part) > most // 2 for part in parts[:-1])


def test_parts_end_where_it_hurts_least() -> None:
    assert cut("aaaa aaaa.\n\nbbbb\n# C\ncccc cccc", 22) == ["aaaa aaaa.\n\nbbbb\n", "# C\ncccc cccc"]
    assert cut("aaaa aaaa.\n\nbbbb bbbb bbbb", 16) == ["aaaa aaaa.\n\n", "bbbb bbbb bbbb"]
    assert cut("one two. three four five", 12) == ["one two. ", "three four ", "five"]
    assert cut("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert cut("", 10) == []
    assert cut("short") == ["short"]
    assert len(cut("word " * 10_000)) == -(-50_000 // PART_CHARACTERS)


@given(st.integers(1, 100), st.integers(1, 100))
def test_pairs_are_spread_evenly(pairs: int, parts: int) -> None:
    found = spread(pairs, parts)
    assert len(found) == parts and sum(found) == pairs
    assert max(found) - min(found) <= 1
