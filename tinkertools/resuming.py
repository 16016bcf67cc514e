"""Going on with a run: options that may change, those that may not, and what must be as it was at its start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinkertools.config import CONFIG_VERSION, SettingError, TrainConfig, setting
from tinkertools.errors import RunError, UsageError
from tinkertools.settings.given import at_its_place

# They may make a run longer.
_LENGTH = ("max_steps", "epochs")

# What is held against its fingerprint, and how it is called.
_WHAT = {
    "tokenizer": "the tokenizer",
    "chat_template": "the chat template",
    "renderer": "the renderer",
    "base_model": "the base model",
    "start": "the weights it started from",
}
# Packages whose versions may make a tokenizer or renderer another one.
_PACKAGES = ("transformers", "tokenizers", "tml-renderers")


def option(name: str, value: Any) -> str:
    """A setting as it is typed."""
    flag = setting(name).flag
    if flag.startswith("--no-") or (flag and "/" not in flag and value):
        return flag
    if flag:
        return flag.split("/")[0 if value else 1] if "/" in flag else f"without {flag}"
    return f"--{name.replace('_', '-')} {value}"


def read_started(metadata: Mapping[str, Any], run: Path) -> TrainConfig:
    """The configuration of a run, from what its `config.json` holds.

    Raises:
        RunError: another version wrote it, or it is damaged.
    """
    version, where = metadata.get("version"), run / "config.json"
    if version != CONFIG_VERSION and isinstance(version, int):
        raise RunError(
            f"{run} was written by tinkertools {metadata.get('tinkertools')} in format {version}; "
            f"this version reads format {CONFIG_VERSION}",
            hint=f"go on with it in tinkertools {metadata.get('tinkertools')}",
        )
    try:
        if not isinstance(metadata["data"]["fingerprint"], str):
            raise TypeError("the data's fingerprint is no text")
        return TrainConfig.from_json(metadata["config"], where)
    except KeyError as error:
        raise RunError(
            f"{where} is damaged: it has no {error}", hint="put a copy of it back, or start a new run"
        ) from error
    except (TypeError, AttributeError, UsageError) as error:
        raise RunError(f"{where} is damaged: {error}", hint="put a copy of it back, or start a new run") from error


def with_options(started: TrainConfig, given: Mapping[str, Any], places: Mapping[str, str]) -> TrainConfig:
    """The configuration to go on with: that of the start, with the settings given beside it.

    Raises:
        UsageError: one would change the result; the message says which, and what it was.
    """
    changed = {name: value for name, value in given.items() if getattr(started, name) != value}
    if started.engine == "local" and "base_url" in changed:
        raise UsageError(
            f"{option('base_url', changed['base_url'])}: the run was started on this machine, and goes on here",
            hint="leave it out, or start a new run",
        )
    refused = {name: value for name, value in changed.items() if setting(name).on_resume == "fixed"}
    if refused:
        raise UsageError(
            "; ".join(
                f"{_shown(name, value, places)}: the run was started with {getattr(started, name)}"
                for name, value in refused.items()
            ),
            hint="leave it out, or start a new run" if len(refused) == 1 else "leave them out, or start a new run",
        )
    # Where --max-steps counts, --epochs does not: who changes only one of them means that one.
    if "epochs" in changed and "max_steps" not in given:
        changed["max_steps"] = 0
    try:
        return started.changed(**changed)
    except SettingError as error:
        raise at_its_place(error, places) from error


def _shown(name: str, value: Any, places: Mapping[str, str]) -> str:
    """A setting that was given, as it was: the option, or its place in a file."""
    place = places.get(name, "")
    return option(name, value) if not place or place.startswith("--") else f"{place}: {value}"


def changes(before: TrainConfig, after: TrainConfig) -> dict[str, list[Any]]:
    """The settings that differ, of those that a run remembers: what they were, and what they are."""
    old, new = before.to_json(), after.to_json()
    kept = [name for name in new if setting(name).on_resume != "once"]
    return {name: [old[name], new[name]] for name in kept if old[name] != new[name]}


def remembered(before: TrainConfig, after: TrainConfig) -> TrainConfig:
    """What a run's `config.json` says once it has gone on: what is of one command only is not in it."""
    return after.changed(
        **{name: getattr(before, name) for name in TrainConfig.model_fields if setting(name).on_resume == "once"}
    )


def refuse_shorter(given: Mapping[str, Any], total: int, started_with: int, done: int) -> None:
    """A run may become longer, not shorter.

    Raises:
        UsageError: it would.
    """
    if total >= started_with:
        return
    shown = " ".join(option(name, given[name]) for name in _LENGTH if name in given)
    if total < done:
        raise UsageError(
            f"{shown}: {_steps(total)} in all, and the run has done {done} already",
            hint="name more, or use one of its checkpoints",
        )
    raise UsageError(
        f"{shown}: {_steps(total)} in all, and the run was started with {started_with}",
        hint="a run can only be made longer: name more, or start a new run",
    )


def _steps(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


def refuse_changed(
    metadata: Mapping[str, Any],
    now: Mapping[str, Any],
    config: TrainConfig,
    run: Path,
) -> None:
    """A run goes on only with what it began with.

    Args:
        metadata: what the run's `config.json` holds.
        now: the same of a run that would start now.
        config: the settings to go on with.
        run: the run's directory.

    Raises:
        RunError: the data, the tokenizer, the chat template, the renderer or the base model are others now.
    """
    before = metadata.get("fingerprints", {})
    found = []
    if metadata["data"]["fingerprint"] != now["data"]["fingerprint"]:
        found.append(f"the data in {config.data}" if config.data else f"the game {config.game}")
    if metadata["data"].get("held_out") != now["data"].get("held_out"):
        found.append("the held-out data")
    different = [
        name for name, value in now["fingerprints"].items() if value and before.get(name) and before[name] != value
    ]
    for name in different:
        if name == "renderer":
            found.append(f"the renderer (then {before[name]}, now {now['fingerprints'][name]})")
        elif name == "base_model":
            found.append(f"the base model {config.base_model}")
        else:
            found.append(_WHAT[name])
    if not found:
        return
    if metadata["config"]["data"] != config.data and len(found) == 1 and not different:
        raise RunError(
            f"--data {config.data}: the run was started with {metadata['config']['data']}, and the conversations are "
            "not the same",
            hint="name the data that it was started with, or start a new run",
        )
    verb = "has" if len(found) == 1 and (different or not config.data) else "have"
    listed = found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"
    hint = "put the old data back, or start a new run" if not different else "put back what it was, or start a new run"
    old, new = metadata.get("versions", {}), now["versions"]
    packages = [f"{name} {old.get(name)}, now {new[name]}" for name in _PACKAGES if old.get(name) != new[name]]
    if different and packages:
        hint += f" (the run was started with {'; '.join(packages)})"
    raise RunError(f"{listed} {verb} changed since {run} was started", hint=hint)


def unchecked(metadata: Mapping[str, Any]) -> str | None:
    """What cannot be told of a run that an older version started, in words; None where all can."""
    before = metadata.get("fingerprints", {})
    missing = [what for name, what in _WHAT.items() if name not in before and name != "start"]
    if before or not missing:
        return None
    return (
        f"tinkertools {metadata.get('tinkertools')}, which started the run, kept no fingerprints: whether "
        f"{', '.join(missing[:-1])} and {missing[-1]} are the same cannot be told; from now on it can"
    )
