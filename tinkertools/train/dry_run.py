"""What a run would train on, as text and in numbers, and what it would take."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tinkertools import console
from tinkertools.config import BATCH_OF, MethodName, TrainConfig
from tinkertools.planning import Plan, resolve
from tinkertools.settings.writing import write_yaml
from tinkertools.train.starting import material_of_run, steps_in_all

if TYPE_CHECKING:
    from tinkertools.engines import TrainingClient
    from tinkertools.estimates import Rehearsal
    from tinkertools.methods.base import Tokens

# Examples that a dry run shows.
EXAMPLES_SHOWN = 2
REFERENCE = "the reference (a forward pass of all pairs)"
# What of a method a server is asked besides passes of training, for which there is another price.
BESIDES: dict[MethodName, list[str]] = {
    "dpo": [REFERENCE, "a forward pass of each step"],
    "reward": ["a forward pass of each step"],
    "rl": ["sampling"],
    "distill": ["sampling", "the teacher"],
}


def show_plan(plan: Plan) -> None:
    """What would be trained on, shown token by token and counted, and what it takes; no run is made."""
    config = resolve(plan.config, console.say)
    console.say(write_yaml(config, {}, explained=False).rstrip())
    material, _ = material_of_run(plan, None)
    console.show_examples(material.renderer, material.examples[:EXAMPLES_SHOWN])
    batches = material.batches
    total_steps = steps_in_all(config, batches)
    of = f"{config.batch} {BATCH_OF[config.method]}"
    console.say(
        f"steps: {total_steps:,} of {of}" + (f", {batches.steps_per_epoch:,} an epoch" if batches is not None else "")
    )
    tokens = material.tokens(total_steps)
    if tokens is None:
        console.say("tokens: as many as a model will say; they are logged as they come")
    else:
        console.say(f"tokens: {tokens} in all steps")
    if config.engine == "tinker" and tokens is not None:
        show_cost(config, tokens)
    elif config.engine == "local" and material.rehearse is not None:
        show_estimate(config, material.rehearse, total_steps)
    else:
        unknown = "cost" if config.engine == "tinker" else "time and memory"
        console.say(f"{unknown}: not known before a model has answered")
    console.say("this was a dry run: nothing is trained and no run is made; without --dry-run it is")


def show_estimate(config: TrainConfig, rehearse: "Callable[[TrainingClient], Rehearsal]", total_steps: int) -> None:
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
        found = measure(client, rehearse(client), total_steps, console.progress)
    before = f"; {REFERENCE} comes before them" if config.method == "dpo" else ""
    console.say(
        f"time: about {console.seconds(found.seconds)} for the steps, at {found.tokens_per_second:,.0f} tokens/s "
        f"({found.steps_measured} steps measured){before}"
    )
    console.say(f"peak memory: about {found.peak_memory / 1e6:,.0f} MB")


def show_cost(config: TrainConfig, tokens: "Tokens") -> None:
    """What a server would ask for the tokens that a run trains on."""
    from tinkertools.prices import cost, price_of

    price = price_of(config.base_model, config.price)
    if price is None:
        console.say(f"cost: no price known for {config.base_model}; --price names one, in dollars per million tokens")
        return
    source = f"{price.source}, {price.date}" if price.date else price.source
    about = "about" if tokens.exact else "at most"
    besides = ", ".join([*BESIDES.get(config.method, []), "storage"])
    console.say(
        f"cost: {about} ${cost(tokens.number, price):,.2f} for {tokens} tokens at ${price.per_million:g} per million "
        f"({source}); {besides} and evaluation come on top"
    )
