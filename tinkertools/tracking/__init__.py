"""Experiment tracking: a run's log, sent to wandb, trackio, tensorboard or mlflow as it is written.

Training never waits for a tracker and never fails by one. Each works on a thread of its own, behind a queue
(`worker`), through one small class a library (`trackers`); what fails is switched off and said once.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from tinkertools.files import write_json
from tinkertools.reporting import Notify
from tinkertools.runs.directory import RunDirectory
from tinkertools.tracking.checks import check_trackers
from tinkertools.tracking.trackers import TRACKERS, Start
from tinkertools.tracking.worker import Worker, end_all

__all__ = ["Tracking", "check_trackers", "tracking"]

DEFAULT_PROJECT = "tinkertools"


class Tracking:
    """Where the entries of `training_log.json` go as well; nothing here waits."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def add_step(self, entry: Mapping[str, Any]) -> None:
        """Send a step's entry, as `train/…`."""
        self._add("train", entry)

    def add_eval(self, entry: Mapping[str, Any]) -> None:
        """Send an evaluation's entry, as `eval/…`."""
        self._add("eval", entry)

    def _add(self, group: str, entry: Mapping[str, Any]) -> None:
        metrics = {
            f"{group}/{key}": value for key, value in entry.items() if key != "step" and isinstance(value, int | float)
        }
        for worker in self._workers:
            worker.add(entry["step"], metrics)


@contextmanager
def tracking(
    names: Sequence[str],
    run: RunDirectory,
    *,
    project: str | None,
    name: str | None,
    config: Mapping[str, Any],
    next_step: int,
    notify: Notify,
) -> Iterator[Tracking]:
    """Send what is added in the block to the trackers; a run that goes on does so in the same tracked runs.

    Args:
        names: the trackers.
        run: the run, begun already; the ids of its tracked runs are kept in it.
        project: where the run is filed at the tracker.
        name: what the run is called there; the run directory's name if None.
        config: the run's options, JSON-able and without secrets.
        next_step: the first step that will be added; later ones that a crash undid are sent again.
        notify: told once of a tracker that fails.
    """
    ids = _Ids(run)
    workers = []
    for tracker in dict.fromkeys(names):
        start = Start(
            directory=run.path,
            project=project or DEFAULT_PROJECT,
            name=name or run.path.resolve().name,
            config=dict(config),
            next_step=next_step,
            known=ids.get(tracker),
            notify=notify,
        )
        workers.append(Worker(tracker, TRACKERS[tracker](), start, ids.put, notify))
    for worker in workers:
        worker.start()
    at_once = True  # whatever is no Exception is somebody who wants to leave
    try:
        yield Tracking(workers)
        at_once = False
    except Exception:
        at_once = False
        raise
    finally:
        end_all(workers, at_once=at_once)


class _Ids:
    """`tracking.json`: by tracker, what it needs to find its tracked run again."""

    def __init__(self, run: RunDirectory) -> None:
        self._path = run.tracking
        self._lock = threading.Lock()
        try:
            found = orjson.loads(self._path.read_bytes())
        except (OSError, ValueError):  # none yet, or lost: new tracked runs begin
            found = {}
        self._values: dict[str, Any] = found if isinstance(found, dict) else {}

    def get(self, tracker: str) -> dict[str, str] | None:
        found = self._values.get(tracker)
        return found if isinstance(found, dict) else None

    def put(self, tracker: str, known: dict[str, str]) -> None:
        with self._lock:  # each tracker has its thread
            if self._values.get(tracker) != known:
                self._values[tracker] = known
                write_json(self._path, self._values)
