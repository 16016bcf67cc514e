"""Sweeps: a run for each combination of settings, each in a process of its own, and which of them is the best."""

import dataclasses
import math
import re
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from tinkertools import __version__
from tinkertools.config import JUDGED_OF, OUTPUT_DIR, MethodName, ServerSettings, TrainConfig, setting
from tinkertools.engines import Choice
from tinkertools.errors import Interrupted, RunError, UsageError
from tinkertools.files import explain_os_errors, write_bytes
from tinkertools.planning import Ask, Plan, as_started, is_empty, plan_run, rank_of_start, when_there
from tinkertools.presets import without_preset
from tinkertools.processes import Job, Jobs, LastWords, command_of, environment_of, secret_url
from tinkertools.reporting import Notify, ProgressMaker, Report
from tinkertools.resuming import option, remembered, with_options
from tinkertools.runs.directory import RunDirectory, new_run
from tinkertools.runs.log import LOSSES, TrainingLog, best_of, in_words, judged_by, more_is_better
from tinkertools.runs.sweeps import SweepDirectory, find_sweep
from tinkertools.settings.given import Given
from tinkertools.settings.keys import option_of
from tinkertools.settings.writing import write_yaml
from tinkertools.stopping import StoppedAtOnce
from tinkertools.tracking import check_trackers

# What is held out where nothing says what to evaluate on: without it no run would be better than another.
HELD_OUT = 0.1
# Methods that evaluate on something else than data that are held out.
_NO_DATA: tuple[MethodName, ...] = ("selfplay",)
# They decide what a loss is.
_OTHER_LOSSES = ("beta", "preference_loss", "label_smoothing")
# They decide which tokens are evaluated on.
_OTHER_TOKENS = ("renderer", "train_on_what", "max_length", "overlength")
# Where the runs of a sweep are is known.
_PLACES = ("log_path", "output_dir", "run_name", "behavior_if_log_dir_exists")
# Longer names of directories are cut; a number then tells them apart.
_LONGEST_NAME = 150


@dataclass(frozen=True)
class Run:
    """A run of a sweep: the name of its directory, its values of the settings that are swept, and all its settings."""

    name: str
    values: Mapping[str, Any]
    config: TrainConfig

    def __str__(self) -> str:
        return described(self.values)


@dataclass(frozen=True)
class Sweep:
    """What is to be trained and where it goes.

    Attributes:
        directory: of all runs.
        plan: of the first run; its configuration is that of all, but for what is swept.
        grid: the values by setting.
        created: when the sweep was begun.
        notes: what the user should know.
        replaces: whether a sweep that is there goes.
    """

    directory: SweepDirectory
    plan: Plan
    grid: Mapping[str, list[Any]]
    created: str
    notes: Sequence[str] = ()
    replaces: bool = False

    @property
    def runs(self) -> list[Run]:
        """A run for each combination."""
        base, found = self.plan.config, list[Run]()
        for values in Given(grid=dict(self.grid)).combinations():
            name = _name(values, {run.name for run in found})
            config = base.changed(
                **values,
                log_path=self.directory.run(name).path.resolve(),
                run_name=None,
                behavior_if_log_dir_exists="resume",
                jobs=1,
                wandb_name=f"{base.wandb_name}-{name}" if base.wandb_name else None,
                base_url=None if self.secret_url or base.engine == "local" else self.plan.choice.base_url,
            )
            found.append(Run(name, values, config))
        return found

    @property
    def secret_url(self) -> str | None:
        """The server's address where a password stands in it, which no file may hold."""
        return secret_url(self.plan.choice.base_url)

    @property
    def goes_on(self) -> str:
        """What to type to go on with it."""
        return f"tt train --resume {self.directory.path}"


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: which one.
        finished: whether it was trained to its end.
        error: why it failed, where it did.
        steps: its log's entries.
        evals: the same of evaluations.
    """

    run: Run
    finished: bool
    error: str | None
    steps: Sequence[Mapping[str, Any]]
    evals: Sequence[Mapping[str, Any]]

    @property
    def state(self) -> str:
        """How far it came, in a word."""
        return "finished" if self.finished else "failed" if self.error else "unfinished"

    @property
    def judged(self) -> str:
        """What its evaluations are judged by."""
        return judged_by(self.evals[-1]) if self.evals else JUDGED_OF[self.run.config.method]

    @property
    def value(self) -> float | None:
        """That at the end: of the final weights."""
        return _number(self.evals[-1][self.judged]) if self.evals else None

    @property
    def accuracy(self) -> float | None:
        """The accuracy at the end, where evaluations have one."""
        return _number(self.evals[-1].get("accuracy")) if self.evals else None

    @property
    def train(self) -> float | None:
        """The mean of the same figure over all steps, each as the model was before it; None where steps have none.

        An NLL is the mean of all tokens that were trained. Steps in which there was nothing to train have no loss.
        """
        if self.judged in LOSSES:
            pairs = [(entry["loss"], entry["trained_tokens"]) for entry in self.steps if entry["trained_tokens"]]
            if self.judged == "loss":
                pairs = [(loss, 1) for loss, _ in pairs]
        else:
            pairs = [(entry[self.judged], 1) for entry in self.steps if _number(entry.get(self.judged)) is not None]
        if not pairs or any(_number(value) is None for value, _ in pairs):
            return None
        return float(math.fsum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs))

    def to_json(self) -> dict[str, Any]:
        """Its row in `results.json`; keys are named by what evaluations are judged by, such as `best_nll`."""
        best = best_of([dict(entry) for entry in self.evals])
        return {
            "run": self.run.name,
            "settings": dict(self.run.values),
            "state": self.state,
            "error": self.error,
            "steps": len(self.steps),
            self.judged: self.value,
            f"best_{self.judged}": best[self.judged] if best else None,
            "best_step": best["step"] if best else None,
            f"train_{self.judged}": self.train,
        } | ({"accuracy": self.accuracy} if self.accuracy is not None else {})


def sweep_of(given: Given, resume: str | None, ask: Ask) -> Sweep | None:
    """The sweep that is meant, a new one or one to go on with; None where a single run is. Nothing is done yet.

    Raises:
        UsageError: settings contradict each other, or do not go with a sweep.
        RunError: the sweep's directory is there, or is damaged.
    """
    if resume is not None:
        directory = find_sweep(resume, given.values.get("output_dir") or OUTPUT_DIR)
        if directory is not None:
            return _resumed(directory, given)
        if given.grid:
            raise UsageError(
                f"{_shown_grid(given)}: --resume {resume} goes on with one run, whose settings have one value each",
                hint="leave --resume out to begin a sweep",
            )
        return None
    return _new(given, ask) if given.grid else None


def _new(given: Given, ask: Ask) -> Sweep:
    """A new sweep, or one to go on with where its directory is there and the settings say so."""
    given, notes = _evaluated(given)
    configs = [_checked(given, values) for values in given.combinations()]
    first = configs[0]
    path, replaces = first.log_path or (first.output_dir / first.run_name if first.run_name else None), False
    if path is not None and path.exists() and not is_empty(path):
        if when_there(SweepDirectory(path), first.behavior_if_log_dir_exists, ask) == "resume":
            return _resumed(SweepDirectory(path), given)
        replaces = True
    values = {name: value for name, value in given.values.items() if name not in _PLACES}
    plan = plan_run(Given(values | next(given.combinations()), given.places), ask)
    config = plan.config.changed(
        log_path=first.log_path, run_name=first.run_name, output_dir=first.output_dir, **_rank_of_start(given, first)
    )
    now = datetime.now().astimezone()
    directory = SweepDirectory(path or new_run(first.output_dir, config.base_model, now, kind="sweep").path)
    plan = dataclasses.replace(plan, config=config, given=given)
    _check_jobs(plan)
    return Sweep(directory, plan, given.grid, now.isoformat(timespec="seconds"), notes, replaces)


def _evaluated(given: Given) -> tuple[Given, list[str]]:
    """The settings with data to evaluate on, and what the user should know of it.

    Raises:
        UsageError: a setting does not go with a sweep.
    """
    if given.values.get("upload"):
        raise UsageError(
            "--upload: a sweep has many results", hint="leave it out; afterwards: tt upload --run RUN, with the best"
        )
    notes: list[str] = []
    method: MethodName = given.values.get("method") or "sft"
    if method in _NO_DATA:
        return given, notes
    figures = "NLLs" if JUDGED_OF[method] == "nll" else "evaluations"
    if not given.values.get("eval_data") and not given.values.get("val_fraction"):
        given = Given(given.values | {"val_fraction": HELD_OUT}, given.places, given.grid)
        notes.append(f"no --eval-data: --val-fraction {HELD_OUT} of the data are held out, by which runs are compared")
    if "num_examples" in given.grid and not given.values.get("eval_data"):
        raise UsageError(
            f"{_shown_grid(given, 'num_examples')}: each run would hold out other conversations, and their {figures} "
            "could not be compared",
            hint="name what all are evaluated on: --eval-data FILE",
        )
    if others := [option_of(name) for name in _OTHER_TOKENS if name in given.grid]:
        notes.append(f"{' and '.join(others)} may change which tokens are evaluated: compare {figures} with care")
    if others := [option_of(name) for name in _OTHER_LOSSES if name in given.grid]:
        notes.append(f"{' and '.join(others)} may change what the loss is: compare accuracies rather than losses")
    return given, notes


def _checked(given: Given, values: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a combination.

    Raises:
        UsageError: it contradicts itself.
    """
    try:
        return given.config(**values)
    except UsageError as error:
        raise UsageError(f"the run of {described(values)}: {error.message}", hint=error.hint) from error


def _rank_of_start(given: Given, config: TrainConfig) -> dict[str, int]:
    """The rank of the weights to start from, where nothing says another: each run's file names its rank."""
    rank = None if "rank" in (given.values | given.grid) else rank_of_start(config)
    return {"rank": rank} if rank else {}


def _check_jobs(plan: Plan) -> None:
    """Refuse runs at once where one machine computes them."""
    if plan.config.jobs > 1 and plan.config.engine == "local":
        raise UsageError(
            f"--jobs {plan.config.jobs}: this machine computes one run at a time, and more at once would not be faster",
            hint="leave it out; on a server several runs can be trained at once",
        )


def _resumed(directory: SweepDirectory, given: Given) -> Sweep:
    """A sweep to go on with, as it was started, but for settings that do not change what is computed.

    Raises:
        RunError: it is damaged, or another version wrote it.
        UsageError: a setting would change the results.
    """
    stored = directory.read()
    started, grid = TrainConfig.from_json(stored["config"], directory.file), stored["grid"]
    for name, listed in given.grid.items():
        if grid.get(name) != listed:
            raise _refused(_shown_grid(given, name), grid.get(name, getattr(started, name)))
    changed = {
        name: value
        for name, value in without_preset(given.values, given.places).items()
        if name not in (*_PLACES, *given.grid) and (name in grid or getattr(started, name) != value)
    }
    if not changed.get("val_fraction"):  # 0 may stand in the file that the sweep was begun with, too
        changed.pop("val_fraction", None)
    for name, value in as_started(changed, started, {}).items():
        allowed = setting(name).on_resume in ("once", "free") and name != "upload"
        if name in grid or not (allowed or value == getattr(started, name)):
            raise _refused(option(name, value), grid.get(name, getattr(started, name)))
    config = with_options(started, as_started(changed, started, {}), given.places)
    server = ServerSettings.from_environment(given.values.get("base_url"))
    engine: Literal["tinker", "local"] = "tinker" if config.engine == "tinker" else "local"
    choice = Choice(engine, config.base_model, f"as {directory.path} was started", server.base_url or config.base_url)
    given = Given(changed, given.places, grid)
    plan = Plan(config, choice, directory.run("first"), started=started, given=given)
    _check_jobs(plan)
    return Sweep(directory, plan, grid, stored["created"])


def _refused(shown: str, before: Any) -> UsageError:
    was = ",".join(map(_text, before)) if isinstance(before, list) else _text(before)
    return UsageError(f"{shown}: the sweep was started with {was}", hint="leave it out, or start a new sweep")


def _shown_grid(given: Given, *names: str) -> str:
    """Lists of values as they were given: options, or places in a file."""
    return "; ".join(
        f"{given.places[name]}{' ' if given.places[name].startswith('--') else ': '}{','.join(map(_text, values))}"
        for name, values in given.grid.items()
        if not names or name in names
    )


def described(values: Mapping[str, Any]) -> str:
    """Settings in words, such as `rank 8, learning rate 1e-05`."""
    return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in values.items())


def _name(values: Mapping[str, Any], taken: set[str]) -> str:
    """A name for the directory of a run that no other run has."""
    text = "-".join(f"{name}_{_text(value)}" for name, value in values.items())
    name = stem = re.sub(r"[^A-Za-z0-9_.+-]", "_", text)[:_LONGEST_NAME]
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: float | None) -> float | None:
    """A number of a log; None where it is none."""
    return value if value is not None and math.isfinite(value) else None


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
            found = ranked([_outcome(sweep, run, errors.get(run.name)) for run in sweep.runs])
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
            found = _outcome(self._sweep, run, None)
            figure = f": {_held_out(found.judged)} {found.value:.4f}" if found.value is not None else ""
            self._say(f"{place} is finished{figure}")
        self._ended += 1
        self._report(self._ended, f"{len(self.errors)} failed" if self.errors else "")


def _outcome(sweep: Sweep, run: Run, error: str | None) -> Outcome:
    directory = sweep.directory.run(run.name)
    try:
        log = TrainingLog.reopen(directory.log, sys.maxsize)
    except RunError:  # something else is in its place; the run has said so
        log = TrainingLog(directory.log)
    return Outcome(run, directory.finished, error, log.steps, log.evals)


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The best first: finished ones by what their final weights are judged by, then the others; those without last."""

    def key(one: Outcome) -> tuple[bool, bool, float]:
        sign = -1 if more_is_better(one.judged) else 1
        return not one.finished, one.value is None, sign * (one.value or 0.0)

    return sorted(outcomes, key=key)


def best_run(sweep: Sweep, outcomes: Sequence[Outcome]) -> RunDirectory | None:
    """The directory of the best run; None where none is finished and evaluated."""
    first = outcomes[0]
    return sweep.directory.run(first.run.name) if first.finished and first.value is not None else None


def runs_table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what would be trained."""
    rows = [[str(i), *map(_text, run.values.values()), run.name] for i, run in enumerate(sweep.runs, 1)]
    return ["", *(name.replace("_", " ") for name in sweep.grid), "directory"], rows


def _held_out(judged: str) -> str:
    """What evaluations are judged by, in words."""
    return in_words(judged) if judged == "win_rate" else f"held-out {in_words(judged)}"


def results_table(sweep: Sweep, outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what became of the runs, the best first."""
    judged = outcomes[0].judged
    accuracy = any(one.accuracy is not None for one in outcomes)
    rows = []
    for place, one in enumerate(outcomes, 1):
        best = best_of([dict(entry) for entry in one.evals])
        shown = f"{best[one.judged]:.4f} @ {best['step']}" if best else "–"
        state = f"failed: {one.error}" if one.error else one.state
        figures = [_shown(one.value), *([_shown(one.accuracy)] if accuracy else []), shown, _shown(one.train)]
        rows.append([str(place), *map(_text, one.run.values.values()), *figures, f"{len(one.steps):,}", state])
    # On several lines, so that eight columns fit into a terminal of 80 characters.
    swept = [name.replace("_", "\n") for name in sweep.grid]
    figures = [_held_out(judged).replace(" ", "\n"), *(["accuracy"] if accuracy else [])]
    return ["", *swept, *figures, "best\n@ step", f"train\n{in_words(judged)}", "steps", "state"], rows


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def refuse_failed(sweep: Sweep, outcomes: Sequence[Outcome]) -> None:
    """Say which runs failed.

    Raises:
        RunError: some did.
    """
    failed = [one for one in outcomes if one.error]
    if failed:
        listed = "; ".join(f"{one.run.name} ({one.error})" for one in failed)
        raise RunError(
            f"{len(failed)} of {len(outcomes)} runs failed: {listed}",
            hint=f"mend what is wrong, then {sweep.goes_on} tries them again",
        )
