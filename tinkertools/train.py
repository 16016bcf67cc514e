"""`tt train`: conversations become a LoRA adapter, on whichever engine."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from tinkertools.errors import EngineError, FileError, Interrupted, ModelError, RunError, UsageError
from tinkertools.files import AGAIN
from tinkertools.loop import Loop, stop_on_interrupt
from tinkertools.options import (
    BaseUrl,
    EngineOption,
    NoCache,
    OutputDir,
    RendererOption,
    TimeoutOption,
    TrainOnWhatOption,
)
from tinkertools.schedules import auto_learning_rate, no_formula
from tinkertools.shipped import SAMPLE_TRAINING_DATA, is_starter

if TYPE_CHECKING:
    from tinkertools.chat.conversations import Conversation
    from tinkertools.chat.rendering import Renderer
    from tinkertools.data import Ready
    from tinkertools.engines import Service
    from tinkertools.local.limits import Limits
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.log import TrainingLog

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
        str | None, typer.Option(help="Go on with a run (its path, or latest) with the options it was started with.")
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
    try:
        if resume is not None:
            refuse_beside_resume(context)
            plan = plan_resumed(resume, output_dir, ServerSettings.from_environment(base_url))
        else:
            choice = choose(engine, base_model, ServerSettings.from_environment(base_url))
            config = TrainConfig(
                base_model=choice.base_model, data=data_source(data, choice), engine=choice.engine, batch=batch,
                max_steps=max_steps, epochs=epochs, rank=rank, learning_rate=parse_learning_rate(learning_rate),
                lr_schedule=lr_schedule, warmup_steps=warmup_steps, save_every=save_every, max_length=max_length,
                overlength=overlength, train_on_what=parse_train_on_what(train_on_what), renderer=renderer, seed=seed,
                base_url=without_password(choice.base_url) if choice.base_url else None, ttl_seconds=ttl_seconds,
                download=not no_download,
            )  # fmt: skip
            plan = plan_new(config, choice, output_dir, run_name)
        if dry_run:
            show_plan(plan, use_cache=not no_cache)
        else:
            with resumable(plan.run):
                train(plan, use_cache=not no_cache, timeout=timeout)
    except KeyboardInterrupt:
        raise left_at_once(plan) from None


@dataclass(frozen=True)
class Plan:
    """What is to be trained and where it goes; `metadata` is that of a run that goes on."""

    config: TrainConfig
    choice: Choice
    run: "RunDirectory"
    metadata: dict[str, Any] | None = None


def left_at_once(plan: Plan | None) -> Interrupted:
    """What to say when Ctrl-C did not wait for a step to finish."""
    if plan is None or not plan.run.exists:
        return Interrupted("stopped before the first step; nothing was written", hint="run the same command again")
    return Interrupted(
        f"stopped at once; what {plan.run.path} holds is whole",
        hint=f"go on with it: tt train --resume {plan.run.path}",
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


def plan_resumed(name: str, output_dir: Path, server: ServerSettings) -> Plan:
    """An unfinished run, with the configuration it was started with; a server may have another address now.

    Raises:
        RunError: it is not there, it is finished, or another version wrote it.
    """
    from tinkertools.runs.directory import find_run

    run = find_run(name, output_dir)
    metadata = run.read_config()
    if metadata.get("version") != CONFIG_VERSION:
        raise RunError(
            f"{run.path} was written in format {metadata.get('version')}; this version reads {CONFIG_VERSION}",
            hint=f"go on with it in tinkertools {metadata.get('tinkertools')}",
        )
    if run.finished:
        raise RunError(
            f"{run.path} is finished: there is nothing to go on with",
            hint=f"tt compare {run.path} shows what it changed",
        )
    config = TrainConfig.from_json(metadata["config"], run.path / "config.json")
    engine: Literal["tinker", "local"] = "tinker" if config.engine == "tinker" else "local"
    choice = Choice(engine, config.base_model, f"as {run.path} was started", server.base_url or config.base_url)
    return Plan(config, choice, run, metadata)


def refuse_beside_resume(context: typer.Context) -> None:
    """A resumed run keeps its options.

    Raises:
        UsageError: an option is given that would be ignored.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in ("resume", "output_dir", "dry_run", "no_cache", "base_url", "timeout")
        and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)} beside --resume: a resumed run keeps the options it was started with",
            hint="leave them out, or start a new run",
        )


def train(plan: Plan, *, use_cache: bool, timeout: float) -> None:
    """Everything from data to summary, in order."""
    from tinkertools.chat.batching import Batches
    from tinkertools.chat.cache import fingerprint
    from tinkertools.runs.log import TrainingLog
    from tinkertools.runs.plots import write_plots

    config, run = plan.config, plan.run
    opened = open_service(plan.choice, run.engine_store, console.waiting, timeout=timeout, download=config.download)
    with ExitStack() as held, opened as service:
        saved = None
        if plan.metadata is not None:
            held.enter_context(run.lock())
            run.remove_leftovers()
            saved = run.recover_state(console.warn)
        conversations = read_data(plan)
        hashed = fingerprint(conversations)
        refuse_changed_data(plan, hashed)
        renderer = find_renderer(config)
        limits = limits_of_model(config, service)
        ready = make_data_ready(config, renderer, conversations, hashed, limits, use_cache=use_cache)
        console.show_data(ready)
        batches = Batches(len(ready.fitted.examples), config.batch, config.seed)
        config = resolve(config)
        total_steps = config.max_steps or config.epochs * batches.steps_per_epoch
        first_step = saved.next_step if saved else 1
        if saved is None:
            client = service.create_lora_training_client(
                config.base_model, config.rank, config.seed, config.train_mlp, config.train_attn, config.train_unembed
            )
        else:
            source = saved.server_path if config.engine == "tinker" else str(saved.directory)
            client = service.create_training_client_from_state_with_optimizer(source)
            console.say(f"going on with step {first_step} of {total_steps}")
        if plan.metadata is None:
            run.write_config(run_metadata(config, hashed, len(conversations), renderer))
            held.enter_context(run.lock())
        with TrainingLog.reopen(run.log, first_step) as log, stop_on_interrupt(console.say) as stop:
            loop = Loop(client, service, ready.fitted, batches, config, run, log, console.progress, console.warn)
            interrupted = loop.run(first_step, total_steps, stop)
        if interrupted:
            run.remove_leftovers()
            raise Interrupted(
                f"stopped after step {interrupted} of {total_steps}; the state is saved",
                hint=f"go on with it: tt train --resume {run.path}",
            )
        # Before the final weights, whose presence says that nothing is missing.
        write_plots(run.plots, log.steps)
        loop.finish(total_steps)
    show_summary(run, log)
    if config.engine == "tinker":
        console.show_server_paths(run.server_paths(), downloaded=config.download)


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
    steps = config.max_steps or config.epochs * batches.steps_per_epoch
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


def refuse_changed_data(plan: Plan, fingerprint: str) -> None:
    """A run goes on only with the data it began with.

    Raises:
        RunError: the data are different now.
    """
    if plan.metadata is not None and plan.metadata["data"]["fingerprint"] != fingerprint:
        raise RunError(
            f"the data in {plan.config.data} have changed since {plan.run.path} was started",
            hint="put the old data back, or start a new run",
        )


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


def run_metadata(config: TrainConfig, fingerprint: str, conversations: int, renderer: "Renderer") -> dict[str, Any]:
    """`config.json`: everything needed to repeat the run."""
    from importlib.metadata import version

    packages = ("tinker", "torch", "transformers", "peft", "tokenizers", "tml-renderers")
    return {
        "version": CONFIG_VERSION,
        "tinkertools": __version__,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "config": config.to_json(),
        "data": {"fingerprint": fingerprint, "conversations": conversations},
        "renderer": renderer.name,
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
    }


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
