"""The number that an answer ends in, and what a right one is worth."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.evidence.checks import number
from tinkertools.evidence.numbers import final_number
from tinkertools.rewards import Rewarded, Sample, open_reward, parse_reward


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### 18", "18"), ("#### $1,234.50 a year", "1234.5"), ("#### 18/2", "9"), ("#### -5%", "-5"),
        ("#### \u22125", "-5"), ("#### 5 km/h", "5"), ("#### 5 m^2", "5"), ("#### 5kg", "5"), ("#### .5", "1/2"),
        ("#### The answer is 18.", "18"), ("#### x = 18", "18"), ("#### **18**", "18"), ("#### 18 (eighteen)", "18"),
        ("#### 12\nthen 13", "12"), ("#### 1\n#### 2", "2"), ("#### -$5", "-5"), ("#### $-5", "-5"),
        ("#### 2 1/2 cups", "5/2"), ("#### 0.50", "1/2"), ("#### 1e3", "1000"), ("5 #### 6", "6"),
        (r"so \boxed{\frac{3}{4}}", "3/4"), (r"\boxed{x = -\dfrac{1}{2}}", "-1/2"), (r"\boxed{50\%}", "50"),
        (r"\boxed{1{,}000\text{ apples}}", "1000"), (r"\boxed{\$18.00}", "18"), (r"\boxed{12} or \boxed{13", "12"),
        (r"\boxed{1} and \boxed{2}, not 3", "2"), (r"\boxed{1.5 \times 10^{3}}", "1500"),
        (r"\boxed{\text{is } 3}", "3"),
        ("the answer is 18.", "18"), ("it is -3", "-3"), ("10 - 3", "3"), ("10-3", "3"), ("in all - 3", "3"),
        ("costs $3", "3"), ("1,234,567 people", "1234567"), ("x1 and y2 make 7", "7"), ("1\u202f000", "1000"),
        ("3.14.", "157/50"), ("about 1/3", "1/3"), ("(-3)", "-3"), ("3, 4", "4"), ("1.5e3", "1500"),
        # What is none after a mark, whatever else there is.
        ("7 #### 2x+3", None), ("7 #### 18 and 20", None), ("7 #### 6:30", None), ("#### 10^2", None),
        ("#### 1.234,56", None), ("#### 1,2", None), ("####", None), (r"7 \boxed{2\sqrt{3}}", None),
        ("#### 1/0", None), ("#### --5", None), ("#### " + "1" * 400, None), ("", None), ("none at all", None),
        (r"\boxed{}", None), ("#### 3*4", None), ("#### 3 = 4", None),
    ],
)  # fmt: skip
def test_final_number(text: str, value: str | None) -> None:
    assert final_number(text) == (None if value is None else Fraction(value))


def test_without_a_mark_an_unfinished_text_has_none() -> None:
    assert final_number("first 12, then", anywhere=False) is None
    assert final_number("#### 12", anywhere=False) == 12


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "${:,}", "{}%", "{} dollars", "{}.00", "**{}**"]))
def test_an_integer_is_read_however_it_is_written(value: int, form: str) -> None:
    written = form.format(value)
    assert final_number(f"#### {written}") == value
    assert final_number(f"so \\boxed{{{written}}} it is") == value
    assert final_number(f"1 + 1, so it is {written}") == value


@given(st.decimals(-(10**6), 10**6, allow_nan=False, places=4), st.integers(1, 999))
def test_decimals_and_fractions_compare_by_value(value: Decimal, divisor: int) -> None:
    assert final_number(f"#### {value:f}") == Fraction(value)
    numerator = int(value)
    assert final_number(f"#### {numerator}/{divisor}") == Fraction(numerator, divisor)
    assert final_number(rf"\boxed{{\frac{{{numerator}}}{{{divisor}}}}}") == Fraction(numerator, divisor)


@given(st.text(alphabet="0123456789.,-+/$%#{}\\boxedfrac e\n=", max_size=60))
def test_any_text_is_read_or_not(text: str) -> None:
    value = final_number(text)
    assert value is None or isinstance(value, Fraction)


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("\\boxed{", None), ("1,234", 234), ("1 ", 1), ("- ", None), ("{", None), ("1", None), ("\\text{", None),
        ("\\frac{1}{", 1), ("is ", None), ("=:", None),
    ],
)  # fmt: skip
def test_a_long_text_of_one_pattern_is_read(text: str, last: int | None) -> None:
    # With a pattern that backtracks, or a search that begins anew each time, this would take hours.
    assert final_number(text * 50_000) == last
    # No such text is one number.
    assert final_number("#### " + text * 50_000) is None


def test_all_answers_of_gsm8k_are_read(shared_data: Path) -> None:
    lines = [line for name in ("train", "test") for line in (shared_data / f"gsm8k_{name}.jsonl").open()]
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 8792
    assert [final_number(answer) for answer in answers] == [number(answer) for answer in answers]
    assert None not in {number(answer) for answer in answers}


def test_what_answers_are_worth() -> None:
    def sample(answer: str, reference: str | None = "a <<1+1=2>> b\n#### 1,200", finished: bool = True) -> Sample:
        return Sample([{"role": "user", "content": "?"}], answer, reference, {}, finished)

    with open_reward(parse_reward("math"), None, print, timeout=1) as reward:
        assert reward.name == "math"
        assert reward(
            [
                sample("#### 1200"), sample(r"\boxed{1200.0}"), sample("That makes $1,200."), sample("#### 12"),
                sample("no number"), sample("so 1200", finished=False), sample("#### 1200", finished=False),
                sample("#### 1", None), sample("#### 1", "nothing"), sample("0.5", "1/2"), sample("0.333", "1/3"),
            ]
        ) == [
            Rewarded(1.0), Rewarded(1.0), Rewarded(1.0), Rewarded(-0.1),
            Rewarded(-0.1), Rewarded(-0.1), Rewarded(1.0),
            Rewarded(None, "the row has no answer to compare with"),
            Rewarded(None, "the row's answer has no number after ####, in \\boxed{} or at its end"),
            Rewarded(1.0), Rewarded(-0.1),
        ]  # fmt: skip
        assert reward([]) == []
