"""A sweep's directory: the runs of a grid of settings side by side, and what is kept of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tinkertools.errors import RunError
from tinkertools.files import write_json
from tinkertools.runs.directory import newest_run
from tinkertools.runs.many import ManyRuns

# Of `sweep.json` and `results.json`.
SWEEP_VERSION = 1

_SWEEP = "sweep.json"
_RESULTS = "results.json"
_PLOTS = "plots"


@dataclass(frozen=True)
class SweepDirectory(ManyRuns):
    """One sweep; `sweep.json` holds the settings of all runs, and the grid."""

    FILE = _SWEEP
    VERSION = SWEEP_VERSION
    WHAT = "sweep"
    HOLDS: ClassVar = {"config": dict, "grid": dict}

    @property
    def results(self) -> Path:
        """`results.json`: the table, the best run first."""
        return self.path / _RESULTS

    @property
    def plots(self) -> Path:
        """The folder of curves, a line a run."""
        return self.path / _PLOTS

    def write_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `results.json`; a number that is none is null there."""
        write_json(self.results, {"version": SWEEP_VERSION, "runs": rows})


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
