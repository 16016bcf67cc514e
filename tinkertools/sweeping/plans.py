"""The runs of a sweep, as its settings say and as it was begun: what each will be, before anything is done."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from tinkertools.config import JUDGED_OF, OUTPUT_DIR, MethodName, ServerSettings, TrainConfig, setting
from tinkertools.engines import Choice
from tinkertools.errors import UsageError
from tinkertools.planning import Ask, Plan, as_started, is_empty, plan_run, rank_of_start, when_there
from tinkertools.presets import without_preset
from tinkertools.processes import secret_url
from tinkertools.resuming import option, with_options
from tinkertools.runs.directory import new_run
from tinkertools.runs.sweeps import SweepDirectory, find_sweep
from tinkertools.settings.given import Given
from tinkertools.settings.keys import option_of

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
    was = ",".join(map(as_text, before)) if isinstance(before, list) else as_text(before)
    return UsageError(f"{shown}: the sweep was started with {was}", hint="leave it out, or start a new sweep")


def _shown_grid(given: Given, *names: str) -> str:
    """Lists of values as they were given: options, or places in a file."""
    return "; ".join(
        f"{given.places[name]}{' ' if given.places[name].startswith('--') else ': '}{','.join(map(as_text, values))}"
        for name, values in given.grid.items()
        if not names or name in names
    )


def described(values: Mapping[str, Any]) -> str:
    """Settings in words, such as `rank 8, learning rate 1e-05`."""
    return ", ".join(f"{name.replace('_', ' ')} {as_text(value)}" for name, value in values.items())


def _name(values: Mapping[str, Any], taken: set[str]) -> str:
    """A name for the directory of a run that no other run has."""
    text = "-".join(f"{name}_{as_text(value)}" for name, value in values.items())
    name = stem = re.sub(r"[^A-Za-z0-9_.+-]", "_", text)[:_LONGEST_NAME]
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def as_text(value: Any) -> str:
    """A value of a setting as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def runs_table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what would be trained."""
    rows = [[str(i), *map(as_text, run.values.values()), run.name] for i, run in enumerate(sweep.runs, 1)]
    return ["", *(name.replace("_", " ") for name in sweep.grid), "directory"], rows
