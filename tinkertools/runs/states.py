"""The states a run can go on from: each with checksums, and never fewer good ones while a new one comes.

`training_state` is the newest, `.training_state.previous` the one before it. A new one is complete, on the disk and
under a name of its own before anything happens to the others:

    .training_state.next   is there, then
    .training_state.previous   is removed,
    training_state         becomes the previous one,
    .training_state.next   becomes training_state.

Whichever of these steps a process was killed before, what is there is found by looking at all three.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tinkertools.errors import RunError
from tinkertools.files import explain_os_errors, sync_directory, sync_tree, write_json

STATE = "training_state"
_NEXT = f".{STATE}.next"
_PREVIOUS = f".{STATE}.previous"
_INFO = "state.json"


@dataclass(frozen=True)
class State:
    """A state that is whole: what is in it was saved after `step`; `paths` are those on a server."""

    directory: Path
    step: int
    paths: dict[str, str]

    @property
    def server_path(self) -> str:
        """Where it is on a server.

        Raises:
            RunError: it is on none.
        """
        if not (path := self.paths.get("state")):
            raise RunError(f"{self.directory} names no state on a server", hint="start a new run")
        return path

    @property
    def next_step(self) -> int:
        """The first step that it has not taken."""
        return self.step + 1


def take(run: Path, saved: Path, step: int, paths: dict[str, str]) -> None:
    """Make the folder `saved` the run's newest state. It is moved.

    Raises:
        FileError: the file system refused.
    """
    with explain_os_errors(run / STATE):
        files = {name: _checksum(saved / name) for name in _files(saved)}
        info = {"step": step, "paths": paths, "next_step": step + 1, "files": files}
        write_json(saved / _INFO, {**info, "checksum": _checksum_of(info)})
        sync_tree(saved)
        shutil.rmtree(run / _NEXT, ignore_errors=True)
        saved.replace(run / _NEXT)
        _move_up(run)


def newest(run: Path) -> tuple[State | None, list[str]]:
    """The newest state that is whole, and what is wrong with newer ones, in words."""
    problems: list[str] = []
    for directory in (run / _NEXT, run / STATE, run / _PREVIOUS):
        if directory.is_dir():
            found = _read(directory)
            if isinstance(found, State):
                return found, problems
            problems.append(found)
    return None, problems


def recover(run: Path) -> tuple[State | None, list[str]]:
    """Bring the newest whole state under its name, as `take` would have; else as `newest`.

    What is not whole is left where it is until the next state comes.
    """
    state, problems = newest(run)
    with explain_os_errors(run / STATE):
        if state is not None and state.directory.name == _NEXT:
            _move_up(run)
            return State(run / STATE, state.step, state.paths), problems
    return state, problems


def remove_previous(run: Path) -> None:
    """Remove all but the newest state, of a run that is finished."""
    for name in (_NEXT, _PREVIOUS):
        shutil.rmtree(run / name, ignore_errors=True)


def _move_up(run: Path) -> None:
    """From `.next` on: the previous state goes, the newest becomes the previous one, the next the newest."""
    if (run / STATE).exists():
        # One that is damaged must not take the place of a good one.
        if isinstance(_read(run / STATE), State) or not isinstance(_read(run / _PREVIOUS), State):
            shutil.rmtree(run / _PREVIOUS, ignore_errors=True)
            (run / STATE).replace(run / _PREVIOUS)
        else:
            shutil.rmtree(run / STATE)
    (run / _NEXT).replace(run / STATE)
    sync_directory(run)


def _read(directory: Path) -> State | str:
    """The state in a folder, or what is wrong with it."""
    try:
        info = orjson.loads((directory / _INFO).read_bytes())
        state = State(directory, int(info["step"]), dict(info["paths"]))
        files = info.get("files")
    except FileNotFoundError:
        return f"{directory} has no {_INFO}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{directory / _INFO} is damaged: {error}"
    if files is None:  # written before states had checksums
        return state
    if info.pop("checksum", None) != _checksum_of(info):
        return f"{directory / _INFO} was changed after it was written"
    if missing := sorted(files.keys() - set(_files(directory))):
        return f"{directory} has no {', '.join(missing)}"
    for name, checksum in files.items():
        try:
            found = _checksum(directory / name)
        except OSError as error:
            return f"{directory / name} is not readable: {error.strerror}"
        if found != checksum:
            return f"{directory / name} was damaged or changed after it was written"
    return state


def _files(directory: Path) -> Iterator[str]:
    """The names of what a state consists of, without what says so."""
    found = (str(path.relative_to(directory)) for path in sorted(directory.rglob("*")) if path.is_file())
    return (name for name in found if name != _INFO)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _checksum_of(info: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(info, option=orjson.OPT_SORT_KEYS)).hexdigest()


def refuse_damaged(problems: list[str]) -> RunError:
    """What to say where no state is whole."""
    return RunError(
        "; ".join(problems),
        hint="no state of the run is whole: start a new run, or put the files back from a copy",
    )
