"""Stages as a file has them, and as they were begun: what each will be, before anything is done."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tinkertools.config import OUTPUT_DIR, SettingError, TrainConfig, setting
from tinkertools.errors import RunError, UsageError
from tinkertools.planning import Ask, Plan, as_started, is_empty, plan_run, rank_of_start, when_there
from tinkertools.presets import with_preset
from tinkertools.processes import secret_url
from tinkertools.resuming import option
from tinkertools.runs.directory import RunDirectory
from tinkertools.runs.many import TAKEN
from tinkertools.runs.stages import StagesDirectory, find_stages, new_stages
from tinkertools.settings.given import Given, GivenStage

# Settings that name a run, and what may stand before its name. `stage:NAME` is the run of an earlier stage.
NAMING: dict[str, tuple[str, ...]] = {"load_checkpoint_path": ("",), "teacher": ("",), "reward": ("score:", "judge:")}
_STAGE = "stage:"
# Where stages are written is said once, for all of them.
PLACES = ("log_path", "output_dir", "run_name", "behavior_if_log_dir_exists")


@dataclass(frozen=True)
class Stage:
    """A run among others.

    Attributes:
        name: of its directory, by which later ones name it.
        values: its settings as far as they are given, and as they were planned. Earlier stages are `stage:NAME`.
        url: its server's address, where a password stands in it; no file holds that.
        anew: whether a run that is there, with other settings, goes.
    """

    name: str
    values: Mapping[str, Any]
    url: str | None = None
    anew: bool = False

    @property
    def config(self) -> TrainConfig:
        """All its settings, with defaults."""
        return TrainConfig(**self.values)

    @property
    def rank(self) -> int | None:
        """The rank of its adapter; None where only a server knows."""
        config = self.config
        return config.rank if "rank" in self.values or config.load_checkpoint_path is None else None

    @property
    def named(self) -> dict[str, str]:
        """Earlier stages by the setting that names them."""
        return {field: name for field in NAMING if (name := _named(field, self.values.get(field)))}


@dataclass(frozen=True)
class Stages:
    """What is to be trained, and where it goes.

    Attributes:
        directory: of all.
        stages: in their order.
        created: when they were begun.
        shared: where they are to be written, as it was given.
        notes: what the user should know.
        replaces: whether stages that are there go.
    """

    directory: StagesDirectory
    stages: Sequence[Stage]
    created: str
    shared: TrainConfig
    notes: Sequence[str] = ()
    replaces: bool = False

    def run(self, stage: Stage) -> RunDirectory:
        """Where a stage is trained."""
        return self.directory.run(stage.name)

    def state_of(self, stage: Stage) -> str:
        """How far a stage is, in a word."""
        run = self.run(stage)
        return "finished" if run.finished else "unfinished" if run.exists else "waiting"

    @property
    def goes_on(self) -> str:
        """What to type to go on with them."""
        return f"tt train --resume {self.directory.path}"

    @property
    def result(self) -> RunDirectory | None:
        """The last run of a model that answers; None where there is none."""
        runs = [self.run(stage) for stage in self.stages if stage.config.method != "reward"]
        return runs[-1] if runs else None


def stages_of(given: Given, resume: str | None, ask: Ask) -> Stages | None:
    """The stages that are meant, new ones or some to go on with; None where there are none. Nothing is done yet.

    Raises:
        UsageError: settings contradict each other, or do not go with stages.
        RunError: their directory is there, or is damaged.
    """
    output_dir = given.values.get("output_dir") or OUTPUT_DIR
    if resume is not None:
        directory = find_stages(resume, output_dir)
        if directory is not None:
            return _resumed(directory, given, ask)
        if given.stages:
            raise UsageError(
                f"{given.stages[0].place}: {resume} has no stages to go on with", hint="leave --resume out to begin"
            )
        return None
    return _new(given, ask) if given.stages else None


def _new(given: Given, ask: Ask) -> Stages:
    """New stages, or some to go on with where their directory is there and the settings say so."""
    shared = Given({name: given.values[name] for name in PLACES if name in given.values}, given.places).config()
    now = datetime.now().astimezone()
    path = shared.log_path or (shared.output_dir / shared.run_name if shared.run_name else None)
    directory = StagesDirectory(path) if path else new_stages(shared.output_dir, now)
    replaces = False
    if directory.path.exists() and not is_empty(directory.path):
        if when_there(directory, shared.behavior_if_log_dir_exists, ask) == "resume":
            return _resumed(directory, given, ask)
        replaces = True
    stages, notes = _planned(given, directory, ask)
    return Stages(directory, stages, now.isoformat(timespec="seconds"), shared, notes, replaces)


def _planned(given: Given, directory: StagesDirectory, ask: Ask) -> tuple[list[Stage], list[str]]:
    """The stages of a file, and what the user should know of them.

    Raises:
        UsageError: settings contradict each other, or do not go with stages.
    """
    stages, notes = list[Stage](), list[str]()
    for own in given.stages:
        _refuse_unfit(given, own)
        _refuse_unknown(given, own, {stage.name for stage in stages})
        merged, words = with_preset(Given(given.values, given.places).under(own.given))
        if words:
            notes.append(f"stage {own.name}: {words}")
        stages.append(_stage(given, own, merged, {stage.name: stage for stage in stages}, directory, ask))
    return stages, notes


def _refuse_unfit(given: Given, own: GivenStage) -> None:
    """Refuse what does not go with stages.

    Raises:
        UsageError: something does not.
    """
    if grid := own.given.grid | given.grid:
        place = (given.places | own.given.places)[next(iter(grid))]
        raise UsageError(
            f"{place}: a sweep and stages do not go together", hint="one value each; sweep one stage, then the next"
        )
    if own.name in (*TAKEN, StagesDirectory.FILE):
        raise UsageError(f"{own.place}: {own.name} is no name for a stage", hint="something else lies there")
    for name in PLACES:
        if name in own.given.values and not own.given.places[name].startswith("--"):
            raise UsageError(
                f"{own.given.places[name]}: each stage is written into the directory of all",
                hint="say it outside of the stages, where it is for all of them",
            )
    if given.values.get("upload") and len(given.stages) > 1:
        raise UsageError(
            f"{given.places['upload']}: stages have many results", hint="say it in the stage whose result is meant"
        )


def _refuse_unknown(given: Given, own: GivenStage, earlier: set[str]) -> None:
    """Refuse stages that are named and are none, or not there yet.

    Raises:
        UsageError: one is.
    """
    merged = given.under(own.given)
    for field in NAMING:
        name = _named(field, merged.values.get(field))
        if name is None or name in earlier:
            continue
        place = f"{merged.places[field]}: {merged.values[field]}"
        if name == own.name:
            raise UsageError(f"{place} is this stage itself", hint="name one before it")
        if any(stage.name == name for stage in given.stages):
            raise UsageError(f"{place} comes after {own.name}", hint="stages run in their order: write it before")
        known = sorted(earlier)
        close = difflib.get_close_matches(name, known, n=1)
        before = f"before {own.name} there {'is' if len(known) == 1 else 'are'} {', '.join(known) or 'none'}"
        raise UsageError(f"{place}: there is no such stage", hint=f"did you mean {close[0]}?" if close else before)


def _stage(
    given: Given, own: GivenStage, merged: Given, earlier: Mapping[str, Stage], directory: StagesDirectory, ask: Ask
) -> Stage:
    """A stage as it will be run.

    Args:
        given: what holds for all.
        own: the stage in the file.
        merged: its settings, with what holds for all.
        earlier: those before it.
        directory: of all.
        ask: asks what nobody has said.

    Raises:
        UsageError: its settings contradict each other, or those of a stage it builds upon.
    """
    try:
        config = merged.config()
    except UsageError as error:
        hint, cause = error.hint, error.__cause__
        if isinstance(cause, SettingError) and cause.field in given.values and cause.field not in own.given.values:
            hint = "say it in the stages that it is for"
        raise UsageError(f"stage {own.name}: {error.message}", hint=hint) from error
    values = {name: value for name, value in merged.values.items() if name not in PLACES and value is not None}
    if (name := config.wandb_name) and own.given.places.get("wandb_name", "--").startswith("--"):
        values["wandb_name"] = f"{name}-{own.name}"
    start = _named("load_checkpoint_path", config.load_checkpoint_path)
    rank = earlier[start].rank if start else rank_of_start(config)
    if rank and values.setdefault("rank", rank) != rank:
        raise UsageError(
            f"stage {own.name}: {merged.places['rank']}: {config.load_checkpoint_path} has rank {rank}",
            hint="leave it out",
        )
    stage = Stage(own.name, values)
    plan = plan_of_stage(stage, directory, ask)
    before = Given(resolved(stage, directory)).config()
    planned = {name: getattr(plan.config, name) for name in TrainConfig.model_fields if name not in stage.named}
    values |= {name: value for name, value in planned.items() if value != getattr(before, name)}
    url = secret_url(plan.choice.base_url)
    values["base_url"] = None if url or plan.choice.engine == "local" else plan.choice.base_url
    if start and earlier[start].config.base_model != plan.config.base_model:
        raise UsageError(
            f"stage {own.name} trains {plan.config.base_model}, and stage {start}, from which it starts, "
            f"{earlier[start].config.base_model}",
            hint="name one model for both",
        )
    return Stage(own.name, {name: value for name, value in values.items() if value is not None}, url)


def _named(field: str, value: Any) -> str | None:
    """The stage that a setting names; None where it names none."""
    prefixes = [prefix + _STAGE for prefix in NAMING[field]]
    return next((value.removeprefix(p) for p in prefixes if isinstance(value, str) and value.startswith(p)), None)


def resolved(stage: Stage, directory: StagesDirectory) -> dict[str, Any]:
    """The settings of a stage, with the directories of the stages that they name."""
    found = dict(stage.values)
    for field, name in stage.named.items():
        found[field] = found[field].removesuffix(_STAGE + name) + str(directory.run(name).path.resolve())
    return found


def plan_of_stage(stage: Stage, directory: StagesDirectory, ask: Ask) -> Plan:
    """The plan of a stage's run, but for where it is written.

    Raises:
        UsageError: more is needed, such as data.
    """
    try:
        return plan_run(Given(resolved(stage, directory)), ask)
    except UsageError as error:
        raise UsageError(f"stage {stage.name}: {error.message}", hint=error.hint) from error


def _resumed(directory: StagesDirectory, given: Given, ask: Ask) -> Stages:
    """Stages to go on with, as they were started, but for settings that do not change what is computed.

    Those without a step that is saved are as the file has them, where there is one.

    Raises:
        RunError: they are damaged, or another version wrote them.
        UsageError: a setting would change the results.
    """
    stored = directory.read()
    started = [_read_stage(entry, directory) for entry in stored["stages"]]
    now = {stage.name: stage for stage in _planned(given, directory, ask)[0]}
    if now and [*now] != [stage.name for stage in started]:
        raise UsageError(
            f"{given.stages[0].place}: {directory.path} was started with the stages "
            f"{', '.join(stage.name for stage in started)}",
            hint="leave the file out, or begin anew elsewhere",
        )
    stages = []
    for stage in started:
        run = directory.run(stage.name)
        if now and not has_steps(run):
            mended = now[stage.name]
            stages.append(replace(mended, anew=run.exists and mended.values != stage.values))
            continue
        asked = now[stage.name].values if now else given.values
        places = given.places | next((own.given.places for own in given.stages if own.name == stage.name), {})
        stages.append(_changed(stage, asked, places, given.values.get("base_url")))
    return Stages(directory, stages, stored["created"], TrainConfig())


def has_steps(run: RunDirectory) -> bool:
    """Whether something would be lost if a run began anew."""
    return run.finished or run.next_step() > 1


def _read_stage(entry: Any, directory: StagesDirectory) -> Stage:
    """A stage as `stages.json` holds it.

    Raises:
        RunError: it is damaged.
    """
    try:
        name, settings = entry["name"], entry["settings"]
        config = TrainConfig.from_json(settings, directory.file)
    except (TypeError, KeyError, AttributeError, SettingError) as error:
        raise RunError(
            f"{directory.file} is damaged: {error}", hint="put a copy of it back, or begin anew elsewhere"
        ) from error
    return Stage(name, {field: getattr(config, field) for field in settings})


def _changed(stage: Stage, asked: Mapping[str, Any], places: Mapping[str, str], url: str | None) -> Stage:
    """A stage with settings given when it goes on.

    Raises:
        UsageError: one would change the result.
    """
    config = stage.config
    given = {name: value for name, value in asked.items() if name not in (*PLACES, "base_url")}
    changed = {name: value for name, value in as_started(given, config, {}).items() if value != getattr(config, name)}
    for name, value in changed.items():
        if setting(name).on_resume not in ("once", "free") or name == "upload":
            place = places.get(name, "--")
            shown = option(name, value) if place.startswith("--") else f"{place}: {value}"
            raise UsageError(
                f"{shown}: stage {stage.name} was started with {getattr(config, name)}",
                hint="leave it out, or begin anew elsewhere",
            )
    address = {"base_url": url} if url and not secret_url(url) and config.engine == "tinker" else {}
    return replace(stage, values=dict(stage.values) | changed | address, url=secret_url(url))
