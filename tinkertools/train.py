"""`tt train`: conversations become a LoRA adapter, on whichever engine."""

import dataclasses
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tinkertools import __version__, console
from tinkertools.config import (
    CONFIG_VERSION,
    OUTPUT_DIR,
    TIMEOUT_SECONDS,
    TRAINING_DATA,
    Overlength,
    PrepareDefaults,
    Schedule,
    ServerSettings,
    TrainConfig,
    parse_learning_rate,
    parse_train_on_what,
    without_password,
)
from tinkertools.engines import Choice, choose, open_service
from tinkertools.errors import EngineError, FileError, Interrupted, ModelError, UsageError
from tinkertools.files import AGAIN
from tinkertools.loop import Loop, StoppedAtOnce, stop_on_interrupt, terminated_as_interrupted
from tinkertools.options import (
    BaseUrl,
    EngineOption,
    NoCache,
    OutputDir,
    RendererOption,
    TimeoutOption,
    TrainOnWhatOption,
)
from tinkertools.resuming import changes, option, read_started, refuse_changed, refuse_shorter, unchecked, with_options
from tinkertools.schedules import auto_learning_rate, no_formula
from tinkertools.shipped import SAMPLE_TRAINING_DATA, is_starter

if TYPE_CHECKING:
    from tinkertools.chat.batching import Batches
    from tinkertools.chat.conversations import Conversation
    from tinkertools.chat.rendering import Renderer
    from tinkertools.data import Ready
    from tinkertools.engines import Service, TrainingClient
    from tinkertools.local.limits import Limits
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.log import TrainingLog
    from tinkertools.runs.states import State
    from tinkertools.space import Needs

DEFAULTS = TrainConfig()

# Examples that a dry run shows.
EXAMPLES_SHOWN = 2


def command(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"Conversations: a file, a folder or a Hub name. Left out: {TRAINING_DATA}, else on the starter model "
            "the sample conversations."
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="A folder in Hugging Face's layout, or a name. Left out: the starter model.")
    ] = None,
    engine: EngineOption = DEFAULTS.engine,
    base_url: BaseUrl = None,
    batch: Annotated[int, typer.Option(help="Conversations a step.")] = DEFAULTS.batch,
    max_steps: Annotated[int, typer.Option(help="Steps in all; 0 means --epochs whole epochs.")] = DEFAULTS.max_steps,
    epochs: Annotated[int, typer.Option(help="How often each conversation is seen.")] = DEFAULTS.epochs,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = DEFAULTS.rank,
    learning_rate: Annotated[
        str, typer.Option(help="The peak: a number, or auto for the published formula of the model's family.")
    ] = str(DEFAULTS.learning_rate),
    lr_schedule: Annotated[Schedule, typer.Option(help="How it falls to zero, or not.")] = DEFAULTS.lr_schedule,
    warmup_steps: Annotated[int, typer.Option(help="Steps until the peak.")] = DEFAULTS.warmup_steps,
    save_every: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0 saves the final weights only.")
    ] = DEFAULTS.save_every,
    keep_last: Annotated[
        int, typer.Option(help="How many step checkpoints are kept, the newest; 0 keeps all.")
    ] = DEFAULTS.keep_last,
    max_length: Annotated[int, typer.Option(help="Most tokens a conversation; 0 is the model's limit.")] = (
        DEFAULTS.max_length
    ),
    overlength: Annotated[Overlength, typer.Option(help="What becomes of longer ones.")] = DEFAULTS.overlength,
    train_on_what: TrainOnWhatOption = DEFAULTS.train_on_what,
    renderer: RendererOption = DEFAULTS.renderer,
    seed: Annotated[int, typer.Option(help="Seed of the adapter and of the order of the data.")] = DEFAULTS.seed,
    output_dir: OutputDir = OUTPUT_DIR,
    run_name: Annotated[str | None, typer.Option(help="Name of the run's directory.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on with a run (its path, or latest) with the options it was started with. Beside it may change: "
            "--max-steps and --epochs, to more; what is saved, fetched and waited for."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be trained, as text and in numbers; train nothing."),
    ] = False,
    no_cache: NoCache = False,
    ttl_seconds: Annotated[
        int, typer.Option(help="How long a server keeps checkpoints that are not the final one; 0 is for good.")
    ] = DEFAULTS.ttl_seconds,
    no_download: Annotated[
        bool, typer.Option("--no-download", help="Leave adapters on the server instead of fetching them too.")
    ] = False,
    timeout: TimeoutOption = TIMEOUT_SECONDS,
) -> None:
    """Train a LoRA adapter on conversations. Without options: the starter model on the sample conversations."""
    plan: Plan | None = None
    settings: dict[str, Any] = {
        "batch": batch, "max_steps": max_steps, "epochs": epochs, "rank": rank,
        "learning_rate": parse_learning_rate(learning_rate), "lr_schedule": lr_schedule, "warmup_steps": warmup_steps,
        "save_every": save_every, "keep_last": keep_last, "max_length": max_length, "overlength": overlength,
        "train_on_what": parse_train_on_what(train_on_what), "renderer": renderer, "seed": seed,
        "ttl_seconds": ttl_seconds, "download": not no_download,
    }  # fmt: skip
    server = ServerSettings.from_environment(base_url)
    try:
        with terminated_as_interrupted():
            if resume is not None:
                more = {"base_model": base_model, "data": data, "engine": engine, "base_url": base_url}
                given = given_options(context, settings | more)
                plan = plan_resumed(resume, output_dir, server, given, run_name)
                if plan.run.finished:
                    with plan.run.lock():
                        show_finished(plan)
                    return
            else:
                choice = choose(engine, base_model, server)
                config = TrainConfig(
                    base_model=choice.base_model, data=data_source(data, choice), engine=choice.engine,
                    base_url=without_password(choice.base_url) if choice.base_url else None, **settings,
                )  # fmt: skip
                plan = plan_new(config, choice, output_dir, run_name)
            if dry_run:
                show_plan(plan, use_cache=not no_cache)
            else:
                with resumable(plan.run):
                    train(plan, use_cache=not no_cache, timeout=timeout)
    except KeyboardInterrupt as stopped:
        raise left_at_once(plan, stopped.by if isinstance(stopped, StoppedAtOnce) else signal.SIGINT) from None


@dataclass(frozen=True)
class Plan:
    """What is to be trained and where it goes.

    Of a run that goes on, `metadata` is what its `config.json` holds, `started` the configuration in it, and `given`
    are the options beside `--resume`, which are in `config` already.
    """

    config: TrainConfig
    choice: Choice
    run: "RunDirectory"
    metadata: dict[str, Any] | None = None
    started: TrainConfig | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


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


def data_source(named: str | None, choice: Choice) -> str:
    """The data named, or those to take when none are: a file by its whole path, so that a run can go on anywhere.

    Raises:
        UsageError: none are named, there is no prepared file, and the base model is not the starter model.
    """
    if named is not None or TRAINING_DATA.exists():
        path = Path(named or TRAINING_DATA)
        return str(path.resolve()) if path.exists() else str(named)
    if is_starter(choice.base_model):
        return str(SAMPLE_TRAINING_DATA)
    raise UsageError(
        f"no --data, and no {TRAINING_DATA} here",
        hint="tt prepare --dataset FILE writes it, or name a file: tt train --data FILE",
    )


def plan_new(config: TrainConfig, choice: Choice, output_dir: Path, run_name: str | None) -> Plan:
    """A new run; nothing is created yet."""
    from tinkertools.runs.directory import new_run

    return Plan(config, choice, new_run(output_dir, config.base_model, run_name, datetime.now().astimezone()))


def given_options(context: typer.Context, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings whose options stand on the command line."""
    parameters = {"download": "no_download"}
    return {
        name: value
        for name, value in settings.items()
        if str(context.get_parameter_source(parameters.get(name, name))).endswith("COMMANDLINE")
    }


def plan_resumed(
    name: str, output_dir: Path, server: ServerSettings, given: Mapping[str, Any], run_name: str | None
) -> Plan:
    """A run to go on with, in the configuration it was started with and with the options that may change.

    Args:
        name: its path, or latest.
        output_dir: where runs are.
        server: what options and environment say of one: it may have another address now.
        given: the settings whose options are given.
        run_name: the one given, if any.

    Raises:
        RunError: it is not there, it is damaged, or another version wrote it.
        UsageError: an option would change the result.
    """
    from tinkertools.runs.directory import find_run

    run = find_run(name, output_dir)
    metadata = run.read_config()
    started = read_started(metadata, run.path)
    if run_name is not None and run_name != run.path.resolve().name:
        raise UsageError(f"{option('run_name', run_name)}: the run is {run.path}", hint="leave it out")
    config = with_options(started, as_started(given, started, metadata))
    engine: Literal["tinker", "local"] = "tinker" if config.engine == "tinker" else "local"
    choice = Choice(engine, config.base_model, f"as {run.path} was started", server.base_url or config.base_url)
    return Plan(config, choice, run, metadata, started, given)


def as_started(given: Mapping[str, Any], started: TrainConfig, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The options given beside `--resume` as the settings of a run are kept, so that equal ones are equal."""
    from tinkertools.chat.rendering import choose_renderer

    found = dict(given)
    for name in ("data", "base_model"):
        if name in found and Path(found[name]).exists():
            found[name] = str(Path(found[name]).resolve())
    if found.get("engine") == "auto":
        del found["engine"]
    if found.get("base_url"):
        found["base_url"] = without_password(found["base_url"])
    if found.get("learning_rate") == "auto":
        found["learning_rate"] = resolve(dataclasses.replace(started, learning_rate="auto")).learning_rate
    if "renderer" in found and choose_renderer(started.base_model, found["renderer"]).name == metadata.get("renderer"):
        found["renderer"] = started.renderer
    return found


def show_finished(plan: Plan) -> None:
    """That there is nothing left to do, and what to type next.

    Raises:
        UsageError: it is to be made longer.
    """
    assert plan.started is not None
    # A process may have been killed after it had written the final weights.
    plan.run.finish()
    for name in changes(plan.started, plan.config):
        if name in ("max_steps", "epochs") and name in plan.given:
            raise UsageError(
                f"{option(name, plan.given[name])}: {plan.run.path} is finished, with its learning rate at its end",
                hint="start a new run",
            )
    console.say(f"{plan.run.path} is finished: there is nothing left to train")
    console.say(f"next            tt compare {plan.run.path} --compare-base")
    console.data(str(plan.run.path))


def train(plan: Plan, *, use_cache: bool, timeout: float) -> None:
    """Everything from data to summary, in order."""
    from tinkertools.chat.batching import Batches
    from tinkertools.runs.log import TrainingLog
    from tinkertools.runs.plots import write_plots
    from tinkertools.space import disk_may_fill, needs_of

    config, run = plan.config, plan.run
    opened = open_service(plan.choice, run.engine_store, console.waiting, timeout=timeout, download=config.download)
    with ExitStack() as held, opened as service:
        saved = None
        if plan.metadata is not None:
            held.enter_context(run.lock())
            if run.finished:  # by another process, since this one looked
                show_finished(plan)
                return
            run.remove_leftovers()
            saved = run.recover_state(console.warn)
        ready, metadata = data_of_run(plan, service, use_cache=use_cache)
        console.show_data(ready)
        batches = Batches(len(ready.fitted.examples), config.batch, config.seed)
        config = resolve(config)
        total_steps = steps_in_all(config, batches)
        first_step = saved.next_step if saved else 1
        if plan.started is not None:
            refuse_shorter(plan.given, total_steps, steps_in_all(plan.started, batches), first_step - 1)
        needs = needs_of(config, total_steps)
        make_room(run, config, needs)
        client = training_client(config, service, saved)
        if saved is not None:
            at = f"step {first_step} of {total_steps}" if first_step <= total_steps else "the final weights"
            console.say(f"going on with {at}")
        if plan.metadata is None:
            run.write_config(metadata | {"config": config.to_json()})
            held.enter_context(run.lock())
        else:
            write_down_changes(plan, config, metadata, batches, first_step)
        held.enter_context(disk_may_fill(run, needs))
        stop = held.enter_context(stop_on_interrupt(console.say))
        with TrainingLog.reopen(run.log, first_step) as log:
            loop = Loop(client, service, ready.fitted, batches, config, run, log, console.progress, console.warn)
            interrupted = loop.run(first_step, total_steps, stop)
        if interrupted:
            run.remove_leftovers()
            raise Interrupted(
                f"stopped after step {interrupted} of {total_steps}; the state is saved",
                hint=f"go on with it: tt train --resume {run.path}",
                by=stop.by or signal.SIGINT,
            )
        # Before the final weights, whose presence says that nothing is missing.
        write_plots(run.plots, log.steps)
        loop.finish(total_steps)
    show_summary(run, log)
    if config.engine == "tinker":
        console.show_server_paths(run.server_paths(), downloaded=config.download)


def training_client(config: TrainConfig, service: "Service", saved: "State | None") -> "TrainingClient":
    """A fresh adapter, or the one of a state that was saved, with its optimizer."""
    if saved is None:
        return service.create_lora_training_client(
            config.base_model, config.rank, config.seed, config.train_mlp, config.train_attn, config.train_unembed
        )
    source = saved.server_path if config.engine == "tinker" else str(saved.directory)
    return service.create_training_client_from_state_with_optimizer(source)


def data_of_run(plan: Plan, service: "Service", *, use_cache: bool) -> "tuple[Ready, dict[str, Any]]":
    """The data made ready, and what `config.json` says of a run that starts on them now.

    Raises:
        RunError: the run that is to go on was started with others.
    """
    from tinkertools.chat.cache import fingerprint

    config = plan.config
    conversations = read_data(plan)
    hashed = fingerprint(conversations)
    renderer = find_renderer(config)
    limits = limits_of_model(config, service)
    metadata = run_metadata(config, hashed, len(conversations), renderer)
    if plan.metadata is not None:
        refuse_changed(plan.metadata, metadata, config, plan.run.path)
        if note := unchecked(plan.metadata):
            console.warn(note)
    return make_data_ready(config, renderer, conversations, hashed, limits, use_cache=use_cache), metadata


def make_room(run: "RunDirectory", config: TrainConfig, needs: "Needs | None") -> None:
    """Remove checkpoints that are not to be kept any more, and see that there is space for what comes.

    Raises:
        FileError: there is not enough.
    """
    from tinkertools.runs.pruning import keep_newest
    from tinkertools.space import check_space

    keep_newest(run, config.keep_last)
    if needs is not None:
        check_space(run, config, needs, console.warn)


def steps_in_all(config: TrainConfig, batches: "Batches") -> int:
    """How many steps a run takes."""
    return config.max_steps or config.epochs * batches.steps_per_epoch


@contextmanager
def resumable(run: "RunDirectory") -> Iterator[None]:
    """Errors within the block also tell how the run goes on, once there is one."""
    try:
        yield
    except (EngineError, FileError) as error:
        if not run.exists:
            raise
        goes_on = f"go on with step {run.next_step()}: tt train --resume {run.path}"
        first = error.hint.removesuffix(AGAIN) if error.hint else None
        raise type(error)(error.message, hint=f"{first}; then {goes_on}" if first else goes_on) from error


def show_plan(plan: Plan, *, use_cache: bool) -> None:
    """What would be trained on, shown token by token and counted; nothing is trained and no run is made."""
    from tinkertools.chat.batching import Batches
    from tinkertools.chat.cache import fingerprint

    config = plan.config
    conversations = read_data(plan)
    renderer = find_renderer(config)
    strict = config.overlength == "error"
    shown = dataclasses.replace(config, overlength="truncate") if strict else config
    limits = limits_of_model(config, None)
    ready = make_data_ready(shown, renderer, conversations, fingerprint(conversations), limits, use_cache=use_cache)
    console.show_examples(renderer, ready.fitted.examples[:EXAMPLES_SHOWN])
    console.show_data(ready)
    if strict and (too_long := ready.fitted.cut + ready.fitted.unfinished):
        console.warn(f"training would stop: {too_long:,} examples are too long, and --overlength is error")
    batches = Batches(len(ready.fitted.examples), config.batch, config.seed)
    steps = steps_in_all(config, batches)
    console.say(f"steps: {steps:,} of {config.batch} examples, {batches.steps_per_epoch:,} an epoch")
    console.say("this was a dry run: nothing is trained and nothing written; without --dry-run it is")


def read_data(plan: Plan) -> "list[Conversation]":
    """The conversations to train on, and what they and the base model are, in words.

    Raises:
        DataError: a row cannot be used.
    """
    from tinkertools.chat.records import read_all
    from tinkertools.chat.sources import find_source

    config = plan.config
    console.say(f"base model: {config.base_model} ({plan.choice.reason})")
    conversations, row_format = read_all(find_source(config.data), PrepareDefaults.errors_shown)
    console.say(f"data: {config.data}: {len(conversations):,} conversations ({row_format.description})")
    return conversations


def find_renderer(config: TrainConfig) -> "Renderer":
    """The renderer in effect, and why, in words."""
    from tinkertools.chat.rendering import choose_renderer, load_renderer

    console.show_renderer(choose_renderer(config.base_model, config.renderer), config.train_on_what)
    return load_renderer(config.base_model, config.renderer, config.train_on_what)


def make_data_ready(
    config: TrainConfig, renderer: "Renderer", conversations: "list[Conversation]", hashed: str, limits: "Limits",
    *, use_cache: bool,
) -> "Ready":  # fmt: skip
    """The data, rendered and fitted to the model."""
    from tinkertools.data import make_ready

    return make_ready(
        renderer, conversations, hashed, limits, console.progress,
        max_length=config.max_length, overlength=config.overlength, use_cache=use_cache,
    )  # fmt: skip


def limits_of_model(config: TrainConfig, service: "Service | None") -> "Limits":
    """What the base model takes: as its folder says, and as the server says where one trains it and is spoken to."""
    from tinkertools.local.limits import Limits, limits_of

    if config.engine == "local":
        return limits_of(config.base_model)
    limits = limits_of(config.base_model) if Path(config.base_model).is_dir() else Limits(None, None)
    served = service.max_length(config.base_model) if service else None
    known = [length for length in (limits.max_length, served) if length]
    return dataclasses.replace(limits, max_length=min(known, default=None))


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with `auto` replaced by the number in effect."""
    from tinkertools.local.limits import family_of

    rate = config.learning_rate
    if rate == "auto":
        try:
            rate, why = auto_learning_rate(*family_of(config.base_model))
        except ModelError:
            if config.engine == "local":
                raise
            rate, why = no_formula(f"{config.base_model}, whose configuration cannot be read here")
        console.say(f"learning rate: {rate:.3g} ({why})")
    return dataclasses.replace(config, learning_rate=rate)


def run_metadata(config: TrainConfig, hashed: str, conversations: int, renderer: "Renderer") -> dict[str, Any]:
    """`config.json`: everything needed to repeat the run, and the fingerprints by which changes are seen."""
    from importlib.metadata import version

    from tinkertools.fingerprints import fingerprints

    packages = ("tinker", "torch", "transformers", "peft", "tokenizers", "tml-renderers")
    return {
        "version": CONFIG_VERSION,
        "tinkertools": __version__,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "config": config.to_json(),
        "data": {"fingerprint": hashed, "conversations": conversations},
        "renderer": renderer.name,
        "fingerprints": fingerprints(renderer, config.base_model, config.engine),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
    }


def write_down_changes(
    plan: Plan, config: TrainConfig, now: Mapping[str, Any], batches: "Batches", first_step: int
) -> None:
    """Bring `config.json` of a run that goes on up to date, where anything is new, and say what.

    Each change is kept with the first step that was taken with it, without which the run could not be repeated.
    """
    assert plan.metadata is not None
    assert plan.started is not None
    kept = {"fingerprints": now["fingerprints"], **plan.metadata}
    if changed := changes(plan.started, config):
        kept["config"] = config.to_json()
        kept["changes"] = [*kept.get("changes", []), {"step": first_step, **changed}]
        for name, (old, new) in changed.items():
            before = "" if name == "download" else f" (before: {old})"
            console.say(f"{option(name, new)} from now on{before}")
    started_with, total_steps = steps_in_all(plan.started, batches), steps_in_all(config, batches)
    if total_steps != started_with:
        console.say(
            f"steps: {total_steps} in all (before: {started_with}); the learning rate follows the new number from step "
            f"{first_step} on"
        )
    if kept != plan.metadata:
        plan.run.write_config(kept)


def show_summary(run: "RunDirectory", log: "TrainingLog") -> None:
    """Where the run is, what it did, and what to type next."""
    steps = log.steps
    seconds = sum(entry["seconds"] for entry in steps)
    tokens = sum(entry["tokens"] for entry in steps)
    trained = sum(entry["trained_tokens"] for entry in steps)
    console.say()
    console.say(f"run             {run.path}")
    console.say(f"loss            {steps[0]['loss']:.4f} at the start, {steps[-1]['loss']:.4f} at the end")
    console.say(f"trained tokens  {trained:,} of {tokens:,} in {len(steps):,} steps, {console.seconds(seconds)}")
    console.say(f"speed           {tokens / seconds:,.0f} tokens/s")
    console.say(f"peak memory     {peak_memory_megabytes():,.0f} MB")
    console.say(f"next            tt compare {run.path} --compare-base")
    console.data(str(run.path))


def peak_memory_megabytes() -> float:
    """The most memory used so far: the GPU's where one is used, this process's resident set elsewhere."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    import resource

    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
