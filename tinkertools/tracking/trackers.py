"""The trackers, one small class each: how a run begins or goes on there, and how metrics arrive.

Their libraries are imported on the tracker's own thread. None of them is let near the environment, the code, git, or
what the run prints.
"""

import atexit
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tinkertools.reporting import Notify

if TYPE_CHECKING:
    from tinkertools.config import TrackerName

# Longer than a slow start takes, shorter than what the end of a run waits.
_WANDB_INIT_SECONDS = 90.0
_WANDB_FINISH_SECONDS = 45.0
# What mlflow takes at once, and the length of a value.
_MLFLOW_PARAMS = 100
_MLFLOW_VALUE = 500
_TENSORBOARD_FLUSH_SECONDS = 10


@dataclass(frozen=True)
class Start:
    """What a tracker needs to begin, or to go on.

    Attributes:
        directory: the run directory.
        project: where the run is filed.
        name: what it is called there.
        config: the run's options.
        next_step: the first step that will be logged; what was logged from there on is logged again.
        known: what `begin` returned when the tracked run was begun; None for a new one.
        notify: told where a tracked run cannot go on.
    """

    directory: Path
    project: str
    name: str
    config: dict[str, Any]
    next_step: int
    known: dict[str, str] | None
    notify: Notify


class Tracker(Protocol):
    """A library. All but `abandon` and `hint` is called on one thread."""

    def begin(self, start: Start) -> dict[str, str] | None:
        """Begin or go on; return what is needed to go on later."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take metrics of a step; a step may come again."""

    def finish(self) -> None:
        """Deliver all of it and end."""

    def abandon(self) -> None:
        """Let go without waiting, whatever the library is at."""

    def hint(self, start: Start) -> str:
        """What to do where it fails."""


class Wandb:
    """Weights & Biases; its files lie in the run directory, so what was not sent can be sent later."""

    def begin(self, start: Start) -> dict[str, str]:
        """See `Tracker`."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own reports carry what it knows of the machine
        os.environ["WANDB_SILENT"] = "true"  # read before its settings are: it speaks of logins, and would ask for one
        import wandb

        project = start.known["project"] if start.known else start.project
        run_id = start.known["id"] if start.known else uuid.uuid4().hex[:8]
        try:
            self._run = self._init(start, project, run_id, "must" if start.known else "never")
        except wandb.errors.UsageError as error:
            if start.known is None:
                raise
            _say_gone(start, "wandb", type(error).__name__)
            project, run_id = start.project, uuid.uuid4().hex[:8]
            self._run = self._init(start, project, run_id, "never")
        # Its own counter of steps refuses one that comes again; an ordinary metric as the x axis does not.
        self._run.define_metric("step", hidden=True)
        for group in ("train/*", "eval/*"):
            self._run.define_metric(group, step_metric="step")
        return {"id": run_id, "project": project}

    @staticmethod
    def _init(start: Start, project: str, run_id: str, resume: str) -> Any:
        import wandb

        settings = wandb.Settings(
            root_dir=str(start.directory.resolve()),
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            reinit="create_new",
            init_timeout=_WANDB_INIT_SECONDS,
            finish_timeout=_WANDB_FINISH_SECONDS,
        )
        offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
        hooks = sys.exit, sys.excepthook
        try:
            return wandb.init(
                project=project,
                name=start.name,
                id=run_id,
                resume=None if offline else resume,  # type: ignore[arg-type]
                dir=str(start.directory.resolve()),
                config=start.config,
                settings=settings,
            )
        finally:
            sys.exit, sys.excepthook = hooks  # it puts its own in their place

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **metrics})

    def finish(self) -> None:
        """See `Tracker`."""
        self._run.finish()

    def abandon(self) -> None:
        """End its process: when ours ends, it would wait for that one, by a hook that is taken away too."""
        import psutil

        # Read as it is: `wandb.teardown` would wait for a lock that a start that hangs holds.
        setup = sys.modules.get("wandb.sdk.wandb_setup")
        connection = getattr(getattr(setup, "_singleton", None), "_connection", None)
        if (unhook := getattr(connection, "_cleanup", None)) is not None:
            unhook()
            setup.__dict__["_singleton"] = None  # a later run begins its own process
        for child in psutil.Process().children():
            if child.name().startswith("wandb"):
                child.kill()

    def hint(self, start: Start) -> str:
        """See `Tracker`."""
        return f"what it had is in {start.directory / 'wandb'}: `wandb sync` sends it"


class Trackio:
    """Trackio; its records lie where `TRACKIO_DIR` says, or in a Space by `TRACKIO_SPACE_ID`."""

    def begin(self, start: Start) -> dict[str, str]:
        """See `Tracker`."""
        import trackio

        self._problems: list[str] = []
        self._notify = start.notify
        _keep_quiet("trackio", self._problems)
        project, name = (start.known["project"], start.known["id"]) if start.known else (start.project, start.name)
        try:
            self._run = self._init(start, project, name, "must" if start.known else "never")
        except ValueError as error:
            if start.known is None:
                raise
            _say_gone(start, "trackio", type(error).__name__)
            project, name = start.project, start.name
            self._run = self._init(start, project, name, "never")
        atexit.unregister(getattr(trackio, "_cleanup_current_run", None) or _nothing)  # `finish` does it, in time
        return {"id": self._run.name, "project": project}

    @staticmethod
    def _init(start: Start, project: str, name: str, resume: str) -> Any:
        import trackio

        return trackio.init(
            project=project,
            name=name,
            config=start.config,
            resume=resume,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(dict(metrics), step=step)
        self._check()

    def finish(self) -> None:
        """See `Tracker`."""
        self._run.finish()
        self._check()

    def _check(self) -> None:
        """It warns where others raise.

        Raises:
            RuntimeError: it has warned.
        """
        if self._problems:
            raise RuntimeError(self._problems[0])

    def abandon(self) -> None:
        """Nothing holds the process: its threads are daemons."""

    def hint(self, start: Start) -> str:
        """See `Tracker`."""
        return "TRACKIO_DIR says where its records lie"


class TensorBoard:
    """TensorBoard's event files, in the run directory."""

    def begin(self, start: Start) -> None:
        """See `Tracker`."""
        from torch.utils.tensorboard import SummaryWriter

        # What stands there from this step on is hidden: it is written again.
        purge = start.next_step if start.next_step > 1 else None
        self._writer = SummaryWriter(
            str(start.directory / "tensorboard"), purge_step=purge, flush_secs=_TENSORBOARD_FLUSH_SECONDS
        )
        text = json.dumps(start.config, indent=2, default=str).replace("\n", "\n    ")
        self._writer.add_text("config", f"    {text}", start.next_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """See `Tracker`."""
        self._writer.close()

    def abandon(self) -> None:
        """Nothing holds the process: its thread is a daemon."""

    def hint(self, start: Start) -> str:
        """See `Tracker`."""
        return f"its files are in {start.directory / 'tensorboard'}"


class Mlflow:
    """MLflow, at `MLFLOW_TRACKING_URI`; without it where the library puts things, `./mlflow.db`."""

    def begin(self, start: Start) -> dict[str, str]:
        """See `Tracker`."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = mlflow.MlflowClient()
        if start.known:
            try:
                active = self._client.get_run(start.known["id"]).info.lifecycle_stage == "active"
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # a server in trouble still has the run
                    raise
                active = False
            if active:
                self._id = start.known["id"]
                self._client.update_run(self._id, status="RUNNING")
                return start.known
            _say_gone(start, "mlflow", "it is deleted")
        self._id = self._begin_new(start)
        return {"id": self._id, "project": start.project}

    def _begin_new(self, start: Start) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(start.project)
        where = experiment.experiment_id if experiment else self._client.create_experiment(start.project)
        run_id: str = self._client.create_run(where, run_name=start.name).info.run_id
        params = [Param(key, str(value)[:_MLFLOW_VALUE]) for key, value in _flat(start.config)]
        for first in range(0, len(params), _MLFLOW_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + _MLFLOW_PARAMS])
        return run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, float(value), now, step) for name, value in metrics.items()])

    def finish(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id)

    def abandon(self) -> None:
        """Nothing holds the process."""

    def hint(self, start: Start) -> str:
        """See `Tracker`."""
        return "MLFLOW_TRACKING_URI says where it sends to"


TRACKERS: "dict[TrackerName | str, Callable[[], Tracker]]" = {
    "wandb": Wandb,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
}


def _say_gone(start: Start, name: str, reason: str) -> None:
    assert start.known is not None
    start.notify(f"{name}: the tracked run {start.known['id']} cannot go on ({reason}), a new one begins")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested options by their dotted names."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keep_quiet(package: str, problems: list[str]) -> None:
    """Let a library print nothing (stdout is for data) and collect what it would only warn of."""

    def warn(message: object, *_: object, **__: object) -> None:
        problems.append(str(message))

    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            # A module's own names come before the builtins, and nobody else's.
            module.__dict__["print"] = _nothing
            if "_emit_nonfatal_warning" in module.__dict__:
                module.__dict__["_emit_nonfatal_warning"] = warn


def _nothing(*_: object, **__: object) -> None:
    """Take the place of what must not happen."""
