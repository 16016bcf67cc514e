"""Runs and checkpoints on disk: what is there, whose it is, and how long it stays.

ROOT/RUN/run.json                              the run: RunInfo
ROOT/RUN/{weights,sampler_weights}/NAME/       a checkpoint, which appears whole
ROOT/RUN/{weights,sampler_weights}/.NAME.json  what is said of it, where anything is: Notes
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from tinker import types

from tinkertools.files import explain_os_errors, whole_directory, write_json
from tinkertools.local import responses
from tinkertools.local.failures import BadRequest, Conflict, NotFound

STATE, SAMPLER = "weights", "sampler_weights"
_TYPES = {STATE: "training", SAMPLER: "sampler"}

# A name that is a file's name, and neither hidden nor a way out of its folder.
_NAME = r"[\w-][\w.-]*"
_PATH = re.compile(rf"tinker://(?P<run>{_NAME})/(?P<kind>{STATE}|{SAMPLER})/(?P<name>{_NAME})")
_RUN_FILE = "run.json"


def default_store() -> Path:
    """The folder for checkpoints of clients that name none."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tinkertools" / "store"


@dataclass(frozen=True)
class RunInfo:
    """What is known of a training run from its start. `created` is ISO 8601."""

    run_id: str
    base_model: str
    lora_rank: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    session_id: str
    created: str
    user_metadata: dict[str, str] | None = None
    session_metadata: dict[str, str] | None = None


@dataclass(frozen=True)
class Notes:
    """What is said of a checkpoint. `expires_at` is ISO 8601."""

    expires_at: str | None = None
    public: bool = False
    user_metadata: dict[str, str] | None = None

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and datetime.fromisoformat(self.expires_at) <= now()


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """A name for a run or a session."""
    return uuid.uuid4().hex


def expiry(ttl_seconds: int | None) -> str | None:
    """When a checkpoint of `ttl_seconds` expires; None for never.

    Raises:
        BadRequest: it is no positive number.
    """
    if ttl_seconds is None:
        return None
    if isinstance(ttl_seconds, bool) or not isinstance(ttl_seconds, int) or ttl_seconds < 1:
        raise BadRequest(f"ttl_seconds is {ttl_seconds!r}, but must be a positive number, or None to keep it")
    return (now() + timedelta(seconds=ttl_seconds)).isoformat()


class Store:
    """The runs and checkpoints under a folder. Those whose time is over are removed when they are met."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add_run(self, info: RunInfo) -> None:
        """Write down a new run."""
        write_json(self.root / info.run_id / _RUN_FILE, asdict(info))

    def run(self, run_id: str) -> RunInfo:
        """A run.

        Raises:
            NotFound: there is none of that name.
        """
        file = self.root / run_id / _RUN_FILE
        if not re.fullmatch(_NAME, run_id) or not file.is_file():
            raise NotFound(f"no training run {run_id}", hint=f"the embedded engine keeps them under {self.root}")
        return RunInfo(**orjson.loads(file.read_bytes()))

    def runs(self) -> list[RunInfo]:
        """All runs, the newest first."""
        found = [self.run(file.parent.name) for file in self.root.glob(f"*/{_RUN_FILE}")]
        return sorted(found, key=lambda info: info.created, reverse=True)

    @contextmanager
    def new_checkpoint(self, path: str, notes: Notes, *, overwrite: bool) -> Iterator[Path]:
        """A folder to fill, which becomes the checkpoint `path` when it is complete.

        Raises:
            BadRequest: the name is none.
            Conflict: there is one already, and it may not be replaced.
        """
        match = _PATH.fullmatch(path)
        if match is None:
            name = path.split("/", maxsplit=4)[-1]
            raise BadRequest(
                f"'{name}' is no name for a checkpoint", hint="use letters, digits, '-', '_' and '.', not first"
            )
        directory = self._directory(match)
        if directory.is_dir() and not overwrite and not self._remove_expired(path):
            raise Conflict(f"{path} is there already", hint="use another name, or overwrite=True")
        with whole_directory(directory) as part:
            yield part
            # Before the folder appears: it is never seen without its end.
            self._write_notes(match, notes)

    def resolve(self, path: str) -> Path:
        """The folder of a `tinker://` path of this store, or of a plain path.

        Raises:
            NotFound: there is no such checkpoint, or not any more.
        """
        match = _PATH.fullmatch(path)
        directory = self._directory(match) if match else Path(path)
        if not directory.is_dir():
            raise NotFound(f"no checkpoint at {path}", hint=f"the embedded engine keeps them under {self.root}")
        if match and self._remove_expired(path):
            raise NotFound(f"the checkpoint at {path} has expired", hint="give a longer ttl_seconds, or None")
        return directory

    def run_of(self, path: str) -> RunInfo | None:
        """The run of a `tinker://` path; None of a plain path, or where the run is not written down."""
        match = _PATH.fullmatch(path)
        known = match is not None and (self.root / match["run"] / _RUN_FILE).is_file()
        return self.run(match["run"]) if match and known else None

    def checkpoints(self, run_id: str) -> list[types.Checkpoint]:
        """The checkpoints of a run, the newest first."""
        found = []
        for kind in _TYPES:
            for directory in sorted((self.root / run_id / kind).glob("[!.]*")):
                path = f"tinker://{run_id}/{kind}/{directory.name}"
                if directory.is_dir() and not self._remove_expired(path):
                    found.append(self.checkpoint(path))
        return sorted(found, key=lambda checkpoint: checkpoint.time, reverse=True)

    def checkpoint(self, path: str) -> types.Checkpoint:
        """What is known of a checkpoint.

        Raises:
            NotFound: it is not there.
        """
        match = self._match(path)
        directory, notes = self._directory(match), self._notes(match)
        values: dict[str, Any] = {
            "checkpoint_id": f"{match['kind']}/{match['name']}",
            "checkpoint_type": _TYPES[match["kind"]],
            "time": datetime.fromtimestamp(directory.stat().st_mtime, UTC),
            "tinker_path": path,
            "size_bytes": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()),
            "public": notes.public,
            "user_metadata": notes.user_metadata,
            "expires_at": datetime.fromisoformat(notes.expires_at) if notes.expires_at else None,
        }
        return responses.made(types.Checkpoint, values)

    def annotate(self, path: str, **changes: Any) -> None:
        """Change the notes of a checkpoint.

        Raises:
            NotFound: it is not there.
        """
        match = self._match(path)
        self._write_notes(match, replace(self._notes(match), **changes))

    def delete(self, path: str) -> None:
        """Remove a checkpoint for good.

        Raises:
            NotFound: it is not there.
        """
        self._remove(self._match(path))

    def remove_expired(self) -> None:
        """Remove every checkpoint whose time is over."""
        for kind in _TYPES:
            for file in self.root.glob(f"*/{kind}/.*.json"):
                self._remove_expired(f"tinker://{file.parents[1].name}/{kind}/{file.name[1 : -len('.json')]}")

    def _match(self, path: str) -> re.Match[str]:
        self.resolve(path)
        match = _PATH.fullmatch(path)
        if match is None:
            raise NotFound(f"{path} is no tinker:// path of this store")
        return match

    def _directory(self, match: re.Match[str]) -> Path:
        return self.root / match["run"] / match["kind"] / match["name"]

    def _notes_file(self, match: re.Match[str]) -> Path:
        return self.root / match["run"] / match["kind"] / f".{match['name']}.json"

    def _notes(self, match: re.Match[str]) -> Notes:
        file = self._notes_file(match)
        return Notes(**orjson.loads(file.read_bytes())) if file.is_file() else Notes()

    def _write_notes(self, match: re.Match[str], notes: Notes) -> None:
        if notes == Notes():
            self._notes_file(match).unlink(missing_ok=True)
        else:
            write_json(self._notes_file(match), asdict(notes))

    def _remove_expired(self, path: str) -> bool:
        match = _PATH.fullmatch(path)
        if match is None or not self._notes(match).expired:
            return False
        self._remove(match)
        return True

    def _remove(self, match: re.Match[str]) -> None:
        directory = self._directory(match)
        with explain_os_errors(directory):
            if directory.is_dir():
                # Out of sight in one step: what is half removed is no checkpoint.
                gone = directory.with_name(f".{directory.name}.gone-{uuid.uuid4().hex}")
                directory.replace(gone)
                shutil.rmtree(gone)
            self._notes_file(match).unlink(missing_ok=True)
