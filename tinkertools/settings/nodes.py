"""YAML before it becomes values: each node knows its line, and how it was written."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinkertools.errors import UsageError
from tinkertools.files import explain_os_errors

# A file has sections of keys of lists; what nests deeper is none of ours, and may not be read at any cost.
_DEEPEST = 20
# Longer values are not repeated whole in an error.
_LONGEST = 80
# What a file may hold that no setting is.
_STRANGE = object()
# How YAML calls its kinds of values, and those that are no text.
_YAML = "tag:yaml.org,2002:"
_BARE = ("null", "bool", "int", "float")


def read_document(path: Path) -> Any:
    """The one mapping in a file, as the parser has it before it makes values: each node knows its line, and how it was
    written.

    Raises:
        UsageError: it is no YAML, or something else than sections.
        FileError: it is not readable.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
    from ruamel.yaml.reader import ReaderError

    with explain_os_errors(path):
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}:{_line(content[: error.start])}: this is not UTF-8", hint="save it as UTF-8"
        ) from error
    depth = 0
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > _DEEPEST:
                raise UsageError(
                    f"{path}:{event.start_mark.line + 1}: this is nested too deeply", hint="a file has sections of keys"
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor that is set anew is right YAML
            document: Any = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what, hint = _no_yaml(str(error.problem), text[mark.index : mark.index + 1])
        raise UsageError(f"{path}:{mark.line + 1}: {what}", hint=hint) from error
    except ReaderError as error:
        line = _line(text[: error.position].encode(errors="replace"))
        raise UsageError(
            f"{path}:{line}: a character that no YAML has: {chr(error.character)!a}",
            hint="write it without that character",
        ) from error
    if document is None or is_null(document):
        raise UsageError(f"{path} holds nothing", hint="tt train --print-config writes such a file")
    if document.id != "mapping":
        raise UsageError(
            f"{path}:{document.start_mark.line + 1}: this is {read_node(document)[1]}, but a file must hold sections",
            hint="tt train --print-config writes such a file",
        )
    return document


def _line(before: bytes) -> int:
    """The number of the line that follows."""
    return before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1


def _no_yaml(problem: str, character: str) -> tuple[str, str]:
    """What is wrong with a text that is no YAML, and what to do; `character` is where it was noticed."""
    if character == "\t":
        return "a tab stands where only spaces may", "write spaces instead"
    if problem == "but found another document":
        return "a second document begins", "one file is one run: leave the rest out"
    if "escape character" in problem or problem.startswith("expected escape sequence"):
        return f"this is no YAML: {problem}", "in single quotes a backslash is only a backslash"
    return f"this is no YAML: {problem}", "tt train --print-config shows what such a file looks like"


def entries(mapping: Any, path: Path) -> Iterator[tuple[str, Any, str]]:
    """Keys and what stands under them, each with the file and the line of the key.

    Raises:
        UsageError: a key is no word, or stands there twice.
    """
    lines: dict[str, int] = {}
    for key, value in mapping.value:
        line = key.start_mark.line + 1
        at = f"{path}:{line}"
        if key.tag == f"{_YAML}merge":
            raise UsageError(f"{at}: keys cannot be merged in with <<", hint="write them here")
        if key.tag != f"{_YAML}str":
            raise UsageError(f"{at}: {read_node(key)[1]} is no key", hint="a key is a word")
        if key.value in lines:
            raise UsageError(
                f"{at}: {short(key.value)} stands here and in line {lines[key.value]}", hint="leave one of them out"
            )
        lines[key.value] = line
        yield key.value, value, at


def listed(node: Any, key: str, place: str) -> list[Any]:
    """What stands in a list.

    Raises:
        UsageError: it is no list.
    """
    if node.id == "sequence":
        found: list[Any] = node.value
        return found
    example = f"[{short(node.value)}, …]" if node.id == "scalar" else "[…, …]"
    raise UsageError(f"{place} is {read_node(node)[1]}, but must be a list", hint=f"{key}: {example}")


def is_null(node: Any) -> bool:
    """Whether null stands there, or nothing."""
    return bool(node.tag == f"{_YAML}null")


def read_node(node: Any) -> tuple[Any, str]:
    """What stands in a file: what it means, and how an error names it."""
    if node.id == "mapping":
        return _STRANGE, "a section of keys"
    if node.id == "sequence":
        # Lists of lists are none of ours, and an anchor may make a list part of itself.
        items = [_scalar(item) if item.id == "scalar" else _STRANGE for item in node.value]
        shown = [short(item.value) if item.id == "scalar" else "[…]" for item in node.value[: _LONGEST // 8]]
        return items, f"the list [{', '.join(shown)}{', …' * (len(items) > len(shown))}]"
    value = _scalar(node)
    if isinstance(value, str):
        return value, f"{'the text ' * is_number(value)}'{short(value)}'"
    tag = "" if node.tag.removeprefix(_YAML) in _BARE else f"{node.tag.replace(_YAML, '!!')} "
    return value, tag + short(node.value)


def _scalar(node: Any) -> Any:
    """A value of Python's own type; dates are text, as YAML 1.2 has it."""
    from ruamel.yaml import YAML

    kind = node.tag.removeprefix(_YAML)
    if kind in ("str", "timestamp", "merge", "value"):
        return str(node.value)
    made = YAML(typ="safe", pure=True).constructor
    make = {"int": made.construct_yaml_int, "float": made.construct_yaml_float, "bool": made.construct_yaml_bool}
    try:
        return None if kind == "null" else make[kind](node)
    except (LookupError, ValueError):
        return _STRANGE


def is_number(text: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def short(text: str) -> str:
    """A text as an error shows it, on one line."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
