"""Scores of texts: by hand, against the libraries, and on texts that are hardly texts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.evidence.texts import chrf, distinct, exact_match, repetition, rouge_l

ROOT = Path(__file__).resolve().parents[2]

# What models write when they fail, and what is hardly text.
STRANGE = {
    "nothing": "",
    "white space": " \n\t\u3000\u2028",
    "half a character": "\ud800 and \udfff",
    "emoji": "👍🏽 👨‍👩‍👧 ❤️",
    "right to left": "مرحباً بالعالم \u202eabc",
    "unseen": "\u200b\ufeff\u0301\u0000",
    "accents without end": "a" + "\u0301" * 5000,
    "a megabyte of words": "round and round it goes " * 42_000,
    "a megabyte of one character": "!" * 1_000_000,
    "a megabyte of Chinese": "你好世界" * 250_000,
}


def test_repetition_by_hand() -> None:
    # Five 4-grams, the last of which is the first: one of five repeats.
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("the the the the the") == pytest.approx(1 / 2)
    assert repetition("The the THE the") == 0
    assert repetition("one two three") == repetition("") == 0
    assert repetition("!!!!!!!") == pytest.approx(3 / 4)
    assert repetition("Yes, yes, yes, yes, yes") == pytest.approx(4 / 6)
    assert repetition("every word here is another one") == 0


def test_distinct_by_hand() -> None:
    assert distinct(["a b a", "a c"], 1) == pytest.approx(3 / 5)
    # ab, ba, ac: none goes from the first text into the second.
    assert distinct(["a b a", "a c"], 2) == 1
    assert distinct(["a b", "A b"], 2) == pytest.approx(1 / 2)
    assert distinct([], 1) == distinct(["", " "], 1) == distinct(["word"], 2) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Eight characters, five 4-grams, one of them twice.
        ("你好世界你好世界", 1 / 5),
        # Vowels above and below belong to their consonants: six characters, three 4-grams.
        ("กีกีกีกีกีกี", 2 / 3),
        ("こんにちこんにち", 1 / 5),
        # Korean and Hindi words stay whole: too few for a 4-gram.
        ("안녕하세요 안녕하세요", 0),
        ("हिन्दी हिन्दी हिन्दी", 0),
        # An accent is a part of its word, however it is encoded.
        ("été e\u0301te\u0301 été e\u0301te\u0301 été", 1 / 2),
    ],
)
def test_words_of_other_scripts(text: str, expected: float) -> None:
    assert repetition(text) == pytest.approx(expected)


def test_exact_match() -> None:
    assert exact_match(" 42\n", "42")
    assert exact_match("caf\u00e9", "cafe\u0301")
    assert exact_match("", "  ")
    assert not exact_match("Paris", "paris")
    assert not exact_match("Paris.", "Paris")
    assert not exact_match("a  b", "a b")


def test_chrf_by_hand() -> None:
    # 1-grams 2 of 3, 2-grams 1 of 2, 3-grams 0 of 1, for precision and for recall.
    assert chrf("abc", "abd") == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    assert chrf("the cat", "the cat") == chrf("thecat", "the cat") == chrf("", " ") == 100
    assert chrf("", "word") == chrf("word", "") == chrf("xyz", "abc") == 0


def test_chrf_is_sacrebleus() -> None:
    from sacrebleu import sentence_chrf

    for answer, reference in [
        ("The cat sat.", "A cat is sitting."),
        ("你好世界", "你好"),
        ("9", "It is 9"),
        ("ab", "ba"),
    ]:
        assert chrf(answer, reference) == pytest.approx(sentence_chrf(answer, [reference]).score)


# F-measures of rouge-score 0.1.2, without stemming.
_ROUGE = [
    ("The cat sat on the mat.", "The cat is on the mat!", 0.8333333333333334),
    (
        "Natalia sold 48/2 = 24 clips in May.",
        "In May, Natalia sold 24 clips: 48 / 2 = <<48/2=24>>24.",
        0.5,
    ),
    ("police kill the gunman", "police killed the gunman", 0.75),
    ("the gunman police killed", "police killed the gunman", 0.5),
    ("snake_case don't e-mail", "snake case dont e mail", 0.7272727272727272),
    ("a b c d e f", "f e d c b a", 0.16666666666666666),
    ("YES", "yes", 1.0),
    ("no", "yes", 0.0),
]


@pytest.mark.parametrize(("answer", "reference", "expected"), _ROUGE)
def test_rouge_l_is_rouge_scores(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)
    assert rouge_l(reference, answer) == pytest.approx(expected)


def test_rouge_l_by_hand() -> None:
    # A common subsequence of 2 of 3 and 2 of 4 words: 2 · 2/3 · 2/4 / (2/3 + 2/4).
    assert rouge_l("red green blue", "red blue black white") == pytest.approx(4 / 7)
    assert rouge_l("你好世界", "你好") == pytest.approx(2 * 2 / 6)
    assert rouge_l("👍 ok", "👍") == pytest.approx(2 / 3)
    assert rouge_l("", "") == rouge_l("...", "...") == 1
    assert rouge_l("", "word") == rouge_l("...", "word") == rouge_l("!", "") == 0


def _longest_common(first: list[str], second: list[str]) -> int:
    """By the textbook's table."""
    row = [0] * (len(second) + 1)
    for a in first:
        last = row
        row = [0]
        for j, b in enumerate(second):
            row.append(last[j] + 1 if a == b else max(last[j + 1], row[j]))
    return row[-1]


@given(*[st.lists(st.sampled_from(["a", "b", "cc", "ddd", "7"]), min_size=1, max_size=80)] * 2)
def test_rouge_l_is_the_longest_common_subsequence(first: list[str], second: list[str]) -> None:
    expected = 2 * _longest_common(first, second) / (len(first) + len(second))
    assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(expected)


@pytest.mark.parametrize("name", STRANGE)
def test_strange_texts_have_scores(name: str) -> None:
    text = STRANGE[name]
    began = time.process_time()
    assert 0 <= repetition(text) <= 1
    assert 0 <= distinct([text, text], 2) <= 1
    assert exact_match(text, text)
    for other in (text, text[::-1], "", "an ordinary answer"):
        for a, b in ((text, other), (other, text)):
            assert 0 <= chrf(a, b) <= 100 + 1e-9
            assert 0 <= rouge_l(a, b) <= 1
    assert chrf(text, text) == pytest.approx(100)
    assert rouge_l(text, text) == 1
    assert time.process_time() - began < 20


@given(st.text(), st.text())
def test_any_texts_have_scores(first: str, second: str) -> None:
    assert 0 <= repetition(first) < 1
    assert 0 <= distinct([first, second], 1) <= 1
    assert 0 <= chrf(first, second) <= 100 + 1e-9
    assert 0 <= rouge_l(first, second) <= 1
    assert rouge_l(first, first) == 1
    assert exact_match(first, f" {first}\n")


def test_only_the_beginning_of_long_texts_is_compared() -> None:
    same = "word " * 4000
    assert rouge_l(same + "one end", same + "another") == 1
    assert chrf(same + "one end", same + "another") == pytest.approx(100)
    assert not exact_match(same + "one end", same + "another")


def test_libraries_are_imported_where_they_are_used_and_fetch_nothing(tmp_path: Path) -> None:
    program = """
import socket, sys
import tinkertools.evidence.checks, tinkertools.evidence.statistics, tinkertools.evidence.texts as texts
print([name for name in ("sacrebleu", "rapidfuzz", "torch", "scipy") if name in sys.modules])
def refuse(*_): raise AssertionError("the network is used")
socket.socket.connect = socket.getaddrinfo = refuse
print([texts.chrf("a b", "a b"), texts.rouge_l("a b", "a b")])
"""
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    lines = found.stdout.splitlines()
    assert lines[0] == "[]"
    assert orjson.loads(lines[1]) == pytest.approx([100.0, 1.0])
    assert list(tmp_path.iterdir()) == []
