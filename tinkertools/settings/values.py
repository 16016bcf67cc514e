"""Values as they are typed or stand in a file: taken as they are, or refused with what to write instead."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tinkertools.config import TrainConfig, setting
from tinkertools.errors import UsageError
from tinkertools.settings.expectations import example_of, expected, is_text, meant_word, types_of
from tinkertools.settings.keys import SWEEP, sweep_key
from tinkertools.settings.nodes import is_number, read_node, short

# Characters that have no place in a name or a path: files and the system refuse them.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def from_text(name: str, text: str, place: str) -> Any:
    """The value of a field that is typed as `text`.

    Raises:
        UsageError: it is none.
    """
    try:
        return _writable(_adapter(name).validate_strings(text), place)
    except ValidationError as error:
        hint = meant_word(name, text) or f"for example {place} {example_of(name)}"
        shown = short(text) if is_number(text) else f"'{short(text)}'"
        raise UsageError(f"{place} is {shown}, but must be {expected(name, text)}", hint=hint) from error


def from_node(name: str, node: Any, key: str, place: str) -> Any:
    """The value of a field that stands in a file.

    Raises:
        UsageError: it is none.
    """
    value, shown = read_node(node)
    try:
        return _writable(_adapter(name).validate_python(value), place)
    except ValidationError as error:
        hint = _hint(name, node, key) or f"for example {key}: {example_of(name)}"
        written = node.value if node.id == "scalar" else ""
        raise UsageError(f"{place} is {shown}, but must be {expected(name, written)}", hint=hint) from error


def _hint(name: str, node: Any, key: str) -> str | None:
    """What to write instead of a value in a file that is none, where that can be told."""
    items = read_node(node)[0] if node.id == "sequence" else []
    if items and setting(name).sweep and all(_accepts(name, item) for item in items):
        listed = read_node(node)[1].removeprefix("the list ")
        return f"one value; to try each, write\n    {SWEEP}:\n      {sweep_key(name)}: {listed}"
    if node.id != "scalar":
        return None
    value, written = read_node(node)[0], short(node.value)
    if bool in types_of(TrainConfig.model_fields[name]) and _fits(name, node.value):
        meant = str(_adapter(name).validate_strings(node.value)).lower()
        return f"write it {'without quotes' if value == meant else 'so'}: {key}: {meant}"
    if isinstance(value, str):
        return f"write it without quotes: {key}: {written}" if _fits(name, value) else meant_word(name, value)
    return f"write it in quotes: {key}: '{written}'" if is_text(name) else None


def _writable(value: Any, place: str) -> Any:
    """A value that files and the system take.

    Raises:
        UsageError: a text has a character that they do not.
    """
    if isinstance(value, str | Path) and (found := _NO_TEXT.search(str(value))):
        raise UsageError(
            f"{place} has the character {found[0]!a}, which no text can have", hint="write it without that character"
        )
    return value


def _accepts(name: str, value: Any) -> bool:
    try:
        _adapter(name).validate_python(value)
    except ValidationError:
        return False
    return True


def _fits(name: str, text: str) -> bool:
    try:
        _adapter(name).validate_strings(text)
    except ValidationError:
        return False
    return True


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    annotation = TrainConfig.model_fields[name].rebuild_annotation()
    return TypeAdapter(annotation, config={"allow_inf_nan": False, "strict": True})
