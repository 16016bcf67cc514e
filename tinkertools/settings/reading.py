"""Settings as people give them, on the command line and in YAML files, read with their places."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinkertools.config import setting
from tinkertools.errors import UsageError
from tinkertools.settings.given import Given, GivenStage
from tinkertools.settings.keys import STAGE_NAME, STAGES, SWEEP, fields_by_section, option_of, unknown_key
from tinkertools.settings.nodes import entries, is_null, listed, read_document, read_node
from tinkertools.settings.values import from_node, from_text

_A_STAGE = "stages:\n      - name: sft\n        dataset: {name: chats.jsonl}"


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
            _add_list(given, name, [from_text(name, text, place) for text in texts], place)
        else:
            given.values[name] = from_text(name, value, place)
        given.places[name] = place
    return given


def read_file(path: Path) -> Given:
    """What a YAML file gives. A value of null is the same as none.

    Raises:
        UsageError: it is no YAML, or a key or value in it is none of ours; the message has the line.
        FileError: it is not readable.
    """
    return _given(entries(read_document(path), path), path)


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
        if section in fields_by_section()[""]:
            _add_value(given, section, values, section, f"{at}: {section}")
            continue
        if section not in fields_by_section():
            raise unknown_key(f"{at}: there is no section '{section}'", section, None)
        if is_null(values):
            continue
        if values.id != "mapping":
            raise UsageError(
                f"{at}: {section} is {read_node(values)[1]}, but must hold settings",
                hint=f"{section}:\n      {next(iter(fields_by_section()[section]))}: …",
            )
        for key, value, line in entries(values, path):
            name = fields_by_section()[section].get(key)
            place = f"{line}: {section}.{key}"
            if name is None:
                raise unknown_key(f"{line}: there is no {section}.{key}", key, section)
            if is_null(value):
                continue
            if section == SWEEP:
                _add_list(given, name, [from_node(name, item, key, place) for item in listed(value, key, place)], place)
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
    for item in [] if is_null(node) else listed(node, STAGES, f"{place}: {STAGES}"):
        at = f"{path}:{item.start_mark.line + 1}"
        if item.id != "mapping":
            shown = "empty" if is_null(item) else read_node(item)[1]
            raise UsageError(f"{at}: a stage is {shown}, but must hold a name and settings", hint=_A_STAGE)
        name, own = None, []
        for key, value, line in entries(item, path):
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
    if not found and not is_null(node):
        raise UsageError(f"{place}: {STAGES} is an empty list", hint=_A_STAGE)
    return tuple(found.values())


def _stage_name(node: Any, at: str) -> str:
    """The name of a stage, which is that of its folder too.

    Raises:
        UsageError: it has none, or one that could be no folder's.
    """
    if node is None or is_null(node):
        raise UsageError(f"{at}: a stage has no name", hint=_A_STAGE)
    name, shown = read_node(node)
    if not isinstance(name, str) or not STAGE_NAME.fullmatch(name):
        raise UsageError(
            f"{at}: name is {shown}, but must be letters, digits, _, - and .", hint="for example name: sft"
        )
    return name


def _add_value(given: Given, name: str, node: Any, key: str, place: str) -> None:
    """A value that stands in a file; null is the same as none.

    Raises:
        UsageError: it is none of the setting's.
    """
    if not is_null(node) and (found := from_node(name, node, key, place)) is not None:
        given.values[name] = found
        given.places[name] = place


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
