"""What a run would train on, as text and in numbers, and what it would take."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinkertools import console
from tinkertools.config import BATCH_OF, TrainConfig
from tinkertools.planning import Plan, resolve
from tinkertools.settings.writing import write_yaml
from tinkertools.train.starting import material_of_run, steps_in_all

if TYPE_CHECKING:
    from tinkertools.chat.batching import Batches
    from tinkertools.chat.examples import Example

# Examples that a dry run shows.
EXAMPLES_SHOWN = 2


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
