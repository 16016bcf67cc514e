"""What methods of training have in common: what they are made of, and what they work with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tinkertools.config import TrainConfig, TrainOnWhat
from tinkertools.errors import DataError
from tinkertools.reporting import Voice

if TYPE_CHECKING:
    from tinkertools.chat.batching import Batches
    from tinkertools.chat.examples import Example
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import Choice, SamplingClient, Service, TrainingClient
    from tinkertools.estimates import Rehearsal
    from tinkertools.local.limits import Limits
    from tinkertools.loop import Method
    from tinkertools.prompts import Prompt
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.states import State


@dataclass(frozen=True)
class Bench:
    """What a method works with, once there is a run and a model.

    Attributes:
        client: trains the run's adapter.
        service: where it does.
        config: the configuration in effect.
        choice: the engine, and why.
        run: where what a method must remember is kept.
        saved: the state that the run goes on from; None before its first step.
        voice: how it speaks.
        held: closes what it opens, when training has ended.
    """

    client: "TrainingClient"
    service: "Service"
    config: TrainConfig
    choice: "Choice"
    run: "RunDirectory"
    saved: "State | None"
    voice: Voice
    held: ExitStack

    @property
    def first_step(self) -> int:
        """The step that comes next."""
        return self.saved.next_step if self.saved else 1


@dataclass(frozen=True)
class Tokens:
    """How many tokens steps train on: exactly, or at most, where a model has yet to say some of them."""

    number: int
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.number:,}" if self.exact else f"at most {self.number:,}"


class Material(Protocol):
    """What a run is made of: read, then made ready for the model, then trained with."""

    @property
    def renderer(self) -> "Renderer":
        """Writes what the model sees."""
        ...

    @property
    def data(self) -> dict[str, Any]:
        """What `config.json` says of the data, among it the `fingerprint` by which they are known again."""
        ...

    def make_ready(self, limits: "Limits", *, strict: bool = True) -> None:
        """Render all and fit it to the model; say what became of it. Once, before anything that follows.

        Args:
            limits: the model's, as far as they are known.
            strict: False where what is too long is only counted.

        Raises:
            DataError: there is nothing to train or to evaluate, or a row cannot be used.
        """
        ...

    @property
    def batches(self) -> "Batches | None":
        """What makes which step; None where there are no epochs."""
        ...

    @property
    def examples(self) -> "Sequence[Example]":
        """What to show of it."""
        ...

    @property
    def asked(self) -> "list[Prompt]":
        """Prompts to answer while training, of what is held out; none where nothing is."""
        ...

    def tokens(self, total_steps: int) -> "Tokens | None":
        """The tokens of so many steps, those without a weight too; None where nobody can tell."""
        ...

    @property
    def rehearse(self) -> "Callable[[TrainingClient], Rehearsal] | None":
        """Makes steps as training will take them, of what is known before any model is asked; None where that is not
        enough."""
        ...

    def begin(self, bench: Bench) -> "Method":
        """The method at work."""
        ...


def find_renderer(
    config: TrainConfig, voice: Voice, train_on_what: TrainOnWhat, trained: str | None = None
) -> "Renderer":  # fmt: skip
    """The renderer in effect; says which and why, and what of conversations is `trained` where that has other words."""
    from tinkertools.chat.rendering import choose_renderer, load_renderer

    voice.say(choose_renderer(config.base_model, config.renderer).words(trained or train_on_what))
    return load_renderer(config.base_model, config.renderer, train_on_what)


@contextmanager
def of_held_out(config: TrainConfig) -> Iterator[None]:
    """What is wrong with data within the block is wrong with the held-out ones; errors say how they were asked for."""
    try:
        yield
    except DataError as error:
        option = f"--eval-data {config.eval_data}" if config.eval_data else f"--val-fraction {config.val_fraction}"
        raise DataError(f"{option}: {error.message}", hint=error.hint) from error


def starting_sampler(bench: Bench) -> "SamplingClient":
    """The model as it was before its first step: the base, or the weights that the run started from.

    Raises:
        RunError: those weights are not there any more, or not where the engine is.
    """
    from tinkertools.runs.directory import find_weights

    config = bench.config
    if config.load_checkpoint_path is None:
        return bench.service.create_sampling_client(None, config.base_model)
    weights = find_weights(config.load_checkpoint_path, config.output_dir)
    return bench.service.create_sampling_client(weights.source(bench.choice.engine), config.base_model)
