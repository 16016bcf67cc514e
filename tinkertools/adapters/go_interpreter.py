"""As much of Go's templates as `go_template` writes: actions without trimming, `if`, `range`, a few functions.

It reads the text that is sent, so that a mistake in escaping shows. https://pkg.go.dev/text/template
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\$?\.\w+|\$\w+|\w+|[()]')
_ESCAPE = re.compile(r"\\U([0-9a-f]{8})")
_RANGE = "range $i, $_ := .Messages"


@dataclass
class _Block:
    """What an `if` or a `range` holds: its parts in order, each with the condition under which it is written."""

    loops: bool
    parts: list[tuple[str, list["str | _Value | _Block"]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Value:
    """An action that writes what an expression gives."""

    expression: str


@dataclass(frozen=True)
class _Scope:
    messages: Sequence[Mapping[str, str]]
    index: int = 0

    def field(self, name: str, of: Mapping[str, str]) -> str:
        return of[name.removeprefix(".").lower()]


def run(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What a Go template of `go_template` writes of messages, as Ollama gives them to it.

    Ollama joins messages of the same role that follow one another before; such are not to be given.

    Raises:
        ValueError: it is no template of these.
    """
    return "".join(_write(_parse(template), _Scope(messages)))


def _parse(template: str) -> list[Any]:
    root: list[Any] = []
    lists, blocks = [root], []
    position = 0
    for found in _ACTION.finditer(template):
        lists[-1].append(_plain(template[position : found.start()]))
        position = found.end()
        action = found[1]
        keyword, _, rest = action.partition(" ")
        if keyword in ("if", "range"):
            if keyword == "range" and action != _RANGE:
                raise ValueError(f"not a range over messages: {action}")
            block = _Block(keyword == "range", [("" if keyword == "range" else rest, [])])
            lists[-1].append(block)
            blocks.append(block)
            lists.append(block.parts[-1][1])
        elif keyword in ("else", "end"):
            lists.pop()
            if keyword == "end":
                blocks.pop()
                continue
            blocks[-1].parts.append((rest.removeprefix("if "), []))
            lists.append(blocks[-1].parts[-1][1])
        else:
            lists[-1].append(_Value(action))
    if blocks:
        raise ValueError("a block does not end")
    root.append(_plain(template[position:]))
    return root


def _plain(text: str) -> str:
    if "{{" in text:
        raise ValueError(f"not an action: {text}")
    return text


def _write(nodes: Sequence[Any], scope: _Scope) -> list[str]:
    written: list[str] = []
    for node in nodes:
        if isinstance(node, str):
            written.append(node)
        elif isinstance(node, _Value):
            written.append(str(_evaluate(node.expression, scope)))
        elif node.loops:
            for index in range(len(scope.messages)):
                written += _write(node.parts[0][1], _Scope(scope.messages, index))
        else:
            chosen: list[Any] = next(
                (part for condition, part in node.parts if not condition or _evaluate(condition, scope)), []
            )
            written += _write(chosen, scope)
    return written


def _evaluate(expression: str, scope: _Scope) -> Any:
    tokens = _TOKEN.findall(expression)
    value = _call(tokens, scope)
    if tokens:
        raise ValueError(f"not an expression: {expression}")
    return value


def _call(tokens: list[str], scope: _Scope) -> Any:
    """A function with its arguments, or a single operand; what is read is taken out of `tokens`."""
    name = tokens[0]
    if name not in ("eq", "ne", "and", "not", "index", "len", "slice"):
        return _operand(tokens, scope)
    tokens.pop(0)
    given = []
    while tokens and tokens[0] != ")":
        given.append(_operand(tokens, scope))
    match name:
        case "eq":
            return given[0] == given[1]
        case "ne":
            return given[0] != given[1]
        case "and":
            return all(given)
        case "not":
            return not given[0]
        case "len":
            return len(given[0])
        case "slice":
            return given[0][given[1] :]
        case _:
            return given[0][given[1]]


def _operand(tokens: list[str], scope: _Scope) -> Any:
    read = tokens.pop(0)
    if read == "(":
        value = _call(tokens, scope)
        tokens.pop(0)
        if tokens and tokens[0].startswith("."):
            return scope.field(tokens.pop(0), value)
        return value
    if read == "$i":
        return scope.index
    if read == "$.Messages":
        return scope.messages
    if read.startswith("."):
        return scope.field(read, scope.messages[scope.index])
    if read.startswith('"'):
        return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), read[1:-1])
    return int(read)
