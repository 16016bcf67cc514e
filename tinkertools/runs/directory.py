"""A run directory: its files, the newest one, and the adapter that a path means."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from tinkertools.adapters.fetching import fetch_adapter
from tinkertools.adapters.peft_files import base_model_of, is_adapter
from tinkertools.errors import RunError
from tinkertools.files import explain_os_errors, publish_directory, write_json
from tinkertools.reporting import Notify
from tinkertools.runs import states

_CONFIG = "config.json"
_LOG = "training_log.json"
_FINAL = "final_lora_weights"
_PLOTS = "plots"
_SAMPLES = "samples.jsonl"
_ROLLOUTS = "rollouts.jsonl"
_TEACHER = "teacher.jsonl"
_TRACKING = "tracking.json"
_CHECKPOINT = "checkpoint_step_"
_CHECKPOINT_INFO = "checkpoint.json"
_LOCK = ".lock"
# Where the embedded engine saves before the run takes it over; never there in a finished run.
_ENGINE = ".engine"


@dataclass(frozen=True)
class RunDirectory:
    """One run."""

    path: Path

    @property
    def log(self) -> Path:
        """`training_log.json`."""
        return self.path / _LOG

    @property
    def final_weights(self) -> Path:
        """The finished adapter; written last."""
        return self.path / _FINAL

    @property
    def plots(self) -> Path:
        """The folder of curves."""
        return self.path / _PLOTS

    @property
    def samples(self) -> Path:
        """`samples.jsonl`: answers while it was trained."""
        return self.path / _SAMPLES

    @property
    def rollouts(self) -> Path:
        """`rollouts.jsonl`: answers that were trained on, and what they were worth."""
        return self.path / _ROLLOUTS

    @property
    def teacher(self) -> Path:
        """`teacher.jsonl`: what a teacher answered, by what it was asked."""
        return self.path / _TEACHER

    @property
    def tracking(self) -> Path:
        """`tracking.json`: by tracker, what it needs to find its tracked run again."""
        return self.path / _TRACKING

    @property
    def state(self) -> Path:
        """The newest full state."""
        return self.path / states.STATE

    @property
    def engine_store(self) -> Path:
        """Where the embedded engine saves before the run takes it over."""
        return self.path / _ENGINE

    @property
    def exists(self) -> bool:
        """Whether the run was begun."""
        return (self.path / _CONFIG).is_file()

    @property
    def finished(self) -> bool:
        """Whether training has ended."""
        return self.final_weights.is_dir()

    @property
    def begun_at(self) -> int:
        """When the run was begun, as file systems count: in nanoseconds."""
        return (self.path / _CONFIG).stat().st_mtime_ns

    def write_config(self, values: dict[str, Any]) -> None:
        """Create the run: from now on it is found."""
        write_json(self.path / _CONFIG, values)

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote.

        Raises:
            RunError: this is no run, or its configuration is damaged.
        """
        return _read_json(self.path / _CONFIG)

    @property
    def renderer(self) -> str | None:
        """The name of the renderer that the run's data were rendered with; None where this is no run."""
        return self.read_config().get("renderer") if self.exists else None

    @property
    def base_model(self) -> str | None:
        """The base model that the run is trained on; None where this is no run."""
        return self.read_config()["config"].get("base_model") if self.exists else None

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Step and folder of each checkpoint, the oldest first."""
        found = [(int(p.name.removeprefix(_CHECKPOINT)), p) for p in self.path.glob(f"{_CHECKPOINT}[0-9]*")]
        return sorted(found)

    def take_checkpoint(self, saved: Path | None, step: int, paths: dict[str, str]) -> None:
        """Make the saved adapter the checkpoint of a step; None where it stays on a server."""
        if saved is None:
            saved = self.engine_store / f"{_CHECKPOINT}{step}"
            saved.mkdir(parents=True, exist_ok=True)
        write_json(saved / _CHECKPOINT_INFO, {"step": step, "paths": paths, "next_step": step + 1})
        publish_directory(saved, self.path / f"{_CHECKPOINT}{step}")

    def take_state(self, saved: Path, step: int, paths: dict[str, str]) -> None:
        """Make the saved state the one to go on from, after `step`."""
        states.take(self.path, saved, step, paths)

    def take_final(self, saved: Path, step: int, paths: dict[str, str], companion: str = "") -> None:
        """Make the saved adapter the run's result, or that of an adapter that was trained with it."""
        write_json(saved / _CHECKPOINT_INFO, {"step": step, "paths": paths, "next_step": step + 1})
        publish_directory(saved, self.path / f"{companion}_lora_weights" if companion else self.final_weights)

    def next_step(self) -> int:
        """The first step that the newest whole state has not taken; 1 without a state."""
        state, _ = states.newest(self.path)
        return state.next_step if state else 1

    def recover_state(self, notify: Notify) -> states.State | None:
        """The newest whole state, after a process that may have been killed; None where none was saved.

        `notify` is told of newer ones that are damaged.

        Raises:
            RunError: states were saved, and none is whole.
        """
        state, problems = states.recover(self.path)
        if state is None and problems:
            raise states.refuse_damaged(problems)
        for problem in problems:
            notify(f"{problem}: going on from the state of step {state.step if state else 0}")
        return state

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes to the run; a process that has died does not hold the lock.

        Raises:
            RunError: another one does.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"another process is training {self.path}", hint="wait until it is done, or stop it first"
            ) from None
        try:
            yield
        finally:
            if self.finished:  # nobody will want it any more
                (self.path / _LOCK).unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def making_way(self) -> Iterator[None]:
        """Have a run that is there make way for a new one of its name: it is gone once the new one is begun.

        Raises:
            RunError: another process is training it.
        """
        with self.lock():
            pass
        aside = self.path.with_name(f".{self.path.name}.gone-{os.getpid()}")
        with explain_os_errors(self.path):
            self.path.replace(aside)
        try:
            yield
        finally:
            if self.exists:
                shutil.rmtree(aside)
            else:
                shutil.rmtree(self.path, ignore_errors=True)
                aside.replace(self.path)

    def server_paths(self) -> list[tuple[int, dict[str, str]]]:
        """What is on the server: by step, the paths of weights to sample from and of states. The oldest first."""
        found = [*(path for _, path in self.checkpoints()), self.final_weights]
        infos = [_read_json(path / _CHECKPOINT_INFO) for path in found if (path / _CHECKPOINT_INFO).is_file()]
        return [(int(info["step"]), info["paths"]) for info in infos if info.get("paths")]

    def remove_leftovers(self) -> None:
        """Remove what an interrupted process left half-done."""
        shutil.rmtree(self.engine_store, ignore_errors=True)
        for name in ("*.part-*", "*.old-*", "*.gone-*"):
            for path in self.path.glob(f".{name}"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def finish(self) -> None:
        """Remove what a finished run does not need."""
        states.remove_previous(self.path)
        self.remove_leftovers()


@dataclass(frozen=True)
class Weights:
    """An adapter to use.

    Attributes:
        directory: its folder; None where it is on a server only.
        base_model: what it was trained on, where it says.
        label: a short name for tables.
        note: what the user should know of the choice.
        renderer: its run's.
        server_path: its `tinker://` path; None where it is on this machine only.
        state_path: the `tinker://` path of the state saved with it, to train on from.
    """

    directory: Path | None
    base_model: str | None
    label: str
    note: str | None = None
    renderer: str | None = None
    server_path: str | None = None
    state_path: str | None = None

    @property
    def name(self) -> str:
        """Where it is, for people: its folder before its path on a server."""
        return str(self.directory or self.server_path)

    def source(self, engine: Literal["tinker", "local"]) -> str:
        """What an engine takes it by.

        Raises:
            RunError: it is not where the engine could take it from.
        """
        if engine == "tinker":
            if self.server_path is None:
                raise RunError(
                    f"{self.name} is on this machine only, and a server takes no adapters",
                    hint="--engine local computes here",
                )
            return self.server_path
        if self.directory is None:
            raise RunError(
                f"{self.name} is on a server, and was not downloaded",
                hint="compute there: --engine tinker (with --base-url, for a server of your own)",
            )
        return str(self.directory)


def new_run(output_dir: Path, base_model: str, now: datetime, kind: str = "lora") -> RunDirectory:
    """A directory that is not there yet, `lora_BASE_DATE_TIME`. Nothing is created."""
    folder = Path(base_model)
    base = folder.resolve().name if folder.is_dir() else base_model
    return RunDirectory(free_path(output_dir, f"{kind}_{re.sub(r'[^A-Za-z0-9.-]+', '_', base)}_{now:%Y%m%d_%H%M%S}"))


def free_path(folder: Path, name: str) -> Path:
    """A path of this name that is not there yet, with a number where it is."""
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{name}_{number}"
    return path


def never_begun(path: Path) -> bool:
    """Whether a directory holds only what a process left that was killed before there was a run in it."""
    return path.is_dir() and all(
        found.name == _ENGINE or found.name.startswith(f".{_CONFIG}.part-") for found in path.iterdir()
    )


def newest_run(output_dir: Path) -> RunDirectory:
    """The run that was started last.

    Raises:
        RunError: there is none.
    """
    configs = sorted(output_dir.glob(f"*/{_CONFIG}"), key=lambda path: (path.stat().st_mtime_ns, path))
    if not configs:
        raise RunError(f"no run under {output_dir}", hint="tt train makes one; --output-dir says where runs are")
    return RunDirectory(configs[-1].parent)


def find_run(name: str, output_dir: Path) -> RunDirectory:
    """`latest`, or the path of a run.

    Raises:
        RunError: there is no such run.
    """
    if name == "latest":
        return newest_run(output_dir)
    for path in (Path(name), output_dir / name):
        if (path / _CONFIG).is_file():
            return RunDirectory(path)
    raise RunError(f"no run at {name} (no {_CONFIG} there)", hint=f"`ls {output_dir}` shows the runs")


def find_weights(path: str | None, output_dir: Path) -> Weights:
    """The adapter that `path` means: a run, its final weights, a checkpoint, any PEFT folder; None is the newest run.

    A `tinker://` path is taken as it is; whether it is there, the server will say. A name on the Hub is fetched.

    Raises:
        RunError: there is no adapter.
        ModelError: the Hub does not give it.
    """
    if path is None:
        return _weights_of_run(newest_run(output_dir))
    if path.startswith("tinker://"):
        return Weights(None, None, path.removeprefix("tinker://"), server_path=path, state_path=path)
    folder = Path(path)
    if is_adapter(folder) or (folder / _CHECKPOINT_INFO).is_file():
        resolved = folder.resolve()
        run = RunDirectory(resolved.parent)
        label = f"{resolved.parent.name}/{resolved.name}" if run.exists else resolved.name
        return _weights_in(folder, run, label)
    if (folder / _CONFIG).is_file() and (folder / _LOG).is_file():
        return _weights_of_run(RunDirectory(folder))
    if not folder.exists() and (fetched := fetch_adapter(path)) is not None:
        return _weights_in(fetched, RunDirectory(fetched), path)
    raise RunError(
        f"no adapter at {path}",
        hint="name a run directory, its final_lora_weights, a checkpoint_step_N, another folder in PEFT's layout, or "
        "an adapter on the Hub: USER/NAME",
    )


def run_of(weights: Weights) -> RunDirectory | None:
    """The run that an adapter belongs to, where it lies in one."""
    run = RunDirectory(weights.directory.resolve().parent) if weights.directory else None
    return run if run and run.exists else None


def _weights_of_run(run: RunDirectory) -> Weights:
    if run.finished:
        return _weights_in(run.final_weights, run, run.path.name)
    if not (checkpoints := run.checkpoints()):
        raise RunError(
            f"{run.path} is not finished and has no checkpoint yet", hint=f"go on with it: tt train --resume {run.path}"
        )
    step, directory = checkpoints[-1]
    note = f"{run.path} is not finished: using its checkpoint of step {step}"
    label = f"{run.path.name}/{directory.name}"
    return _weights_in(directory, run, label, note)


def _weights_in(directory: Path, run: RunDirectory, label: str, note: str | None = None) -> Weights:
    """The weights of a folder that a run took, or of any other with an adapter."""
    info = directory / _CHECKPOINT_INFO
    paths = _read_json(info).get("paths", {}) if info.is_file() else {}
    here = is_adapter(directory)
    base_model = base_model_of(directory) if here else run.base_model
    found = directory if here else None
    return Weights(found, base_model, label, note, run.renderer, paths.get("sampler"), paths.get("state"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not readable: {error}", hint="start a new run if it is lost") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it must hold a JSON object")
    return value
