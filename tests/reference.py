"""The reference of every option of every command, as Markdown, made from the code.

`python tests/reference.py` writes it into the README; `test_reference.py` holds the README against it.
"""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import typer

from tinkertools.cli import COMMANDS, build, command_of
from tinkertools.config import TrainConfig, setting
from tinkertools.settings.expectations import default_shown, type_shown
from tinkertools.settings.keys import option_of

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- Made by `python tests/reference.py`: change the code, not this. -->"
END = "<!-- Here ends what is made. -->"

_KINDS = {bool: "switch", int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}
_SECTIONS = tuple(dict.fromkeys(setting(name).key.rpartition(".")[0] for name in TrainConfig.model_fields))

Row = tuple[str, ...]


def reference() -> str:
    """A table for each command; for `tt train` one for each section of its YAML file as well."""
    made: Any = typer.main.get_command(build())
    parts = []
    for name, module, _ in COMMANDS:
        function = command_of(module)
        own = [param for param in made.commands[name].params if param.name not in _settings_of(name)]
        parts.append(f"### Options of tt {name}")
        parts.append(_table([("option", "value", "default", "")] + [_row(param, function) for param in own]))
        for section in _SECTIONS if _settings_of(name) else ():
            fields = [field for field in _settings_of(name) if setting(field).key.rpartition(".")[0] == section]
            titles = ("option", "value", "default", f"key in `{section}:`" if section else "key, in no section", "")
            parts.append(_table([titles, *map(_setting_row, fields)]))
    return "\n\n".join(parts)


def in_readme(readme: str) -> str:
    """What stands in the README's text now."""
    return readme.partition(BEGIN)[2].partition(END)[0].strip()


def write() -> None:
    """Write it into the README."""
    readme = README.read_text(encoding="utf-8")
    before, found, rest = readme.partition(BEGIN)
    assert found and END in rest, f"{README} has lost its marks"
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}", encoding="utf-8")


def _settings_of(command: str) -> tuple[str, ...]:
    """The settings of a run that a command has as options."""
    return tuple(TrainConfig.model_fields) if command == "train" else ()


def _row(param: Any, function: Callable[..., None]) -> Row:
    """An option or an argument that is a command's own."""
    if param.param_type_name == "argument":
        return (f"`{param.metavar}`", "", "", param.help)
    option = f"`{'/'.join([*param.opts, *param.secondary_opts])}`"
    kind = _kind(inspect.signature(function).parameters[param.name].annotation)
    if kind == "switch":
        on_or_off = [*param.opts, *param.secondary_opts][0 if param.default else -1].removeprefix("--")
        return (option, kind, _code(on_or_off if param.secondary_opts else ""), param.help)
    default = "required" if param.required else _code(_shown(param.default))
    return (option, param.metavar or kind, default, param.help)


def _kind(annotation: Any) -> str:
    """The values of an option, by its annotation; without None, which stands for nothing given."""
    kind = get_args(annotation)[0]
    kinds = [item for item in get_args(kind) or (kind,) if item is not NoneType]
    if get_origin(kind) is Literal:
        return "|".join(kinds)
    return _KINDS.get(kinds[0], "TEXT")


def _setting_row(name: str) -> Row:
    """A setting of a run: its option, and its key in the file."""
    about, default = setting(name), TrainConfig.model_fields[name].default
    key = about.key.rpartition(".")[2]
    if not about.flag:
        values = type_shown(name) + ",…" * about.sweep
        return (f"`{option_of(name)}`", values, _code(default_shown(name)), f"`{key}`", about.help)
    on, _, off = about.flag.partition("/")
    if off:
        return (f"`{about.flag}`", "switch", _code((on if default else off).removeprefix("--")), f"`{key}`", about.help)
    return (f"`{about.flag}`", "switch", "", f"`{key}: {str(not default).lower()}`", about.help)


def _shown(default: Any) -> str:
    if default is None:
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(rows: Iterable[Row]) -> str:
    """A table, the titles first. All columns but the last stand under each other as plain text, too."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in list(zip(*escaped, strict=True))[:-1]]
    lines = [[*map(str.ljust, row, widths), row[-1]] for row in escaped]
    lines.insert(1, [*("-" * width for width in widths), "---"])
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


if __name__ == "__main__":
    write()
