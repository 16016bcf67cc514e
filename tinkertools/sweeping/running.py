"""The runs of a sweep trained, each in a process of its own, and what became of them written down."""

import shutil
import signal
from collections import defaultdict

from tinkertools import __version__
from tinkertools.errors import Interrupted
from tinkertools.files import explain_os_errors, write_bytes
from tinkertools.processes import Job, Jobs, LastWords, command_of, environment_of
from tinkertools.reporting import Notify, ProgressMaker, Report
from tinkertools.resuming import remembered
from tinkertools.settings.writing import write_yaml
from tinkertools.stopping import StoppedAtOnce
from tinkertools.sweeping.outcomes import Outcome, held_out, outcome_of, ranked
from tinkertools.sweeping.plans import Sweep
from tinkertools.tracking import check_trackers


def run_sweep(sweep: Sweep, say: Notify, progress: ProgressMaker) -> list[Outcome]:
    """Train what is not finished yet, and say what became of all runs, the best first; also in the sweep's files.

    Raises:
        Interrupted: a signal came.
        RunError: another process is at it.
    """
    from tinkertools.runs.plots import Curve, write_sweep_plots

    check_trackers(sweep.plan.config.trackers)
    directory = sweep.directory
    with explain_os_errors(directory.path):
        if sweep.replaces:
            with directory.lock():
                pass
            shutil.rmtree(directory.path)
        directory.path.mkdir(parents=True, exist_ok=True)
    try:
        with directory.lock():
            _write_files(sweep)
            errors = _train(sweep, say, progress)
            found = ranked([outcome_of(sweep, run, errors.get(run.name)) for run in sweep.runs])
            directory.write_results([{"place": place, **one.to_json()} for place, one in enumerate(found, 1)])
            curves = [Curve(str(one.run), [*map(dict, one.steps)], [*map(dict, one.evals)]) for one in found]
            write_sweep_plots(directory.plots, curves, found[0].judged)
            return found
    except KeyboardInterrupt as stopped:
        by = stopped.by if isinstance(stopped, StoppedAtOnce) else signal.SIGINT
        hint = f"go on with it: {sweep.goes_on}"
        raise Interrupted(f"stopped at once; what {directory.path} holds is whole", hint=hint, by=by) from None


def _write_files(sweep: Sweep) -> None:
    """Write `sweep.json`, where it says anything new, and the configuration of each run.

    Those are written whenever the sweep goes on: it may have been moved.
    """
    directory, config = sweep.directory, sweep.plan.config
    kept = remembered(sweep.plan.started, config) if sweep.plan.started else config
    if kept != sweep.plan.started:
        directory.write(
            {"tinkertools": __version__, "created": sweep.created, "config": kept.to_json(), "grid": dict(sweep.grid)}
        )
    for run in sweep.runs:
        write_bytes(directory.config(run.name), write_yaml(run.config, {}).encode())


def _train(sweep: Sweep, say: Notify, progress: ProgressMaker) -> dict[str, str]:
    """Train what is not finished, each run in a process of its own; why runs failed, by their names.

    Raises:
        Interrupted: a signal came, and not all are finished.
    """
    directory, runs, environment = sweep.directory, sweep.runs, environment_of(sweep.secret_url)
    todo = [
        Job(run.name, command_of(directory.config(run.name).resolve()), environment, directory.output(run.name))
        for run in runs
        if not directory.run(run.name).finished
    ]
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
    with progress("sweep", len(todo), "runs") as report:
        watch = _Watch(sweep, say, report)
        watch.jobs.run(todo, watch.began, watch.ended)
    finished = sum(directory.run(run.name).finished for run in runs)
    if watch.jobs.signals and finished < len(runs):
        raise Interrupted(
            f"stopped; {finished} of {len(runs)} runs are finished",
            hint=f"go on with it: {sweep.goes_on}",
            by=watch.jobs.signals[0],
        )
    return watch.errors


class _Watch:
    """Tells of runs as they are trained.

    Attributes:
        errors: why runs failed, by their names.
        jobs: those that are watched.
    """

    def __init__(self, sweep: Sweep, say: Notify, report: Report) -> None:
        self.errors: dict[str, str] = {}
        self.jobs = Jobs(sweep.plan.config.jobs, self.said, say)
        self._sweep, self._say, self._report = sweep, say, report
        runs = sweep.runs
        self._runs = {run.name: (f"run {i} of {len(runs)}", run) for i, run in enumerate(runs, 1)}
        self._last_words: dict[str, LastWords] = defaultdict(LastWords)
        self._ended = 0

    def began(self, job: Job) -> None:
        """A run begins."""
        place, run = self._runs[job.name]
        self._say(f"{place}: {run}")

    def said(self, job: Job, line: str) -> None:
        """A run said something."""
        self._last_words[job.name].heard(line)
        self._say(f"[{job.name}] {line}" if self._sweep.plan.config.jobs > 1 else f"  {line}")

    def ended(self, job: Job, code: int) -> None:
        """A run has ended; one that was asked to stop has not failed."""
        place, run = self._runs[job.name]
        if code and not self.jobs.signals:
            self.errors[job.name] = self._last_words[job.name].why(code)
            self._say(f"{place} failed: {self.errors[job.name]}")
        elif not code:
            found = outcome_of(self._sweep, run, None)
            figure = f": {held_out(found.judged)} {found.value:.4f}" if found.value is not None else ""
            self._say(f"{place} is finished{figure}")
        self._ended += 1
        self._report(self._ended, f"{len(self.errors)} failed" if self.errors else "")
