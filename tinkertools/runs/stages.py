"""A directory of stages: runs that follow one another, and what is done of them."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from tinkertools.errors import RunError
from tinkertools.runs.directory import free_path, newest_run
from tinkertools.runs.many import ManyRuns
from tinkertools.runs.sweeps import SweepDirectory

_STAGES = "stages.json"


@dataclass(frozen=True)
class StagesDirectory(ManyRuns):
    """Stages; `stages.json` holds the settings of each, and how far they are."""

    FILE = _STAGES
    VERSION = 1
    WHAT = "list of stages"
    HOLDS: ClassVar = {"stages": list}


def new_stages(output_dir: Path, now: datetime) -> StagesDirectory:
    """A directory that is not there yet, `stages_DATE_TIME`. Nothing is created."""
    return StagesDirectory(free_path(output_dir, f"stages_{now:%Y%m%d_%H%M%S}"))


def find_stages(name: str, output_dir: Path) -> StagesDirectory | None:
    """The stages that `name` means: their path, or `latest`; None where that is a run, a sweep, or nothing."""
    if name != "latest":
        found = map(StagesDirectory, (Path(name), output_dir / name))
        return next((stages for stages in found if stages.exists), None)
    files = sorted(output_dir.glob(f"*/{_STAGES}"), key=_when)
    if not files:
        return None
    others = [_when(path) for path in output_dir.glob(f"*/{SweepDirectory.FILE}")]
    with suppress(RunError):  # there is none
        others.append((newest_run(output_dir).begun_at, Path()))
    return StagesDirectory(files[-1].parent) if _when(files[-1]) > max(others, default=(0, Path())) else None


def _when(path: Path) -> tuple[int, Path]:
    return path.stat().st_mtime_ns, path
