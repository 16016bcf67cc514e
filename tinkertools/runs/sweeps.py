"""A sweep's directory: the runs of a grid of settings side by side, and what is kept of all of them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tinkertools.errors import RunError
from tinkertools.files import write_json
from tinkertools.runs.directory import RunDirectory, newest_run

# Of `sweep.json` and `results.json`.
SWEEP_VERSION = 1

_SWEEP = "sweep.json"
_RESULTS = "results.json"
_CONFIGS = "configs"
_OUTPUTS = "logs"
_PLOTS = "plots"


@dataclass(frozen=True)
class SweepDirectory:
    """One sweep."""

    path: Path

    @property
    def file(self) -> Path:
        """`sweep.json`: the settings of all runs, and the grid."""
        return self.path / _SWEEP

    @property
    def results(self) -> Path:
        """`results.json`: the table, the best run first."""
        return self.path / _RESULTS

    @property
    def plots(self) -> Path:
        """The folder of curves, a line a run."""
        return self.path / _PLOTS

    @property
    def exists(self) -> bool:
        """Whether the sweep was begun."""
        return self.file.is_file()

    def run(self, name: str) -> RunDirectory:
        """One of its runs."""
        return RunDirectory(self.path / name)

    def config(self, name: str) -> Path:
        """The YAML file with the whole configuration of a run."""
        return self.path / _CONFIGS / f"{name}.yaml"

    def output(self, name: str) -> Path:
        """What a run said while it was trained."""
        return self.path / _OUTPUTS / f"{name}.txt"

    def write(self, values: Mapping[str, Any]) -> None:
        """Create the sweep: from now on it is found."""
        write_json(self.file, {"version": SWEEP_VERSION, **values})

    def read(self) -> dict[str, Any]:
        """What `write` wrote.

        Raises:
            RunError: it is damaged, or another version wrote it.
        """
        again = "put a copy of it back, or start a new sweep"
        try:
            values = orjson.loads(self.file.read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.file} is not readable: {error}", hint=again) from error
        if not isinstance(values, dict) or not all(isinstance(values.get(key), dict) for key in ("config", "grid")):
            raise RunError(f"{self.file} is damaged: it must hold a configuration and a grid", hint=again)
        if values.get("version") != SWEEP_VERSION:
            raise RunError(
                f"{self.path} was written by tinkertools {values.get('tinkertools')} in format "
                f"{values.get('version')}; this version reads format {SWEEP_VERSION}",
                hint=f"go on with it in tinkertools {values.get('tinkertools')}",
            )
        return values

    def write_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `results.json`; a number that is none is null there."""
        write_json(self.results, {"version": SWEEP_VERSION, "runs": rows})

    def lock(self) -> AbstractContextManager[None]:
        """Be the only process that starts runs of the sweep.

        Raises:
            RunError: another one does.
        """
        return RunDirectory(self.path).lock()


def find_sweep(name: str, output_dir: Path) -> SweepDirectory | None:
    """The sweep that `name` means: its path, or `latest`; None where that is a run, or nothing."""
    if name == "latest":
        return _newest_sweep(output_dir)
    found = map(SweepDirectory, (Path(name), output_dir / name))
    return next((sweep for sweep in found if sweep.exists), None)


def _newest_sweep(output_dir: Path) -> SweepDirectory | None:
    """The sweep that was started last, where no run was started after it. Runs of a sweep are not counted."""
    files = sorted(output_dir.glob(f"*/{_SWEEP}"), key=lambda path: (path.stat().st_mtime_ns, path))
    if not files:
        return None
    try:
        run = newest_run(output_dir)
    except RunError:
        return SweepDirectory(files[-1].parent)
    return SweepDirectory(files[-1].parent) if files[-1].stat().st_mtime_ns > run.begun_at else None
