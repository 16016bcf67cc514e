"""Settings of a run as people give them, on the command line and in YAML: read with their places, and written."""

import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from tinkertools.config import SettingError, TrainConfig, setting
from tinkertools.errors import SECRET_NAME, UsageError
from tinkertools.files import explain_os_errors

# Choices that are longer than this are told in the help text.
_WIDEST = 50
# The section of lists that make a grid of runs.
SWEEP = "sweep"


@dataclass(frozen=True)
class Given:
    """Settings that were given.

    Attributes:
        values: by field of `TrainConfig`; never None, which is the same as nothing given.
        places: how an error names each: `--rank`, or `run.yaml:3: model.lora_rank`.
        grid: lists of values by field, of which each combination is a run.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)

    def under(self, stronger: "Given") -> "Given":
        """These, where `stronger` says nothing else."""
        grid = {name: values for name, values in self.grid.items() if name not in stronger.values}
        return Given(self.values | stronger.values, self.places | stronger.places, grid | stronger.grid)

    def config(self, **more: Any) -> TrainConfig:
        """The configuration that they make, with defaults for what is not given.

        Raises:
            UsageError: they contradict each other.
        """
        try:
            return TrainConfig(**(self.values | more))
        except SettingError as error:
            place = self.places.get(error.field, "")
            where = f"{place}: " if place and not place.startswith("--") else ""
            raise UsageError(f"{where}{error.message}", hint=error.hint) from error

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Each point of the grid, the last field changing fastest."""
        points: list[dict[str, Any]] = [{}]
        for name, values in self.grid.items():
            points = [point | {name: value} for point in points for value in values]
        yield from points


def option_of(name: str) -> str:
    """The option of a field, as it is typed."""
    return setting(name).flag or f"--{name.replace('_', '-')}"


def from_options(options: Mapping[str, Any]) -> Given:
    """What stands on the command line, as text; None is what does not. A text with commas is a list of values.

    Raises:
        UsageError: a value is none, or there are several of a setting that takes one.
    """
    given = Given()
    for name, value in options.items():
        if value is None:
            continue
        place = option_of(name)
        if isinstance(value, bool):  # of a switch; one that only exists as --no-… is true where it is given
            given.values[name] = value is not place.startswith("--no-")
        elif setting(name).sweep and "," in value:
            texts = [text for text in value.split(",") if text]
            _add_list(given, name, [_checked(name, text, place, text=True) for text in texts], place)
        else:
            given.values[name] = _checked(name, value, place, text=True)
        given.places[name] = place
    return given


def read_file(path: Path) -> Given:
    """What a YAML file gives. A value of null is the same as none.

    Raises:
        UsageError: it is no YAML, or a key or value in it is none of ours; the message has the line.
        FileError: it is not readable.
    """
    given = Given()
    document = _parse(path)
    for section, values, line in _items(document, path, "the file"):
        if section not in _sections():
            raise _unknown(f"{path}:{line}: there is no section '{section}'", section, None)
        if values is None:
            continue
        if not isinstance(values, dict):
            raise UsageError(
                f"{path}:{line}: {section} is {_shown(values)}, but must hold settings",
                hint=f"{section}:\n      {next(iter(_sections()[section]))}: …",
            )
        for key, value, at in _items(values, path, section):
            name = _sections()[section].get(key)
            place = f"{path}:{at}: {section}.{key}"
            if name is None:
                raise _unknown(f"{path}:{at}: there is no {section}.{key}", key, section)
            if value is None:
                continue
            given.places[name] = place
            if section == SWEEP:
                if not isinstance(value, list):
                    raise UsageError(f"{place} is {_shown(value)}, but must be a list", hint=f"{key}: [{value}, …]")
                _add_list(given, name, [_checked(name, item, place) for item in value], place)
            else:
                given.values[name] = _checked(name, value, place)
    return given


def write_yaml(config: TrainConfig, grid: Mapping[str, Sequence[Any]], *, explained: bool = True) -> str:
    """A file that gives exactly this; each key with what it is, where it is `explained`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    values = config.to_json()
    document = CommentedMap()
    for section, keys in _sections().items():
        if section == SWEEP:
            continue
        document[section] = written = CommentedMap()
        for key, name in keys.items():
            written[key] = values[name]
            if explained:
                written.yaml_set_comment_before_after_key(key, before=setting(name).help, indent=2)
    if grid:
        document[SWEEP] = {setting(name).key.partition(".")[2]: list(found) for name, found in grid.items()}
    out = io.StringIO()
    yaml = YAML()
    yaml.width = 10_000
    yaml.representer.add_representer(type(None), lambda it, _: it.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.dump(document, out)
    return out.getvalue()


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file."""
    properties = TrainConfig.model_json_schema()["properties"]
    sections: dict[str, Any] = {}
    for section, keys in _sections().items():
        described = {}
        for key, name in keys.items():
            values = {k: v for k, v in properties[name].items() if k not in ("default", "title")}
            if section == SWEEP:
                described[key] = {"type": ["array", "null"], "items": values, "minItems": 1}
            else:
                values = (
                    values if {"type": "null"} in values.get("anyOf", ()) else {"anyOf": [values, {"type": "null"}]}
                )
                described[key] = values | {"description": setting(name).help, "default": properties[name]["default"]}
        sections[section] = {"type": ["object", "null"], "properties": described, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A run of tt train",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
    }


@cache
def _sections() -> dict[str, dict[str, str]]:
    """The fields by section and key, in the order of `TrainConfig`; what can be swept by its key and its own name."""
    found: dict[str, dict[str, str]] = {}
    sweep: dict[str, str] = {}
    for name in TrainConfig.model_fields:
        section, _, key = setting(name).key.partition(".")
        found.setdefault(section, {})[key] = name
        if setting(name).sweep:
            sweep[key] = name
            sweep[name] = name
    return found | {SWEEP: sweep}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    annotation = TrainConfig.model_fields[name].rebuild_annotation()
    return TypeAdapter(annotation, config={"allow_inf_nan": False, "strict": True})


def _checked(name: str, value: Any, place: str, *, text: bool = False) -> Any:
    """A value of a field: `text` as it is typed, else of the right type.

    Raises:
        UsageError: it is none.
    """
    try:
        return _adapter(name).validate_strings(value) if text else _adapter(name).validate_python(value)
    except ValidationError:
        pass
    key = setting(name).key.partition(".")[2]
    expected = expectation(name)
    shown = value if text and _is_number(value) else _shown(value)
    hint = f"for example {place} {_example(name)}" if text else f"for example {key}: {_example(name)}"
    if not text and isinstance(value, list):
        several = f"{SWEEP}:\n      {key}: {value}"
        hint = f"one value; to try each, write\n    {several}" if setting(name).sweep else hint
    elif not text and isinstance(value, str) and _fits(name, value):
        hint = f"write it without quotes: {key}: {value}" if _is_number(value) else f"for example {key}: true"
    elif not text and not isinstance(value, str | dict) and _fits(name, str(value)):
        hint = f"write it in quotes: {key}: '{value}'"
    elif close := difflib.get_close_matches(str(value).lower(), choices(name), n=1):
        hint = f"did you mean {close[0]}?"
    raise UsageError(f"{place} is {shown}, but must be {expected}", hint=hint)


def _fits(name: str, text: str) -> bool:
    try:
        _adapter(name).validate_strings(text)
    except ValidationError:
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def expectation(name: str) -> str:
    """What the values of a field are, in words."""
    info = TrainConfig.model_fields[name]
    if said := setting(name).expects:
        return said
    if words := choices(name):
        many = "one or more of" if get_origin(info.annotation) is tuple else "one of"
        return f"{many} {', '.join(words)}"
    kinds = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    kind = next((word for kind, word in kinds.items() if kind in _types(info)), "text")
    least = next((item.ge for item in info.metadata if hasattr(item, "ge")), None)
    if least is None:
        return kind
    return f"{kind} of at least {least}" if least else f"{kind}, 0 or more"


def _types(info: FieldInfo) -> tuple[Any, ...]:
    """The types of a field's values, without None."""
    return tuple(kind for kind in get_args(info.annotation) or (info.annotation,) if kind is not type(None))


def choices(name: str) -> list[str]:
    """The words that a field takes, where it takes words of a list."""
    annotation = TrainConfig.model_fields[name].annotation
    found = [annotation] if get_origin(annotation) is Literal else _types(TrainConfig.model_fields[name])
    return [word for kind in found if get_origin(kind) is Literal for word in get_args(kind)]


def type_shown(name: str) -> str:
    """The kind of a field's values, as help pages show it."""
    if found := choices(name):
        return "|".join(found) if len("|".join(found)) < _WIDEST else "NAME"
    kinds = {int: "INTEGER", float: "NUMBER", bool: "true|false", Path: "PATH"}
    return next((word for kind, word in kinds.items() if kind in _types(TrainConfig.model_fields[name])), "TEXT")


def default_shown(name: str) -> str:
    """The default of a field, as help pages show it; empty where something is chosen."""
    default = TrainConfig.model_fields[name].default
    if default is None or default in ("", ()):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _example(name: str) -> str:
    default = TrainConfig.model_fields[name].default
    if name in (examples := {"learning_rate": "1e-4", "val_fraction": "0.1"}):
        return examples[name]
    return str(default).lower() if isinstance(default, bool) else str(default or 1)


def _add_list(given: Given, name: str, values: list[Any], place: str) -> None:
    """A list of values makes a grid, if there are several different ones.

    Raises:
        UsageError: there is none, or one stands there twice.
    """
    if not values:
        raise UsageError(f"{place} is an empty list", hint="name the values to try, or leave it out")
    if twice := next((value for i, value in enumerate(values) if value in values[:i]), None):
        raise UsageError(f"{place} has {twice} twice", hint="each value makes a run: leave one out")
    given.grid[name] = values


def _parse(path: Path) -> Any:
    """The document in a file, its mappings knowing their lines.

    Raises:
        UsageError: it is no YAML of one mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    with explain_os_errors(path):
        content = path.read_bytes()
    try:
        document = YAML().load(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: this is not UTF-8", hint="save the file as UTF-8") from error
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise UsageError(
            f"{path}:{line}: {str(error.problem).removeprefix('found ')}", hint="leave one of them out"
        ) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        text = content.decode().splitlines()[line - 1 : line]
        tabs = bool(text) and "\t" in text[0][: len(text[0]) - len(text[0].lstrip())]
        raise UsageError(
            f"{path}:{line}: {'a line begins with a tab' if tabs else f'this is no YAML: {error.problem}'}",
            hint="indent with spaces" if tabs else "tt train --print-config shows what such a file looks like",
        ) from error
    except (YAMLError, ValueError) as error:
        first_line = str(error).strip().split("\n", maxsplit=1)[0]
        raise UsageError(f"{path}: this is no YAML: {first_line}", hint="tt train --print-config writes one") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(
            f"{path}: holds {_shown(document)}, but must hold sections",
            hint="tt train --print-config writes such a file",
        )
    return document


def _items(mapping: Any, path: Path, where: str) -> Iterator[tuple[str, Any, int]]:
    """Keys and values with the line of each.

    Raises:
        UsageError: a key is no text.
    """
    for key, value in mapping.items():
        line = mapping.lc.key(key)[0] + 1
        if not isinstance(key, str):
            raise UsageError(f"{path}:{line}: {_shown(key)} in {where} is no key", hint="a key is a word")
        yield key, _plain(value), line


def _plain(value: Any) -> Any:
    """A value of Python's own type: the parser's remember how they were written."""
    if isinstance(value, bool) or value is None or isinstance(value, dict):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    """A value as an error names it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{value}'" if _is_number(value) else f"'{value}'"
    if isinstance(value, dict):
        return "a section of keys"
    return f"the list {value}" if isinstance(value, list) else str(value)


def _unknown(message: str, word: str, section: str | None) -> UsageError:
    """An unknown section or key, and what was probably meant."""
    sections = _sections()
    if SECRET_NAME.search(word):
        return UsageError(message, hint="keys come from the environment or from .env, never from this file")
    if section == SWEEP:
        known = [key for key, name in sections[SWEEP].items() if key == setting(name).key.partition(".")[2]]
        if any(word in keys for keys in sections.values()) or word in TrainConfig.model_fields:
            return UsageError(
                f"{message}: it has one value in all runs", hint=f"these can be tried: {', '.join(known)}"
            )
    else:
        known = list(sections if section is None else sections[section])
        meant = next((found for found in TrainConfig.model_fields if word in (found, *_names(found))), None)
        if meant:
            home, _, key = setting(meant).key.partition(".")
            return UsageError(message, hint=f"write it as\n    {home}:\n      {key}: …")
    close = difflib.get_close_matches(word, known, n=1)
    what = "sections are" if section is None else f"{section} has"
    return UsageError(message, hint=f"did you mean {close[0]}?" if close else f"{what} {', '.join(known)}")


def _names(name: str) -> tuple[str, str]:
    return setting(name).key.partition(".")[2], name.replace("_", "-")
