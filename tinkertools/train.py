"""`tt train`: conversations become a LoRA adapter, on whichever engine."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tinkertools import __version__, console
from tinkertools.config import (
    CONFIG_VERSION,
    FOLLOWED_BY,
    JUDGED_OF,
    OUTPUT_DIR,
    AnswerDefaults,
    MethodName,
    ServerSettings,
    TrainConfig,
)
from tinkertools.engines import open_service
from tinkertools.errors import EngineError, FileError, Interrupted, TinkertoolsError, UsageError
from tinkertools.files import AGAIN
from tinkertools.options import with_settings
from tinkertools.planning import Plan, limits_of_model, plan_resumed, plan_run, resolve, start_of
from tinkertools.presets import with_preset
from tinkertools.resuming import changes, option, refuse_changed, refuse_shorter, remembered, unchecked
from tinkertools.settings import Given, from_options, json_schema, read_file, write_yaml
from tinkertools.stopping import StoppedAtOnce, stop_on_interrupt, terminated_as_interrupted

if TYPE_CHECKING:
    from tinkertools.chat.batching import Batches
    from tinkertools.chat.examples import Example
    from tinkertools.engines import SamplingClient, Service, TrainingClient
    from tinkertools.methods import Material
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.log import TrainingLog
    from tinkertools.runs.states import State
    from tinkertools.space import Needs
    from tinkertools.staging.plans import Stages
    from tinkertools.sweeping.plans import Sweep

# What a step is made of.
UNITS: dict[MethodName, str] = {
    "sft": "examples", "dpo": "pairs", "reward": "pairs", "rl": "prompts", "distill": "prompts", "selfplay": "games",
}  # fmt: skip
# Examples that a dry run shows, and prompts that are answered while training.
EXAMPLES_SHOWN = 2
PROMPTS_ANSWERED = 3


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
    given = from_options(options)
    if config is not None:
        given = read_file(config).under(given)
    if resume is None and not given.stages:
        given, words = with_preset(given)
        if words:
            console.say(words)
    plan: Plan | None = None
    try:
        with terminated_as_interrupted():
            if (stages := stages_of(given, resume, ask_what_to_do)) is not None:
                train_stages(stages, dry_run=dry_run, print_config=print_config)
                return
            if (sweep := sweep_of(given, resume, ask_what_to_do)) is not None:
                train_all(sweep, dry_run=dry_run, print_config=print_config)
                return
            plan = plan_of(given, resume)
            if print_config:
                show_config(plan)
            elif dry_run:
                show_plan(plan)
            else:
                run_plan(plan)
    except KeyboardInterrupt as stopped:
        raise left_at_once(plan, stopped.by if isinstance(stopped, StoppedAtOnce) else signal.SIGINT) from None


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
        console.say(f"next            tt compare {best.path} --compare-base")
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
        console.say(f"next            tt compare {stages.result.path} --compare-base")
    console.data(str(stages.directory.path))


def ask_what_to_do(path: Path) -> Literal["overwrite", "resume"] | None:
    """Have the user say what becomes of a run's directory that is there."""
    answer = console.ask(f"{path} exists.", {"o": "overwrite it", "r": "resume it"})
    return None if answer is None else "overwrite" if answer.startswith("o") else "resume"


def show_config(plan: Plan) -> None:
    """The settings in effect, as a file that gives the same run."""
    console.data(write_yaml(resolve(plan.config, console.say), plan.given.grid).rstrip())


def run_plan(plan: Plan) -> None:
    """Train, if there is anything left to train, and upload the result where that is wanted."""
    from tinkertools.publishing import check_ready
    from tinkertools.tracking import check_trackers

    config = plan.config
    check_trackers(config.trackers)
    if config.upload:
        check_ready(config.hf_repo_id)
    if plan.run.finished and not plan.replaces:
        with plan.run.lock():
            show_finished(plan)
    else:
        with resumable(plan):
            train(plan)
    if config.upload:
        upload(plan)


def upload(plan: Plan) -> None:
    """Publish the result of a finished run.

    Raises:
        TinkertoolsError: it was not sent; the run is finished all the same, and the hint says how to go on.
    """
    from tinkertools.publishing import options_of_run, publish

    config, run = plan.config, plan.run
    assert config.hf_repo_id is not None
    options = options_of_run(run, config.hf_repo_id, merged=config.merge, folder=config.download_dir)
    server = ServerSettings.from_environment(plan.choice.base_url)
    try:
        console.say(publish(options, server, config.timeout, console.voice(), private=config.hf_private))
    except TinkertoolsError as error:
        again = f"tt upload --run {run.path} --hf-repo-id {config.hf_repo_id}"
        again += " --merge" * config.merge + " --hf-public" * (not config.hf_private)
        again += f" --download-dir {config.download_dir}" if config.download_dir else ""
        first = (error.hint or "").removesuffix(AGAIN).rstrip("; ,")
        raise type(error)(
            f"the run is finished, but was not uploaded: {error.message}",
            hint=f"{first}; then {again}" if first else again,
        ) from error


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


def show_finished(plan: Plan) -> None:
    """That there is nothing left to do, and what to type next.

    Raises:
        UsageError: it is to be made longer.
    """
    assert plan.started is not None
    # A process may have been killed after it had written the final weights.
    plan.run.finish()
    for name in changes(plan.started, plan.config):
        if name in ("max_steps", "epochs") and name in plan.given.values:
            raise UsageError(
                f"{option(name, plan.given.values[name])}: {plan.run.path} is finished, with its learning rate at its "
                "end",
                hint="start a new run",
            )
    console.say(f"{plan.run.path} is finished: there is nothing left to train")
    console.say(f"next            tt compare {plan.run.path} --compare-base")
    console.data(str(plan.run.path))


def train(plan: Plan) -> None:
    """Everything from data to summary, in order."""
    from tinkertools.loop import Loop
    from tinkertools.methods import Bench
    from tinkertools.runs.log import TrainingLog
    from tinkertools.runs.plots import write_plots
    from tinkertools.space import disk_may_fill, needs_of
    from tinkertools.tracking import tracking

    config, run = plan.config, plan.run
    opened = open_service(
        plan.choice, run.engine_store, console.waiting, timeout=config.timeout, download=config.download
    )
    with ExitStack() as held, opened as service:
        saved = None
        if plan.metadata is not None:
            held.enter_context(run.lock())
            if run.finished:  # by another process, since this one looked
                show_finished(plan)
                return
            run.remove_leftovers()
            saved = run.recover_state(console.warn)
        material, metadata = material_of_run(plan, service, first=saved is None)
        config = resolve(config, console.say)
        total_steps = steps_in_all(config, material.batches)
        first_step = saved.next_step if saved else 1
        if plan.started is not None:
            refuse_shorter(plan.given.values, total_steps, steps_in_all(plan.started, material.batches), first_step - 1)
        warn_of_warmup(config, total_steps)
        needs = needs_of(config, total_steps)
        make_room(run, config, needs)
        client, config = begin(plan, config, service, saved, metadata)
        if plan.metadata is None:
            held.enter_context(run.lock())
        else:
            at = f"step {first_step} of {total_steps}" if first_step <= total_steps else "the final weights"
            console.say(f"going on with {at}")
            write_down_changes(plan, config, metadata, material.batches, first_step)
        held.enter_context(disk_may_fill(run, needs))
        method = material.begin(Bench(client, service, config, plan.choice, run, saved, console.voice(), held))
        stop = held.enter_context(stop_on_interrupt(console.say))
        tracked = held.enter_context(
            tracking(
                config.trackers, run, project=config.wandb_project, name=config.wandb_name, config=config.to_json(),
                next_step=first_step, notify=console.warn,
            )
        )  # fmt: skip
        with TrainingLog.reopen(run.log, first_step) as log:
            loop = Loop(
                client, service, method, config, run, log, console.progress, console.warn,
                tracking=tracked, answer=answering(config, run, material, first_step),
            )  # fmt: skip
            ended = loop.run(first_step, total_steps, stop)
        if ended.interrupted:
            run.remove_leftovers()
            raise Interrupted(
                f"stopped after step {ended.step} of {total_steps}; the state is saved",
                hint=f"go on with it: tt train --resume {run.path}",
                by=stop.by or signal.SIGINT,
            )
        # Before the final weights, whose presence says that nothing is missing.
        write_plots(run.plots, log.steps, log.evals, config.method)
        loop.finish(ended.step)
    show_summary(run, log, total_steps, config.method)
    if config.engine == "tinker":
        console.show_server_paths(run.server_paths(), downloaded=config.download)


def material_of_run(plan: Plan, service: "Service | None", *, first: bool = True) -> "tuple[Material, dict[str, Any]]":
    """What is trained on, made ready, and what `config.json` says of a run that starts on it now.

    Args:
        plan: the run.
        service: is asked how long an example may be; None where no server is to be spoken to, as in a dry run, in
            which what is too long is only counted.
        first: whether the first step is still to come, for which the weights to start from count.

    Raises:
        DataError: there is nothing to train or to evaluate, or a row cannot be used.
        RunError: the run that is to go on was started with others.
    """
    from tinkertools.methods import read_material

    config = plan.config
    console.say(f"base model: {config.base_model} ({plan.choice.reason})")
    material = read_material(config, console.voice())
    limits = limits_of_model(config, service)
    metadata = run_metadata(plan, material, first=first)
    if plan.metadata is not None:
        refuse_changed(plan.metadata, metadata, config, plan.run.path)
        if note := unchecked(plan.metadata):
            console.warn(note)
    material.make_ready(limits, strict=service is not None)
    return material, metadata


def begin(
    plan: Plan, config: TrainConfig, service: "Service", saved: "State | None", metadata: dict[str, Any]
) -> "tuple[TrainingClient, TrainConfig]":
    """The client to train with and the configuration in effect; from now on the new run is there, not one before it."""
    with ExitStack() as old:
        if plan.replaces:
            old.enter_context(plan.run.making_way())
        client, config = training_client(plan, config, service, saved)
        if plan.metadata is None:
            plan.run.write_config(metadata | {"config": config.to_json()})
    return client, config


def training_client(
    plan: Plan, config: TrainConfig, service: "Service", saved: "State | None"
) -> "tuple[TrainingClient, TrainConfig]":
    """A fresh adapter, one that starts from given weights, or that of a saved state with its optimizer; and the
    configuration with the rank that it has."""
    if saved is not None:
        source = saved.server_path if config.engine == "tinker" else str(saved.directory)
        return service.create_training_client_from_state_with_optimizer(source), config
    if config.load_checkpoint_path is None:
        client = service.create_lora_training_client(
            config.base_model, config.rank, config.seed, config.train_mlp, config.train_attn, config.train_unembed
        )
        return client, config
    start = start_of(config, service)
    if "rank" in plan.given.values and start.rank not in (None, config.rank):
        raise UsageError(
            f"{option('rank', config.rank)}: {config.load_checkpoint_path} has rank {start.rank}", hint="leave it out"
        )
    console.say(f"starting from {start.source}, with rank {start.rank or 'not known'} and a fresh optimizer")
    client = service.create_training_client_from_state(start.source, config.base_model)
    return client, config.changed(rank=start.rank or config.rank)


def answering(
    config: TrainConfig, run: "RunDirectory", material: "Material", first_step: int
) -> "Callable[[int, SamplingClient], None] | None":
    """What has a few prompts answered and keeps the answers: of the held-out data, else the prompts that ship."""
    if not config.sample_every:
        return None
    from tinkertools.answers import Settings, ask
    from tinkertools.prompts import default_prompts, load_prompts
    from tinkertools.runs.samples import Samples

    prompts = (material.asked or load_prompts(default_prompts(config.base_model)))[:PROMPTS_ANSWERED]
    settings = Settings(AnswerDefaults.max_tokens, temperature=0.0, seed=config.seed)
    samples = Samples.reopen(run.samples, first_step)

    def answer(step: int, sampler: "SamplingClient") -> None:
        answers = ask(sampler, material.renderer, prompts, settings, lambda done, note="": None)
        pairs = zip(prompts, answers, strict=True)
        samples.add(step, [(prompt.messages, found.text, found.error) for prompt, found in pairs])

    return answer


def make_room(run: "RunDirectory", config: TrainConfig, needs: "Needs | None") -> None:
    """Remove checkpoints that are not to be kept any more, and see that there is space for what comes.

    Raises:
        FileError: there is not enough.
    """
    from tinkertools.runs.log import TrainingLog, best_of
    from tinkertools.runs.pruning import keep_newest
    from tinkertools.space import check_space

    if run.exists:
        best = best_of(TrainingLog.reopen(run.log, sys.maxsize).evals)
        keep_newest(run, config.keep_last, best["step"] if best else None)
    if needs is not None:
        check_space(run, config, needs, console.warn)


def warn_of_warmup(config: TrainConfig, total_steps: int) -> None:
    """Say where a run ends before the learning rate has reached its peak."""
    if config.warmup_steps >= total_steps:
        reached = f"{total_steps / config.warmup_steps:.0%} of its peak"
        console.warn(
            f"--warmup-steps {config.warmup_steps} in a run of {total_steps}: the learning rate reaches {reached}"
        )


def steps_in_all(config: TrainConfig, batches: "Batches | None") -> int:
    """How many steps a run takes; without batches there are no epochs, and the configuration says it."""
    return config.max_steps or config.epochs * (batches.steps_per_epoch if batches else 0)


@contextmanager
def resumable(plan: Plan) -> Iterator[None]:
    """Errors within the block also tell how the run goes on, once there is one."""
    run = plan.run
    before = run.exists and plan.metadata is None  # one that is to be replaced
    try:
        yield
    except (EngineError, FileError) as error:
        if not run.exists or before:
            raise
        goes_on = f"go on with step {run.next_step()}: tt train --resume {run.path}"
        first = error.hint.removesuffix(AGAIN) if error.hint else None
        raise type(error)(error.message, hint=f"{first}; then {goes_on}" if first else goes_on) from error


def show_plan(plan: Plan) -> None:
    """What would be trained on, shown token by token and counted, and what it takes; no run is made."""
    config = resolve(plan.config, console.say)
    console.say(write_yaml(config, {}, explained=False).rstrip())
    material, _ = material_of_run(plan, None)
    console.show_examples(material.renderer, material.examples[:EXAMPLES_SHOWN])
    batches = material.batches
    total_steps = steps_in_all(config, batches)
    of = f"{config.batch} {UNITS[config.method]}"
    console.say(
        f"steps: {total_steps:,} of {of}" + (f", {batches.steps_per_epoch:,} an epoch" if batches is not None else "")
    )
    tokens = material.tokens(total_steps)
    if tokens is None:
        console.say("tokens: as many as the model will say; they are logged as they come")
    else:
        console.say(f"tokens: {tokens:,} in all steps")
    if config.engine == "tinker" and tokens is not None:
        show_cost(config, tokens)
    elif config.method == "sft" and batches is not None:
        show_estimate(config, material.examples, batches, total_steps)
    else:
        console.say(f"time, memory and cost are not estimated for --method {config.method}")
    console.say("this was a dry run: nothing is trained and no run is made; without --dry-run it is")


def show_estimate(config: TrainConfig, examples: "Sequence[Example]", batches: "Batches", total_steps: int) -> None:
    """How long training would take on this machine and how much memory, by a few steps whose result is thrown away."""
    import tempfile

    from tinkertools.estimates import measure
    from tinkertools.local import ServiceClient

    with (
        tempfile.TemporaryDirectory() as folder,
        ServiceClient(store=Path(folder), notify=console.waiting) as service,
    ):
        client = service.create_lora_training_client(
            config.base_model, config.rank, config.seed, config.train_mlp, config.train_attn, config.train_unembed
        )
        found = measure(client, examples, batches, total_steps, console.progress)
    console.say(
        f"time: about {console.seconds(found.seconds)} for the steps, at {found.tokens_per_second:,.0f} tokens/s "
        f"({found.steps_measured} steps measured)"
    )
    console.say(f"peak memory: about {found.peak_memory / 1e6:,.0f} MB")


def show_cost(config: TrainConfig, tokens: int) -> None:
    """What a server would ask for the tokens of a run."""
    from tinkertools.prices import cost, price_of

    price = price_of(config.base_model, config.price)
    if price is None:
        console.say(f"cost: no price known for {config.base_model}; --price names one, in dollars per million tokens")
        return
    source = f"{price.source}, {price.date}" if price.date else price.source
    console.say(
        f"cost: about ${cost(tokens, price):,.2f} for {tokens:,} tokens at ${price.per_million:g} per million "
        f"({source}); storage and evaluation come on top"
    )


def run_metadata(plan: Plan, material: "Material", *, first: bool) -> dict[str, Any]:
    """`config.json`: everything needed to repeat the run, and the fingerprints by which changes are seen."""
    from importlib.metadata import version

    from tinkertools.fingerprints import fingerprints, of_weights
    from tinkertools.runs.directory import find_weights

    config = plan.config
    packages = ("tinker", "torch", "transformers", "peft", "tokenizers", "tml-renderers")
    found = fingerprints(material.renderer, config.base_model, config.engine)
    if first and config.load_checkpoint_path is not None:
        found["start"] = of_weights(find_weights(config.load_checkpoint_path, config.output_dir))
    return {
        "version": CONFIG_VERSION,
        "tinkertools": __version__,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "config": config.to_json(),
        "data": material.data,
        "renderer": material.renderer.name,
        "fingerprints": found,
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
    }


def write_down_changes(
    plan: Plan, config: TrainConfig, now: Mapping[str, Any], batches: "Batches | None", first_step: int
) -> None:
    """Bring `config.json` of a run that goes on up to date, where anything is new, and say what.

    Each change is kept with the first step that was taken with it, without which the run could not be repeated.
    """
    assert plan.metadata is not None
    assert plan.started is not None
    kept = {"fingerprints": now["fingerprints"], **plan.metadata}
    if changed := changes(plan.started, config):
        kept["config"] = remembered(plan.started, config).to_json()
        kept["changes"] = [*kept.get("changes", []), {"step": first_step, **changed}]
        for name, (old, new) in changed.items():
            before = "" if isinstance(new, bool) else f" (before: {old})"
            console.say(f"{option(name, new)} from now on{before}")
    started_with, total_steps = steps_in_all(plan.started, batches), steps_in_all(config, batches)
    if total_steps != started_with:
        console.say(
            f"steps: {total_steps} in all (before: {started_with}); the learning rate follows the new number from step "
            f"{first_step} on"
        )
    if kept != plan.metadata:
        plan.run.write_config(kept)


def show_curve(steps: "Sequence[dict[str, Any]]", evals: "Sequence[dict[str, Any]]", method: MethodName) -> None:
    """The chart of a run: what its evaluations are judged by, and so its loss, or its rewards and the like."""
    from tinkertools.runs.log import LOSSES, in_words, judged_by
    from tinkertools.runs.plots import smooth

    key = "loss" if JUDGED_OF[method] in LOSSES else JUDGED_OF[method]
    x, values, window = smooth(steps, key, method)
    # Evaluations stand in the picture where they are of its kind.
    kinds = LOSSES if key == "loss" else (key,)
    marks = [(entry["step"], entry[judged_by(entry)]) for entry in evals if judged_by(entry) in kinds]
    console.chart(
        in_words(key) + f", mean of {window} steps" * (window > 1) + " (● evaluation)" * bool(marks),
        list(zip(x, values, strict=True)),
        marks=marks,
    )


def show_summary(run: "RunDirectory", log: "TrainingLog", total_steps: int, method: MethodName) -> None:
    """Where the run is, what it did, and what to type next."""
    from tinkertools.estimates import peak_memory
    from tinkertools.runs.log import best_of, figures_shown, in_words, judged_by

    steps, evals = log.steps, log.evals
    seconds = sum(entry["seconds"] for entry in steps)
    tokens = sum(entry["tokens"] for entry in steps)
    trained = sum(entry["trained_tokens"] for entry in steps)
    console.say()
    show_curve(steps, evals, method)
    console.say(f"run             {run.path}")
    if len(steps) < total_steps:
        console.say(f"stopped early   after step {len(steps)} of {total_steps}: nothing had improved")
    for name in ("loss", FOLLOWED_BY.get(method)):
        known = [entry[name] for entry in steps if entry.get(name) is not None] if name else []
        if name and known:
            console.say(f"{in_words(name):<15} {known[0]:.4f} at the start, {known[-1]:.4f} at the end")
    if best := best_of(evals):
        kept = next((f", kept as {path}" for step, path in run.checkpoints() if step == best["step"]), "")
        console.say(
            f"{'evaluation' if method == 'selfplay' else 'held out':<15} {figures_shown(evals[-1])} at the end; best "
            f"{best[judged_by(best)]:.4f} after step {best['step']}{kept if best is not evals[-1] else ''}"
        )
    console.say(f"trained tokens  {trained:,} of {tokens:,} in {len(steps):,} steps, {console.seconds(seconds)}")
    console.say(f"speed           {tokens / seconds:,.0f} tokens/s")
    console.say(f"peak memory     {peak_memory() / 1e6:,.0f} MB")
    console.say(f"next            tt compare {run.path} --compare-base")
    console.data(str(run.path))
