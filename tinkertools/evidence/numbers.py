"""The number that an answer to a problem of mathematics ends in, by value."""

import re
from fractions import Fraction

# No answer is a number of more digits, and Python refuses to read many.
_MOST_DIGITS = 300

# What stands between the digits of one number, to people and to LaTeX: "1 000" with a thin space, "1{,}000".
_SPACED = re.compile(r"(?<=[0-9])(?:[\u00a0\u2009\u202f]|\\[,! ]|\{,\}|,\\!)(?=[0-9]{3}(?![0-9]))")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}")
_IGNORED = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|,|!|;|:|\s)|[*_`]{2,3}")
_BRACES = re.compile(r"(?P<box>\\boxed\s?\{)|\\[{}]|[{}]")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,99}(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+"
_CURRENCY = r"(?:\\?[$€£¥])"
_NUMBER = re.compile(
    rf"(?:(?P<sign>[-+\u2212])(?P<apart>\s?))?(?:{_CURRENCY}\s?)?(?P<second>[-+\u2212])?"
    r"(?:(?P<whole>[0-9]+) (?P<over>[0-9]+)\s?/\s?(?P<under>[0-9]+)"  # 2 1/2
    rf"|(?P<digits>{_DIGITS})(?:\s?/\s?(?P<divisor>{_DIGITS}))?"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?!\w)|\s?(?:\\times|\\cdot|×|·)\s?10\s?\^\s?\{?(?P<power>[-+]?[0-9]{1,3})\}?)?)"
)
# Before a number that is all there is to say: nothing, or a name and an equals sign, a colon or "is".
_BEFORE = re.compile(r"(?:[^0-9]*(?:[=:≈]|\bis\b))?[\s(]*")
# And after it: a unit, words, an end; nothing with another number or an operator, but for the power of a unit.
_AFTER = re.compile(r"(?![\s]*[-+*/^×·<>=!:][\s]*[\w({\\])[^0-9=+*<>]*(?:\^\{?[23]\}?[^0-9=+*<>]*)?")


def final_number(text: str, *, anywhere: bool = True) -> Fraction | None:
    r"""The number that a text gives as its answer, exactly; None without one.

    It is what follows the last `####` on its line, as GSM8K's answers end; else what is in the last `\boxed{…}`, as
    MATH's are; else, where `anywhere`, the last number of the text. After a mark there may be one number, with words
    or a unit: `#### 18/2` is 9, `#### $1,234.50 a year` is 1234.5, `#### 2x+3` is none. Signs, currencies, separators
    of thousands (`1,000`, `1{,}000`), fractions (`3/4`, `2 1/2`, `\frac{3}{4}`), decimals and powers of ten
    (`1.5e3`, `1.5 \times 10^{3}`) are read by their value; a percent sign or a unit is left out, so `5%` is 5.
    """
    _, mark, after = text.rpartition("####")
    if mark:
        return _only(after.strip().partition("\n")[0])
    if (boxed := _boxed(text)) is not None:
        return _only(boxed)
    return _last(text) if anywhere else None


def _only(text: str) -> Fraction | None:
    """The number that a text is."""
    text = _plain(text).strip()
    before = _BEFORE.match(text)
    found = _NUMBER.match(text, before.end() if before else 0)
    return _value(found) if found and _AFTER.fullmatch(text, found.end()) else None


def _last(text: str) -> Fraction | None:
    """The last number in a text. A dash between words or numbers is no sign: "10-3" and "in all - 3" end in 3."""
    text = _plain(text)
    last: re.Match[str] | None = None
    for found in _NUMBER.finditer(text):
        start = max(found.start("digits"), found.start("whole"))
        # A name such as x1 holds none.
        if not (start and (text[start - 1].isalpha() or text[start - 1] == "_")):
            last = found
    if last is None:
        return None
    value = _value(last)
    dash = last["sign"] and (last["apart"] or re.search(r"(?:\w|[0-9)\]}%]\s?)\Z", text[: last.start()][-3:]))
    return abs(value) if value is not None and dash else value


def _value(found: re.Match[str]) -> Fraction | None:
    """What a number is worth; None for one that is none: two signs, a division by zero, too many digits."""
    if (found["sign"] and found["second"]) or len(found[0]) > _MOST_DIGITS:
        return None
    if found["whole"] is not None:
        if int(found["under"]) == 0:
            return None
        value = int(found["whole"]) + Fraction(int(found["over"]), int(found["under"]))
    else:
        value = _decimal(found["digits"])
        if (divisor := found["divisor"]) is not None:
            if _decimal(divisor) == 0:
                return None
            value /= _decimal(divisor)
        value *= Fraction(10) ** int(found["exponent"] or found["power"] or 0)
    return value if (found["sign"] or found["second"]) in (None, "+") else -value


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _plain(text: str) -> str:
    """A text without LaTeX around its numbers."""
    text = _SPACED.sub(",", text)
    text = _FRACTION.sub(r" \1/\2 ", _WORDS.sub(r" \1 ", text))
    return _IGNORED.sub("", text)


def _boxed(text: str) -> str | None:
    r"""What is in the last `\boxed{…}` that is closed."""
    last: tuple[int, int] | None = None
    # Where what is open began; only boxes count.
    opened: list[int | None] = []
    for found in _BRACES.finditer(text):
        if found[0] == "}":
            start = opened.pop() if opened else None
            if start is not None:
                last = max(last or (0, 0), (start, found.start()))
        elif found["box"] or found[0] == "{":
            opened.append(found.end() if found["box"] else None)
    return text[last[0] : last[1]] if last else None
