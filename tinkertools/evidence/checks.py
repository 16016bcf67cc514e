"""`--check`: whether an answer is right, by a Python expression or a regular expression of the user's."""

import ast
import difflib
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Literal

from tinkertools.errors import UsageError

Kind = Literal["expression", "regular expression"]

# What an expression is evaluated on, and what it may use beside it.
_GIVEN = ("answer", "reference", "prompt", "number")
_MODULES = {"re": re, "json": json}
_BUILTINS = {
    function.__name__: function
    for function in (
        abs, all, any, bool, chr, dict, divmod, enumerate, filter, float, frozenset, int, isinstance, len, list, map,
        max, min, ord, range, repr, reversed, round, set, sorted, str, sum, tuple, zip,
    )
}  # fmt: skip
_NAMES = (*_GIVEN, *_MODULES, *_BUILTINS)
_FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE, "a": re.ASCII}

_EXAMPLES = "--check 'number(answer) == number(reference)', --check '\"yes\" in answer.lower()' or --check '/^yes/i'"

# GSM8K's form: "#### -1,234.50", "#### $18", "#### 5%". A digit, letter or operator after it makes it another number.
_NUMBER = re.compile(
    r"\s*(?P<sign>[-+\u2212]?)\s*[$€£¥]?\s*(?P<second>[-+\u2212]?)(?P<digits>[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?!\.?[0-9])(?![\w/*^:])"
)
# No answer is a number of more digits, and Python refuses to read many.
_MOST_DIGITS = 300


@dataclass(frozen=True)
class Outcome:
    """Whether an answer passed; where the check could not be computed on it, why."""

    passed: bool
    reason: str | None = None


@dataclass(frozen=True)
class Check:
    """A check, and what it was taken for: say `kind`, so that nobody has a regular expression for an expression.

    An expression is the user's own code and runs in this process, as any Python of theirs would: nothing contains it,
    and one that never ends, or a regular expression that backtracks without end, is not stopped.
    """

    text: str
    kind: Kind
    # Whether it reads the reference answer, which then should be there.
    needs_reference: bool
    _run: Callable[[str, str | None, str], Any] = field(repr=False, compare=False)

    def __call__(self, answer: str, reference: str | None = None, prompt: str = "") -> Outcome:
        """Whether an answer passes.

        Args:
            answer: the model's.
            reference: the right one, where there is one.
            prompt: the user's last text.

        Raises:
            UsageError: the expression is neither true nor false.
        """
        try:
            found = self._run(answer, reference, prompt)
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises is this answer's failure
            return Outcome(False, f"{type(error).__name__}: {error}"[:500])
        if not isinstance(found, bool):
            raise UsageError(
                f"--check gives {_shortened(repr(found))}, a value of type {type(found).__name__}, on an answer, "
                "but must give True or False",
                hint=f"--check 'bool({self.text})', or compare it with something",
            )
        return Outcome(found)


def parse_check(text: str) -> Check:
    """A check from what was given to `--check`.

    - `/…/` or `/…/flags` is a regular expression, which passes an answer that it is found in; flags are of `imsxa`.
    - What Python can read is an expression. It must use `answer` and no name that it cannot have: `yes|no` and `42` are
      valid Python, too, and are refused rather than guessed at.
    - Anything else is a regular expression, unless it has `answer`, `reference`, `prompt` or `number` as a word: then
      it is an expression with a mistake, and is refused with its place.

    Raises:
        UsageError: it is none of these, or has a mistake.
    """
    text = text.strip()
    if not text:
        raise UsageError("--check is empty", hint=_EXAMPLES)
    if between := re.fullmatch(r"/(.*)/(\w*)", text, re.DOTALL):
        return _regular_expression(text, between[1], between[2])
    try:
        tree, code = _compiled(text)
    except SyntaxError as error:
        if re.search(rf"\b(?:{'|'.join(_GIVEN)})\b", text):
            place = _pointed(text, error.lineno or 1, 1 if error.offset is None else error.offset)
            raise UsageError(
                f"--check is not valid Python, {place[0]}: {error.msg}\n{place[1]}",
                hint="mend it, or write /…/ around a regular expression",
            ) from error
        return _regular_expression(text, text, "")
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"--check cannot be read: {error}", hint=_EXAMPLES) from error
    return _expression(text, tree, code)


def number(text: str) -> int | float | None:
    """The number after the last `####` of a text, as GSM8K's answers end; None without one.

    Commas and a currency before it are left out, and so is a percent sign after it: `#### $1,234.50` is 1234.5, `####
    5%` is 5. Words may follow; what makes it another number may not: `#### 18/2`, `#### 6:30` and `#### 5kg` are None.
    """
    _, mark, after = text.rpartition("####")
    found = _NUMBER.match(after) if mark else None
    if not found or (found["sign"] and found["second"]):
        return None
    digits = found["digits"].replace(",", "")
    if len(digits) > _MOST_DIGITS:
        return None
    value = float(digits) if "." in digits else int(digits)
    return value if (found["sign"] or found["second"]) in ("", "+") else -value


def _compiled(text: str) -> tuple[ast.Expression, CodeType]:
    with warnings.catch_warnings():
        # "\d" in an ordinary string works as it was meant.
        warnings.simplefilter("ignore")
        tree = ast.parse(text, "--check", mode="eval")
        return tree, compile(tree, "--check", "eval")


def _expression(text: str, tree: ast.Expression, code: CodeType) -> Check:
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in names:
        if node.id not in _NAMES and node.id not in own:
            near = difflib.get_close_matches(node.id, _NAMES, 1)
            # Python counts columns in bytes.
            line = text.split("\n")[node.lineno - 1]
            column = len(line.encode()[: node.col_offset].decode()) + 1
            place = _pointed(text, node.lineno, column)
            raise UsageError(
                f"--check uses {node.id}, which it does not have, {place[0]}\n{place[1]}",
                hint=f"did you mean {near[0]}?" if near else f"for a regular expression write --check '/{text}/'",
            )
    used = {node.id for node in names}
    if "answer" not in used:
        raise UsageError(
            "--check is a Python expression that does not use the answer, so all would pass or none",
            hint=f"for a regular expression write --check '/{text}/'; for an expression: {_EXAMPLES}",
        )

    def run(answer: str, reference: str | None, prompt: str) -> Any:
        def read(text: str | None) -> int | float | None:
            """`number`, but that a reference without one fails: it would equal an answer without one."""
            if text is None:
                raise ValueError("there is no reference")
            found = number(text)
            if found is None and text == reference:
                raise ValueError("the reference has no number after ####")
            return found

        given = {"answer": answer, "reference": reference, "prompt": prompt, "number": read}
        # The user's own code, as promised.
        return eval(code, {"__builtins__": _BUILTINS} | _MODULES | given)

    return Check(text, "expression", "reference" in used, run)


def _regular_expression(text: str, pattern: str, flags: str) -> Check:
    if unknown := set(flags) - set(_FLAGS):
        raise UsageError(
            f"--check has unknown flags after its last /: {', '.join(sorted(unknown))}", hint="flags are of i m s x a"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = re.compile(pattern, sum(_FLAGS[flag] for flag in set(flags)))
    except (re.error, RecursionError, OverflowError) as error:
        where = ""
        if isinstance(error, re.error) and error.pos is not None:
            # The slash before the pattern is shown as well.
            shown = text[1:] if pattern != text else text
            place = _pointed(shown, error.lineno or 1, error.colno or 1)
            where = f", {place[0]}: {error.msg}\n{place[1]}"
        raise UsageError(
            f"--check is neither valid Python nor a regular expression{where or f': {error}'}"
            if pattern == text
            else f"--check is not a regular expression{where or f': {error}'}",
            hint=_EXAMPLES,
        ) from error
    return Check(text, "regular expression", False, lambda answer, reference, prompt: bool(compiled.search(answer)))


def _pointed(text: str, line: int, column: int) -> tuple[str, str]:
    """A place in words, and its line with a caret under it. Column 0, as Python says it, is the end of the line."""
    lines = text.split("\n")
    shown = lines[min(line, len(lines)) - 1]
    column = column or len(shown) + 1
    start = max(0, column - 60)
    words = f"column {column}" if len(lines) == 1 else f"line {line}, column {column}"
    return words, f"    {shown[start : start + 100]}\n    {' ' * (column - 1 - start)}^"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
