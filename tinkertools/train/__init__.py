"""`tt train`: conversations become a LoRA adapter, on whichever engine.

Here is the command: what is meant (a run, a sweep, stages; to be trained, or only shown), and who does it. One run is
trained by `running`, which `starting` makes ready; `dry_run` shows what it would be, `summary` what it was; `idle`
finds settings that would have no effect.
"""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tinkertools import console
from tinkertools.config import OUTPUT_DIR
from tinkertools.errors import Interrupted
from tinkertools.options import with_settings
from tinkertools.planning import Plan, plan_resumed, plan_run, resolve
from tinkertools.presets import with_preset
from tinkertools.settings.given import Given
from tinkertools.settings.reading import from_options, read_file
from tinkertools.settings.schema import json_schema
from tinkertools.settings.writing import write_yaml
from tinkertools.stopping import StoppedAtOnce, terminated_as_interrupted
from tinkertools.train.dry_run import show_plan
from tinkertools.train.idle import refuse_idle
from tinkertools.train.running import run_plan
from tinkertools.train.summary import show_next

if TYPE_CHECKING:
    from tinkertools.staging.plans import Stages
    from tinkertools.sweeping.plans import Sweep


@with_settings
def command(
    config: Annotated[
        Path | None, typer.Option(help="Settings from a YAML file; options beside it win.", metavar="FILE.yaml")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on with a run, a sweep or stages (the path, or latest) with the options it was started with. "
            "Beside it may change: --max-steps and --epochs, to more; what is saved, fetched, tracked and waited for.",
            metavar="RUN",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be trained, as text and in numbers, and what it takes."),
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Write the settings as they would be, as YAML; do nothing.")
    ] = False,
    print_schema: Annotated[
        bool, typer.Option("--print-schema", help="Write the JSON Schema of the YAML file; do nothing.")
    ] = False,
    **options: Any,
) -> None:
    """Train a LoRA adapter on conversations. Without options: the starter model on the sample conversations.

    Where ,… stands, several values make a sweep: a run of each combination. A file may have stages: runs that follow
    one another.
    """
    from tinkertools.staging.plans import stages_of
    from tinkertools.sweeping.plans import sweep_of

    if print_schema:
        console.json_data(json_schema())
        return
    given = given_by(options, config, resume)
    plan: Plan | None = None
    try:
        with terminated_as_interrupted():
            if (stages := stages_of(given, resume, ask_what_to_do)) is not None:
                refuse_idle(given, "stages", [stage.config for stage in stages.stages])
                train_stages(stages, dry_run=dry_run, print_config=print_config)
                return
            if (sweep := sweep_of(given, resume, ask_what_to_do)) is not None:
                refuse_idle(given, "sweep", [sweep.plan.config])
                train_all(sweep, dry_run=dry_run, print_config=print_config)
                return
            plan = plan_of(given, resume)
            refuse_idle(given, "run", [plan.config])
            if print_config:
                show_config(plan)
            elif dry_run:
                show_plan(plan)
            else:
                run_plan(plan)
    except KeyboardInterrupt as stopped:
        raise left_at_once(plan, stopped.by if isinstance(stopped, StoppedAtOnce) else signal.SIGINT) from None


def given_by(options: Mapping[str, Any], config: Path | None, resume: str | None) -> Given:
    """The options over what a file gives, with what their preset says."""
    given = from_options(options)
    if config is not None:
        given = read_file(config).under(given)
    if resume is None and not given.stages:
        given, words = with_preset(given)
        if words:
            console.say(words)
    return given


def plan_of(given: Given, resume: str | None) -> Plan:
    """The run to go on with, or a new one."""
    from tinkertools.runs.directory import find_run

    if resume is not None:
        return plan_resumed(find_run(resume, given.values.get("output_dir") or OUTPUT_DIR), given)
    return plan_run(given, ask_what_to_do)


def train_all(sweep: "Sweep", *, dry_run: bool, print_config: bool) -> None:
    """Train the runs of a sweep, or show what they would be."""
    from tinkertools.sweeping.outcomes import best_run, refuse_failed, results_table
    from tinkertools.sweeping.plans import runs_table
    from tinkertools.sweeping.running import run_sweep

    for note in sweep.notes:
        console.warn(note)
    if print_config:
        show_config(sweep.plan)
        return
    if dry_run:
        console.table(*runs_table(sweep))
        console.say("the first of these runs:")
        show_plan(sweep.plan)
        return
    outcomes = run_sweep(sweep, console.say, console.progress)
    console.table(*results_table(sweep, outcomes))
    console.say(f"plots           {sweep.directory.plots}")
    if best := best_run(sweep, outcomes):
        show_next(best.path, scores=sweep.plan.config.method == "reward")
    console.data(str(sweep.directory.path))
    refuse_failed(sweep, outcomes)


def train_stages(stages: "Stages", *, dry_run: bool, print_config: bool) -> None:
    """Train runs that follow one another, or show what they would be."""
    from tinkertools.staging.running import config_of_stages, described, run_stages, shown_plan, stages_table

    for note in stages.notes:
        console.say(note)
    if print_config:
        console.data(config_of_stages(stages, console.say).rstrip())
        return
    if dry_run:
        for stage in stages.stages:
            console.say(described(stages, stage))
            if plan := shown_plan(stages, stage, ask_what_to_do):
                show_plan(plan)
        return
    run_stages(stages, console.say)
    console.table(*stages_table(stages))
    if stages.result is not None:
        show_next(stages.result.path, scores=False)
    console.data(str(stages.directory.path))


def ask_what_to_do(path: Path) -> Literal["overwrite", "resume"] | None:
    """Have the user say what becomes of a run's directory that is there."""
    answer = console.ask(f"{path} exists.", {"o": "overwrite it", "r": "resume it"})
    return None if answer is None else "overwrite" if answer.startswith("o") else "resume"


def show_config(plan: Plan) -> None:
    """The settings in effect, as a file that gives the same run."""
    console.data(write_yaml(resolve(plan.config, console.say), plan.given.grid).rstrip())


def left_at_once(plan: Plan | None, by: signal.Signals) -> Interrupted:
    """What to say when a signal did not wait for a step to finish."""
    if plan is None or not plan.run.exists:
        return Interrupted(
            "stopped before the first step; nothing was written", hint="run the same command again", by=by
        )
    return Interrupted(
        f"stopped at once; what {plan.run.path} holds is whole",
        hint=f"go on with it: tt train --resume {plan.run.path}",
        by=by,
    )
