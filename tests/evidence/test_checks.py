"""Checks: what is taken for what, what is refused and how, and GSM8K's answers."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.errors import UsageError
from tinkertools.evidence.checks import Outcome, number, parse_check

GSM8K = "number(answer) == number(reference)"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (GSM8K, "expression"),
        ("answer == reference", "expression"),
        ("  len(answer) < 10\n", "expression"),
        (r"re.search(r'\d', answer) is not None", "expression"),
        ("(\n  answer\n) == '1'", "expression"),
        ("any(w in answer for w in ('a', 'b'))", "expression"),
        ("(lambda text: text == prompt)(answer)", "expression"),
        ("(short := answer.strip()) == short.lower()", "expression"),
        ("/yes/", "regular expression"),
        ("/yes|no/i", "regular expression"),
        ("/the answer is 42/", "regular expression"),
        ("/answer == reference/", "regular expression"),
        ("/a/b/", "regular expression"),
        (r"^\d+$", "regular expression"),
        ("(?i)^yes", "regular expression"),
        ("it rains here", "regular expression"),
        ("prompts are fine", "regular expression"),
    ],
)
def test_what_a_check_is_taken_for(text: str, kind: str) -> None:
    check = parse_check(text)
    assert (check.kind, check.text) == (kind, text.strip())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Valid Python that was meant as a regular expression, maybe.
        ("yes", "uses yes, which it does not have, column 1"),
        ("yes|no", "uses yes, which"),
        ("it is raining", "uses it, which"),
        ("42", "does not use the answer"),
        ("True", "does not use the answer"),
        ("number(reference) == 18", "does not use the answer"),
        ("answr == 'x'", "uses answr, which it does not have, column 1"),
        ("open(answer)", "uses open, which"),
        ("__import__('os').system(answer)", "uses __import__, which"),
        # An expression with a mistake, which is a valid regular expression.
        ("number(answer) ==", "not valid Python, column 18"),
        ("answer = 'x'", "not valid Python, column 8"),
        ("the answer is 42", "not valid Python, column 5"),
        ("number(answer == 3", "not valid Python, column 7"),
        ("await answer", "not valid Python"),
        ("/(/", "not a regular expression, column 1: missing )"),
        ("(unclosed [a-z", "neither valid Python nor a regular expression, column 11"),
        ("/yes/q", "unknown flags after its last /: q"),
        ("/usr/bin", "unknown flags"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("answer == '\ud800'", "cannot be read"),
        ("answer\0", "null bytes"),
        ("answer == " + "(" * 5000 + "1" + ")" * 5000, "--check"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_check(text)
    assert words in refused.value.message
    assert refused.value.hint


def test_the_caret_stands_under_the_mistake() -> None:
    with pytest.raises(UsageError) as refused:
        parse_check("answer == 'é' + wrong + 'x'")
    assert refused.value.message.splitlines()[1:] == ["    answer == 'é' + wrong + 'x'", "    " + " " * 16 + "^"]
    with pytest.raises(UsageError) as refused:
        parse_check("answer == 1 +* 2")
    assert refused.value.message.splitlines()[1:] == ["    answer == 1 +* 2", "    " + " " * 13 + "^"]
    with pytest.raises(UsageError) as refused:
        parse_check("(answer ==\n 5 +* 3)")
    assert "line 2, column 5" in refused.value.message
    with pytest.raises(UsageError) as refused:
        parse_check("/ab[c/")
    assert refused.value.message.splitlines()[1:] == ["    ab[c/", "      ^"]
    with pytest.raises(UsageError) as refused:
        parse_check("answr == 'x'")
    assert refused.value.hint == "did you mean answer?"


def test_what_a_check_sees() -> None:
    assert parse_check("answer == reference")("a", "a").passed
    assert not parse_check("answer == reference")("a", None).passed
    assert parse_check("prompt.endswith('?') and len(answer) == 1")("a", None, "Well?").passed
    assert parse_check("json.loads(answer)['ok'] is True")('{"ok": true}').passed
    assert parse_check(r"bool(re.fullmatch('\d+', answer))")("123").passed
    assert parse_check("all(word in answer for word in reference.split())")("b a", "a b").passed
    assert parse_check("/^YES$/im")("well\nyes\nso").passed
    assert not parse_check("/^YES$/")("yes").passed
    assert parse_check("/a.b/s")("a\nb").passed
    assert parse_check("answer == reference").needs_reference
    assert not parse_check("len(answer) < 5").needs_reference
    assert not parse_check("/reference/").needs_reference


def test_an_exception_is_that_answers_failure() -> None:
    check = parse_check("json.loads(answer)['ok'] is True")
    assert check('{"ok": true}') == Outcome(True)
    assert check("{}") == Outcome(False, "KeyError: 'ok'")
    outcome = check("no JSON")
    assert not outcome.passed and outcome.reason and outcome.reason.startswith("JSONDecodeError: ")
    assert parse_check("answer.startswith(reference)")("a", None).reason == (
        "TypeError: startswith first arg must be str or a tuple of str, not NoneType"
    )


@pytest.mark.parametrize("text", ["answer", "len(answer)", "re.search('a', answer)", "None if answer else None"])
def test_what_is_neither_true_nor_false_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must give True or False") as refused:
        parse_check(text)("a")
    assert refused.value.hint == f"--check 'bool({text})', or compare it with something"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("… #### 18", 18),
        ("####18", 18),
        ("#### 1,234", 1234),
        ("#### 1,234,567.50", 1234567.5),
        ("#### $5", 5),
        ("#### -5", -5),
        ("#### \u22125", -5),
        ("#### -$5.25", -5.25),
        ("#### $-5", -5),
        ("#### +5", 5),
        ("#### 50%", 50),
        ("#### .5", 0.5),
        ("#### 18.", 18),
        ("#### 18 eggs, or 20", 18),
        ("#### 18.00", 18),
        ("#### 3\n#### 4\n", 4),
        ("####\n7", 7),
        ("#### 123456789012345678901234567890", 123456789012345678901234567890),
        ("18", None),
        ("### 18", None),
        ("#### 3 ####", None),
        ("#### eighteen", None),
        ("#### 18/2", None),
        ("#### 6:30", None),
        ("#### 5kg", None),
        ("#### 1e5", None),
        ("#### 1.2.3", None),
        ("#### --5", None),
        ("#### -$-5", None),
        ("#### " + "9" * 5000, None),
        ("", None),
    ],
)
def test_numbers_are_read_as_gsm8k_writes_them(text: str, expected: float | None) -> None:
    assert number(text) == expected


@given(st.text())
def test_any_text_has_a_number_or_none(text: str) -> None:
    assert number(text) is None or "####" in text
    number(f"#### {text}")


def test_missing_numbers_are_never_equal() -> None:
    check = parse_check(GSM8K)
    assert check("#### 18.0", "so #### 18").passed
    assert not check("18", "so #### 18").passed
    assert check("no number", "none here either") == Outcome(
        False, "ValueError: the reference has no number after ####"
    )
    assert check("no number", None) == Outcome(False, "ValueError: there is no reference")


def test_gsm8k(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k_test.jsonl").read_text().splitlines()
    references = [json.loads(line)["answer"] for line in lines]
    assert len(references) == 1319
    numbers = [number(reference) for reference in references]
    assert None not in numbers
    check = parse_check(GSM8K)
    for reference, value in zip(references, numbers, strict=True):
        assert value is not None
        # Read another way.
        assert value == float(re.sub(r"[,$%]", "", reference.split("####")[1]))
        assert check(f"I think so.\n#### {value:,}", reference) == Outcome(True)
        for wrong in (
            f"#### {value + 1}",
            f"#### {value}0" if value else "#### 1",
            f"#### 1{value}",
            "I do not know.",
            "",
        ):
            assert not check(wrong, reference).passed
        assert not check(reference.split("####")[0], reference).passed
