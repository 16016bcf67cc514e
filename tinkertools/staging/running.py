"""Stages at work: each in a process of its own, after the one before it; and what became of them."""

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

from tinkertools import __version__
from tinkertools.config import TrainConfig
from tinkertools.errors import Interrupted, RunError
from tinkertools.files import explain_os_errors, write_bytes
from tinkertools.planning import Ask, Plan, resolve
from tinkertools.processes import Job, Jobs, LastWords, command_of, environment_of
from tinkertools.reporting import Notify
from tinkertools.runs.log import TrainingLog, figures_shown
from tinkertools.settings.writing import write_some, write_stages
from tinkertools.staging.plans import NAMING, PLACES, Stage, Stages, has_steps, plan_of_stage, resolved
from tinkertools.stopping import StoppedAtOnce
from tinkertools.tracking import check_trackers


def run_stages(stages: Stages, say: Notify) -> None:
    """Train the stages that are not finished, each when the one before it is.

    Raises:
        Interrupted: a signal came.
        RunError: a stage failed, or another process is at it.
    """
    for stage in stages.stages:
        check_trackers(stage.config.trackers)
    directory = stages.directory
    with explain_os_errors(directory.path):
        if stages.replaces:
            with directory.lock():
                pass
            shutil.rmtree(directory.path)
        directory.path.mkdir(parents=True, exist_ok=True)
    with _left_whole(stages), directory.lock():
        _write(stages)
        for number, stage in enumerate(stages.stages, 1):
            place = f"stage {number} of {len(stages.stages)}, {stage.name}"
            if stages.run(stage).finished:
                say(f"{place}: finished already")
                continue
            say(f"{place}: --method {stage.config.method}")
            _train(stages, stage, place, say)
            _write(stages)


@contextmanager
def _left_whole(stages: Stages) -> Iterator[None]:
    """A signal that did not wait for a run to end is explained."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise Interrupted(
            f"stopped at once; what {stages.directory.path} holds is whole",
            hint=f"go on with it: {stages.goes_on}",
            by=stopped.by if isinstance(stopped, StoppedAtOnce) else signal.SIGINT,
        ) from None


def _write(stages: Stages, **errors: str) -> None:
    """Write `stages.json`: the settings of each stage, how far it is, and the errors of those that failed, by name."""
    entries = []
    for stage in stages.stages:
        written = stage.config.to_json()
        state = "failed" if stage.name in errors else stages.state_of(stage)
        entry = {"name": stage.name, "state": state, "settings": {name: written[name] for name in stage.values}}
        entries.append(entry | ({"error": errors[stage.name]} if stage.name in errors else {}))
    stages.directory.write({"tinkertools": __version__, "created": stages.created, "stages": entries})


def _train(stages: Stages, stage: Stage, place: str, say: Notify) -> None:
    """Train a stage in a process of its own.

    Raises:
        Interrupted: a signal came, and it is not finished.
        RunError: it failed.
    """
    directory, run = stages.directory, stages.run(stage)
    behavior = "overwrite" if stage.anew else "resume"
    values = resolved(stage, directory) | {"log_path": run.path.resolve(), "behavior_if_log_dir_exists": behavior}
    file = directory.config(stage.name)
    write_bytes(file, write_some(TrainConfig(**values), values).encode())
    last_words, codes = LastWords(), list[int]()

    def said(_: Job, line: str) -> None:
        last_words.heard(line)
        say(f"[{stage.name}] {line}")

    jobs = Jobs(1, said, say)
    job = Job(stage.name, command_of(file.resolve()), environment_of(stage.url), directory.output(stage.name))
    jobs.run([job], lambda _: None, lambda _, code: codes.append(code))
    if jobs.signals and (stage is not stages.stages[-1] or not run.finished):
        _write(stages)
        done = sum(stages.run(one).finished for one in stages.stages)
        raise Interrupted(
            f"stopped in {place}; {done} of {len(stages.stages)} stages are finished",
            hint=f"go on with it: {stages.goes_on}",
            by=jobs.signals[0],
        )
    if any(codes) and not jobs.signals:
        _fail(stages, stage, place, last_words.why(codes[0]))


def _fail(stages: Stages, stage: Stage, place: str, why: str) -> NoReturn:
    _write(stages, **{stage.name: why})
    hint = f"mend what is wrong, then {stages.goes_on} tries it again"
    if not has_steps(stages.run(stage)):
        hint += "; where its settings are wrong, with --config FILE once they are mended there"
    raise RunError(f"{place}, failed: {why}", hint=hint)


def described(stages: Stages, stage: Stage) -> str:
    """What a stage will do, in words."""
    config = stage.config
    parts = [
        f"stage {stage.name}, --method {config.method}: {stages.state_of(stage)}",
        config.data or "no data",
        f"batch {config.batch}",
        f"{config.max_steps} steps" if config.max_steps else f"{config.epochs} epoch{'s' * (config.epochs > 1)}",
        f"rank {stage.rank or 'of the weights it starts from'}",
        f"learning rate {config.learning_rate}",
        *(f"{field.replace('_', ' ')} {stage.values[field]}" for field in NAMING if stage.values.get(field)),
        f"into {stages.run(stage).path}",
    ]
    return ", ".join(parts)


def shown_plan(stages: Stages, stage: Stage, ask: Ask) -> Plan | None:
    """The plan of a stage to show before it is begun; None where that needs the result of an earlier one.

    Steps and what they take do not depend on the weights that training starts from.
    """
    named = stage.named.keys() - {"load_checkpoint_path"}
    if named or stages.state_of(stage) != "waiting":
        return None
    values = {name: value for name, value in stage.values.items() if name not in stage.named}
    return plan_of_stage(replace(stage, values=values), stages.directory, ask)


def config_of_stages(stages: Stages, say: Notify) -> str:
    """A file that gives the same stages."""
    configs = [(stage.name, resolve(stage.config, say)) for stage in stages.stages]
    return write_stages(stages.shared, PLACES, configs)


def stages_table(stages: Stages) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what became of the stages."""
    rows = []
    for stage in stages.stages:
        run = stages.run(stage)
        log = TrainingLog.reopen(run.log, sys.maxsize)
        last = figures_shown(log.evals[-1]) if log.evals else f"loss {log.steps[-1]['loss']:.4f}" if log.steps else "–"
        rows.append([stage.name, stage.config.method, str(run.path), last])
    return ["stage", "method", "run", "last evaluation or loss"], rows
