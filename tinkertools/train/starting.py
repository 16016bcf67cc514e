"""A run made ready: what it trains on, what `config.json` says of it, and the adapter that it starts with."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tinkertools import __version__, console
from tinkertools.config import CONFIG_VERSION, TrainConfig
from tinkertools.errors import UsageError
from tinkertools.planning import Plan, limits_of_model, start_of
from tinkertools.resuming import changes, option, refuse_changed, remembered, unchecked

if TYPE_CHECKING:
    from tinkertools.chat.batching import Batches
    from tinkertools.engines import Service, TrainingClient
    from tinkertools.methods import Material
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.states import State
    from tinkertools.space import Needs


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


def steps_in_all(config: TrainConfig, batches: "Batches | None") -> int:
    """How many steps a run takes; without batches there are no epochs, and the configuration says it."""
    return config.max_steps or config.epochs * (batches.steps_per_epoch if batches else 0)


def warn_of_warmup(config: TrainConfig, total_steps: int) -> None:
    """Say where a run ends before the learning rate has reached its peak."""
    if config.warmup_steps >= total_steps:
        reached = f"{total_steps / config.warmup_steps:.0%} of its peak"
        console.warn(
            f"--warmup-steps {config.warmup_steps} in a run of {total_steps}: the learning rate reaches {reached}"
        )


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


def go_on(plan: Plan, config: TrainConfig, now: Mapping[str, Any], batches: "Batches | None", first_step: int) -> None:
    """Say where a run goes on, bring its `config.json` up to date where anything is new, and say what.

    Each change is kept with the first step that was taken with it, without which the run could not be repeated.
    """
    assert plan.metadata is not None
    assert plan.started is not None
    started_with, total_steps = steps_in_all(plan.started, batches), steps_in_all(config, batches)
    at = f"step {first_step} of {total_steps}" if first_step <= total_steps else "the final weights"
    console.say(f"going on with {at}")
    kept = {"fingerprints": now["fingerprints"], **plan.metadata}
    if changed := changes(plan.started, config):
        kept["config"] = remembered(plan.started, config).to_json()
        kept["changes"] = [*kept.get("changes", []), {"step": first_step, **changed}]
        for name, (old, new) in changed.items():
            before = "" if isinstance(new, bool) else f" (before: {old})"
            console.say(f"{option(name, new)} from now on{before}")
    if total_steps != started_with:
        console.say(
            f"steps: {total_steps} in all (before: {started_with}); the learning rate follows the new number from step "
            f"{first_step} on"
        )
    if kept != plan.metadata:
        plan.run.write_config(kept)
