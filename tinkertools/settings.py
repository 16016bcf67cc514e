"""Settings of a run as people give them, on the command line and in YAML: read with their places, and written."""

import difflib
import io
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from tinkertools.config import MOST, SettingError, TrainConfig, setting
from tinkertools.errors import UsageError
from tinkertools.files import explain_os_errors

# Choices that are longer than this are told in the help text.
_WIDEST = 50
# The section of lists that make a grid of runs.
SWEEP = "sweep"
# The list of runs that follow one another, and what a name of one is.
STAGES = "stages"
_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_A_STAGE = "stages:\n      - name: sft\n        dataset: {name: chats.jsonl}"
# A file has sections of keys of lists; what nests deeper is none of ours, and may not be read at any cost.
_DEEPEST = 20
# Longer values are not repeated whole in an error.
_LONGEST = 80
# What a file may hold that no setting is.
_STRANGE = object()
# Characters that have no place in a name or a path: files and the system refuse them.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_SECRET_KEY = re.compile(r"(^|_)(key|token|secret|password|credentials?)$", re.IGNORECASE)
# How YAML calls its kinds of values, and those that are no text.
_YAML = "tag:yaml.org,2002:"
_BARE = ("null", "bool", "int", "float")


@dataclass(frozen=True)
class Given:
    """Settings that were given.

    Attributes:
        values: by field of `TrainConfig`. None, where an option is given as "", takes away what a file gives.
        places: how an error names each: `--rank`, or `run.yaml:3: model.lora_rank`.
        grid: lists of values by field, of which each combination is a run.
        stages: runs that follow one another; these settings hold for all of them, under their own.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    stages: "tuple[GivenStage, ...]" = ()

    def under(self, stronger: "Given") -> "Given":
        """These, where `stronger` says nothing else."""
        grid = {name: values for name, values in self.grid.items() if name not in stronger.values}
        return Given(
            self.values | stronger.values,
            self.places | stronger.places,
            grid | stronger.grid,
            tuple(replace(stage, given=stage.given.under(stronger)) for stage in self.stages) or stronger.stages,
        )

    def config(self, **more: Any) -> TrainConfig:
        """The configuration that they make, with defaults for what is not given.

        Raises:
            UsageError: they contradict each other.
        """
        try:
            return TrainConfig(**(self.values | more))
        except SettingError as error:
            raise at_its_place(error, self.places) from error

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Each point of the grid, the last field changing fastest."""
        points: list[dict[str, Any]] = [{}]
        for name, values in self.grid.items():
            points = [point | {name: value} for point in points for value in values]
        yield from points


@dataclass(frozen=True)
class GivenStage:
    """A stage as a file has it: its name, where it stands, and its own settings."""

    name: str
    place: str
    given: Given


def at_its_place(error: SettingError, places: Mapping[str, str]) -> UsageError:
    """A contradiction, with the line of the setting where a file gives it."""
    place = places.get(error.field, "")
    where = f"{place}: " if place and not place.startswith("--") else ""
    return UsageError(f"{where}{error.message}", hint=error.hint)


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
            _add_list(given, name, [_from_text(name, text, place) for text in texts], place)
        else:
            given.values[name] = _from_text(name, value, place)
        given.places[name] = place
    return given


def read_file(path: Path) -> Given:
    """What a YAML file gives. A value of null is the same as none.

    Raises:
        UsageError: it is no YAML, or a key or value in it is none of ours; the message has the line.
        FileError: it is not readable.
    """
    return _given(_items(_document(path), path), path)


def _given(items: Iterable[tuple[str, Any, str]], path: Path) -> Given:
    """What sections give, each with its name, what stands in it and where.

    Raises:
        UsageError: a key or value is none of ours.
    """
    given = Given()
    for section, values, at in items:
        if section == STAGES:
            given = replace(given, stages=_stages(values, at, path))
            continue
        if section in _sections()[""]:
            _add_value(given, section, values, section, f"{at}: {section}")
            continue
        if section not in _sections():
            raise _unknown(f"{at}: there is no section '{section}'", section, None)
        if _is_null(values):
            continue
        if values.id != "mapping":
            raise UsageError(
                f"{at}: {section} is {_read(values)[1]}, but must hold settings",
                hint=f"{section}:\n      {next(iter(_sections()[section]))}: …",
            )
        for key, value, line in _items(values, path):
            name = _sections()[section].get(key)
            place = f"{line}: {section}.{key}"
            if name is None:
                raise _unknown(f"{line}: there is no {section}.{key}", key, section)
            if _is_null(value):
                continue
            if section == SWEEP:
                _add_list(
                    given, name, [_from_file(name, item, key, place) for item in _listed(value, key, place)], place
                )
                given.places.setdefault(name, place)
            else:
                _add_value(given, name, value, key, place)
    return given


def _stages(node: Any, place: str, path: Path) -> tuple[GivenStage, ...]:
    """The stages of a file, in order.

    Raises:
        UsageError: one has no name, or that of another, or is none.
    """
    found: dict[str, GivenStage] = {}
    for item in [] if _is_null(node) else _listed(node, STAGES, f"{place}: {STAGES}"):
        at = f"{path}:{item.start_mark.line + 1}"
        if item.id != "mapping":
            shown = "empty" if _is_null(item) else _read(item)[1]
            raise UsageError(f"{at}: a stage is {shown}, but must hold a name and settings", hint=_A_STAGE)
        name, own = None, []
        for key, value, line in _items(item, path):
            if key == "name":
                name, at = value, line
            elif key == STAGES:
                raise UsageError(f"{line}: a stage has no stages", hint="write them one after the other")
            else:
                own.append((key, value, line))
        stage = GivenStage(_stage_name(name, at), at, _given(own, path))
        if stage.name in found:
            raise UsageError(
                f"{at}: there are two stages {stage.name}, the other in {found[stage.name].place}",
                hint="give one of them another name",
            )
        found[stage.name] = stage
    if not found and not _is_null(node):
        raise UsageError(f"{place}: {STAGES} is an empty list", hint=_A_STAGE)
    return tuple(found.values())


def _stage_name(node: Any, at: str) -> str:
    """The name of a stage, which is that of its folder too.

    Raises:
        UsageError: it has none, or one that could be no folder's.
    """
    if node is None or _is_null(node):
        raise UsageError(f"{at}: a stage has no name", hint=_A_STAGE)
    name, shown = _read(node)
    if not isinstance(name, str) or not _STAGE_NAME.fullmatch(name):
        raise UsageError(
            f"{at}: name is {shown}, but must be letters, digits, _, - and .", hint="for example name: sft"
        )
    return name


def _add_value(given: Given, name: str, node: Any, key: str, place: str) -> None:
    """A value that stands in a file; null is the same as none.

    Raises:
        UsageError: it is none of the setting's.
    """
    if not _is_null(node) and (found := _from_file(name, node, key, place)) is not None:
        given.values[name] = found
        given.places[name] = place


def write_yaml(config: TrainConfig, grid: Mapping[str, Sequence[Any]], *, explained: bool = True) -> str:
    """A file that gives exactly this; each key with what it is, where it is `explained`."""
    document = _written(config, TrainConfig.model_fields, explained=explained)
    if grid:
        document[SWEEP] = {_sweep_key(name): [*map(_quoted, found)] for name, found in grid.items()}
    return _dumped(document)


def write_some(config: TrainConfig, names: Collection[str]) -> str:
    """A file that gives these settings of a configuration, and no others."""
    return _dumped(_written(config, names, explained=False))


def write_stages(shared: TrainConfig, names: Collection[str], stages: Sequence[tuple[str, TrainConfig]]) -> str:
    """A file that gives exactly these stages, by name; `names` are the settings that are written outside of them."""
    document = _written(shared, names, explained=False)
    own = [name for name in TrainConfig.model_fields if name not in names]
    document[STAGES] = [{"name": name, **_written(config, own, explained=False)} for name, config in stages]
    return _dumped(document)


def _written(config: TrainConfig, names: Collection[str], *, explained: bool) -> Any:
    """Settings in their sections, as they are dumped."""
    from ruamel.yaml.comments import CommentedMap

    values = config.to_json()
    document = CommentedMap()
    for section, keys in _sections().items():
        if section == SWEEP:
            continue
        written = document if not section else CommentedMap()
        for key, name in keys.items():
            if name not in names:
                continue
            written[key] = _quoted(values[name])
            if explained:
                indent = 2 if section else 0
                written.yaml_set_comment_before_after_key(key, before=setting(name).help, indent=indent)
        if section and written:
            document[section] = written
    return document


def _dumped(document: Any) -> str:
    from ruamel.yaml import YAML

    out = io.StringIO()
    yaml = YAML()
    yaml.width = 10_000
    yaml.representer.add_representer(type(None), lambda it, _: it.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.dump(document, out)
    return out.getvalue()


def _quoted(value: Any) -> Any:
    """A value to write, with escapes where a text has characters that do not show: YAML takes some for line breaks."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    return DoubleQuotedScalarString(value) if isinstance(value, str) and not value.isprintable() else value


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file."""
    properties = TrainConfig.model_json_schema()["properties"]
    sections: dict[str, Any] = {}
    for section, keys in _sections().items():
        described = {}
        for key, name in keys.items():
            values = {k: v for k, v in properties[name].items() if k not in ("default", "title")}
            if section == SWEEP:
                described[key] = {"type": ["array", "null"], "items": values, "minItems": 1, "uniqueItems": True}
            else:
                values = (
                    values if {"type": "null"} in values.get("anyOf", ()) else {"anyOf": [values, {"type": "null"}]}
                )
                described[key] = values | {"description": setting(name).help, "default": properties[name]["default"]}
        if section:
            sections[section] = {"type": ["object", "null"], "properties": described, "additionalProperties": False}
        else:
            sections |= described
    sections[STAGES] = _schema_of_stages(sections)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A run of tt train",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
    }


def _schema_of_stages(sections: Mapping[str, Any]) -> dict[str, Any]:
    """What the list of stages may hold: in each a name, and what a run's file may."""
    own = {section: described for section, described in sections.items() if section != SWEEP}
    name = {"type": "string", "pattern": f"^{_STAGE_NAME.pattern}$", "description": "Its folder, and stage:NAME."}
    stage = {"type": "object", "properties": {"name": name, **own}, "required": ["name"], "additionalProperties": False}
    about = "Runs one after the other; what stands outside of them holds for all, where they say nothing else."
    return {"type": ["array", "null"], "items": stage, "minItems": 1, "description": about}


@cache
def _sections() -> dict[str, dict[str, str]]:
    """The fields by section and key, in the order of `TrainConfig`; what can be swept by its key, where no other field
    has that in another section, and its own name.

    What stands in a file outside of any section is under "".
    """
    found: dict[str, dict[str, str]] = {}
    sweep: dict[str, str] = {}
    for name in TrainConfig.model_fields:
        section, _, key = setting(name).key.rpartition(".")
        found.setdefault(section, {})[key] = name
        if setting(name).sweep:
            sweep[_sweep_key(name)] = name
            sweep[name] = name
    return found | {SWEEP: sweep}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    annotation = TrainConfig.model_fields[name].rebuild_annotation()
    return TypeAdapter(annotation, config={"allow_inf_nan": False, "strict": True})


def _from_text(name: str, text: str, place: str) -> Any:
    """The value of a field that is typed as `text`.

    Raises:
        UsageError: it is none.
    """
    try:
        return _writable(_adapter(name).validate_strings(text), place)
    except ValidationError as error:
        hint = _meant(name, text) or f"for example {place} {_example(name)}"
        shown = _short(text) if _is_number(text) else f"'{_short(text)}'"
        raise UsageError(f"{place} is {shown}, but must be {_expected(name, text)}", hint=hint) from error


def _from_file(name: str, node: Any, key: str, place: str) -> Any:
    """The value of a field that stands in a file.

    Raises:
        UsageError: it is none.
    """
    value, shown = _read(node)
    try:
        return _writable(_adapter(name).validate_python(value), place)
    except ValidationError as error:
        hint = _hint(name, node, key) or f"for example {key}: {_example(name)}"
        written = node.value if node.id == "scalar" else ""
        raise UsageError(f"{place} is {shown}, but must be {_expected(name, written)}", hint=hint) from error


def _hint(name: str, node: Any, key: str) -> str | None:
    """What to write instead of a value in a file that is none, where that can be told."""
    items = _read(node)[0] if node.id == "sequence" else []
    if items and setting(name).sweep and all(_accepts(name, item) for item in items):
        listed = _read(node)[1].removeprefix("the list ")
        return f"one value; to try each, write\n    {SWEEP}:\n      {_sweep_key(name)}: {listed}"
    if node.id != "scalar":
        return None
    value, written = _read(node)[0], _short(node.value)
    if bool in _types(TrainConfig.model_fields[name]) and _fits(name, node.value):
        meant = str(_adapter(name).validate_strings(node.value)).lower()
        return f"write it {'without quotes' if value == meant else 'so'}: {key}: {meant}"
    if isinstance(value, str):
        return f"write it without quotes: {key}: {written}" if _fits(name, value) else _meant(name, value)
    return f"write it in quotes: {key}: '{written}'" if _is_text(name) else None


def _meant(name: str, text: str) -> str | None:
    """Which of a field's words was probably meant."""
    words = {word.lower(): word for word in choices(name)}
    close = difflib.get_close_matches(text.lower(), words, n=1)
    return f"did you mean {words[close[0]]}?" if close else None


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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_text(name: str) -> bool:
    """Whether a field takes any text."""
    return not choices(name) and bool({str, Path} & {*_types(TrainConfig.model_fields[name])})


def _expected(name: str, written: str) -> str:
    """What the values of a field are, in words; the upper bound only where it matters."""
    too_large = re.fullmatch(r"[+-]?\d{19,}", written) and int in _types(TrainConfig.model_fields[name])
    return f"{expectation(name)}, at most {MOST}" if too_large else expectation(name)


def _short(text: str) -> str:
    """A text as an error shows it, on one line."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"


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
    """The types of a field's values, without None and without their bounds."""
    kinds = [info.annotation] if get_origin(info.annotation) is Literal else get_args(info.annotation)
    plain = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds or [info.annotation]]
    return tuple(kind for kind in plain if kind is not type(None))


def choices(name: str) -> list[str]:
    """The words that a field takes, where it takes words of a list."""
    found = _types(TrainConfig.model_fields[name])
    return [word for kind in found if get_origin(kind) is Literal for word in get_args(kind)]


def type_shown(name: str) -> str:
    """The kind of a field's values, as help pages show it."""
    kinds = {int: "INTEGER", float: "NUMBER", bool: "true|false", Path: "PATH"}
    found = [word for kind, word in kinds.items() if kind in _types(TrainConfig.model_fields[name])] + choices(name)
    return ("|".join(found) if len("|".join(found)) < _WIDEST else "NAME") or "TEXT"


def default_shown(name: str) -> str:
    """The default of a field, as help pages show it; empty where something is chosen."""
    default = TrainConfig.model_fields[name].default
    if default is None or default in ("", ()):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _example(name: str) -> str:
    """A value that a field may have, as it is written."""
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    default = TrainConfig.model_fields[name].default
    return str(default).lower() if isinstance(default, bool) else str(default or 1)


_EXAMPLES = {
    "base_model": "Qwen/Qwen3-8B",
    "data": "no_robots",
    "eval_data": "held_out.jsonl",
    "learning_rate": "1e-4",
    "val_fraction": "0.1",
    "hf_repo_id": "USER/NAME",
    "download_dir": "uploads",
    "log_path": "checkpoints/first",
    "run_name": "first",
    "track": "wandb",
    "wandb_project": "my-project",
    "wandb_name": "first",
    "base_url": "http://localhost:8000",
    "reward": "math",
    "teacher": "checkpoints/first",
    "teacher_system": "system.txt",
    "preset": "standard",
    "load_checkpoint_path": "checkpoints/first",
}


def _add_list(given: Given, name: str, values: list[Any], place: str) -> None:
    """A list of values makes a grid, if there are several different ones.

    Raises:
        UsageError: there is none, or one stands there twice.
    """
    if not values:
        raise UsageError(f"{place} is an empty list", hint="name the values to try, or leave it out")
    if name in given.grid:
        first = given.places[name]
        raise UsageError(f"{place} is the same setting as {first}", hint="leave one of them out")
    for i, value in enumerate(values):
        if value in values[:i]:
            shown = str(value).lower() if isinstance(value, bool) else value
            raise UsageError(f"{place} has {shown} twice", hint="each value makes a run: leave one out")
    given.grid[name] = values


def _document(path: Path) -> Any:
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
    if document is None or _is_null(document):
        raise UsageError(f"{path} holds nothing", hint="tt train --print-config writes such a file")
    if document.id != "mapping":
        raise UsageError(
            f"{path}:{document.start_mark.line + 1}: this is {_read(document)[1]}, but a file must hold sections",
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


def _items(mapping: Any, path: Path) -> Iterator[tuple[str, Any, str]]:
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
            raise UsageError(f"{at}: {_read(key)[1]} is no key", hint="a key is a word")
        if key.value in lines:
            raise UsageError(
                f"{at}: {_short(key.value)} stands here and in line {lines[key.value]}", hint="leave one of them out"
            )
        lines[key.value] = line
        yield key.value, value, at


def _listed(node: Any, key: str, place: str) -> list[Any]:
    """What stands in a list.

    Raises:
        UsageError: it is no list.
    """
    if node.id == "sequence":
        found: list[Any] = node.value
        return found
    example = f"[{_short(node.value)}, …]" if node.id == "scalar" else "[…, …]"
    raise UsageError(f"{place} is {_read(node)[1]}, but must be a list", hint=f"{key}: {example}")


def _is_null(node: Any) -> bool:
    return bool(node.tag == f"{_YAML}null")


def _read(node: Any) -> tuple[Any, str]:
    """What stands in a file: what it means, and how an error names it."""
    if node.id == "mapping":
        return _STRANGE, "a section of keys"
    if node.id == "sequence":
        # Lists of lists are none of ours, and an anchor may make a list part of itself.
        items = [_scalar(item) if item.id == "scalar" else _STRANGE for item in node.value]
        shown = [_short(item.value) if item.id == "scalar" else "[…]" for item in node.value[: _LONGEST // 8]]
        return items, f"the list [{', '.join(shown)}{', …' * (len(items) > len(shown))}]"
    value = _scalar(node)
    if isinstance(value, str):
        return value, f"{'the text ' * _is_number(value)}'{_short(value)}'"
    tag = "" if node.tag.removeprefix(_YAML) in _BARE else f"{node.tag.replace(_YAML, '!!')} "
    return value, tag + _short(node.value)


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


def _unknown(message: str, word: str, section: str | None) -> UsageError:
    """An unknown section or key, and what was probably meant."""
    sections = _sections()
    # Also as the option is typed, or with its section.
    plain = word.lower().lstrip("-").replace("-", "_").rpartition(".")[2]
    if _SECRET_KEY.search(word):
        return UsageError(message, hint="keys come from the environment or from .env, never from this file")
    if section == SWEEP:
        known = [key for key, name in sections[SWEEP].items() if key == _sweep_key(name)]
        if several := [name for name in TrainConfig.model_fields if setting(name).sweep and _key(name) == word]:
            return UsageError(
                f"{message}: several settings are called so", hint=f"did you mean {' or '.join(several)}?"
            )
        if any(word in keys for keys in sections.values()) or word in TrainConfig.model_fields:
            return UsageError(
                f"{message}: it has one value in all runs", hint=f"these can be tried: {', '.join(known)}"
            )
    else:
        known = [*sections[""], *filter(None, sections), STAGES] if section is None else list(sections[section])
        meant = next((found for found in TrainConfig.model_fields if plain in (found, _key(found))), None)
        if meant:
            return UsageError(message, hint=_as_key(meant))
    if close := difflib.get_close_matches(word.lower(), known, n=1):
        return UsageError(message, hint=f"did you mean {close[0]}?")
    anywhere = {label: name for name in TrainConfig.model_fields for label in (name, _key(name))}
    if section != SWEEP and (close := difflib.get_close_matches(plain, anywhere, n=1, cutoff=0.8)):
        return UsageError(message, hint=_as_key(anywhere[close[0]]))
    if section is None:
        listed = ", ".join(filter(None, sections))
        return UsageError(message, hint=f"sections are {listed}; {' and '.join(sections[''])} stand in none")
    return UsageError(message, hint=f"{section} has {', '.join(known)}")


def _as_key(name: str) -> str:
    """How a field is written in a file."""
    section, _, key = setting(name).key.rpartition(".")
    return f"write it as\n    {section}:\n      {key}: …" if section else f"write it as {key}: …, in no section"


def _key(name: str) -> str:
    """The key of a field, in its section."""
    return setting(name).key.rpartition(".")[2]


@cache
def _sweep_key(name: str) -> str:
    """The key of a field that is swept: the one in its section, else its name, where other fields have that key too."""
    key = _key(name)
    return key if [*map(_key, TrainConfig.model_fields)].count(key) == 1 else name
