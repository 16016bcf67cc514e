"""Supervised fine-tuning: the likelihood of what the assistant says in conversations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinkertools.chat.batching import Batches
from tinkertools.chat.cache import fingerprint
from tinkertools.chat.datums import to_datums
from tinkertools.config import PrepareDefaults, TrainConfig
from tinkertools.data import Ready, make_ready, tell
from tinkertools.estimates import Rehearsal, tokens_of_steps
from tinkertools.evaluation import HeldOut, masked_nll, trained_bytes
from tinkertools.methods.base import Bench, Tokens, find_renderer, of_held_out
from tinkertools.prompts import Prompt, prompts_of
from tinkertools.reporting import Voice

if TYPE_CHECKING:
    from tinkertools.chat.conversations import Conversation
    from tinkertools.chat.examples import Example
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import TrainingClient
    from tinkertools.local.limits import Limits
    from tinkertools.loop import Evaluation


@dataclass
class Conversations:
    """Conversations to train on, and those that are held out."""

    config: TrainConfig
    voice: Voice
    conversations: "list[Conversation]"
    held_out: "list[Conversation]"
    renderer: "Renderer"
    _ready: Ready = field(init=False)
    _batches: Batches = field(init=False)
    _evaluation: HeldOut | None = field(init=False, default=None)

    @property
    def data(self) -> dict[str, Any]:
        """See `Material`."""
        found: dict[str, Any] = {
            "fingerprint": fingerprint(self.conversations),
            "conversations": len(self.conversations),
        }
        if self.held_out:
            found |= {"held_out": fingerprint(self.held_out), "held_out_conversations": len(self.held_out)}
        return found

    def make_ready(self, limits: "Limits", *, strict: bool = True) -> None:
        """See `Material`."""
        self._ready = self._make_ready(self.conversations, limits, strict=strict)
        tell(self._ready, self.voice)
        self._batches = Batches(len(self._ready.fitted.examples), self.config.batch, self.config.seed)
        if not self.held_out:
            return
        with of_held_out(self.config):
            fitted = self._make_ready(self.held_out, limits, strict=strict).fitted
        lost = fitted.cut + fitted.dropped + fitted.unfinished + fitted.untrained
        self.voice.say(
            f"held out: {len(fitted.examples):,} examples with {fitted.trained_tokens:,} trained tokens"
            + (f" ({lost:,} cut or left out)" if lost else "")
        )
        self._evaluation = HeldOut(fitted.examples, trained_bytes(fitted.examples, self.renderer))

    def _make_ready(self, conversations: "list[Conversation]", limits: "Limits", *, strict: bool) -> Ready:
        config = self.config
        overlength = "truncate" if config.overlength == "error" and not strict else config.overlength
        ready = make_ready(
            self.renderer, conversations, fingerprint(conversations), limits, self.voice.progress,
            max_length=config.max_length, overlength=overlength, use_cache=config.cache,
        )  # fmt: skip
        if config.overlength == "error" and (too_long := ready.fitted.cut + ready.fitted.unfinished):
            self.voice.warn(f"training would stop: {too_long:,} examples are too long, and --overlength is error")
        return ready

    @property
    def batches(self) -> Batches:
        """See `Material`."""
        return self._batches

    @property
    def examples(self) -> "Sequence[Example]":
        """See `Material`."""
        return self._ready.fitted.examples

    @property
    def asked(self) -> list[Prompt]:
        """See `Material`."""
        return prompts_of(self.held_out, len(self.held_out))

    def tokens(self, total_steps: int) -> Tokens:
        """See `Material`."""
        return Tokens(int(tokens_of_steps(self._lengths, total_steps).sum()))

    def rehearse(self, client: "TrainingClient") -> Rehearsal:
        """See `Material`."""
        shortest = min(self.examples, key=lambda example: len(example.tokens))
        return Rehearsal(self._supervised(client), self._lengths, shortest)

    def begin(self, bench: Bench) -> "Supervised":
        """See `Material`."""
        return self._supervised(bench.client)

    def _supervised(self, client: "TrainingClient") -> "Supervised":
        return Supervised(client, self._at, self._batches.epoch_of, self._evaluation)

    def _at(self, step: int) -> "list[Example]":
        return [self.examples[i] for i in self._batches.at(step)]

    def _lengths(self, step: int) -> list[int]:
        return [len(example.tokens) for example in self._at(step)]


def read(config: TrainConfig, voice: Voice) -> Conversations:
    """The conversations to train on and those held out.

    Raises:
        DataError: a row cannot be used.
    """
    conversations, held_out = read_conversations(config, voice)
    return Conversations(config, voice, conversations, held_out, find_renderer(config, voice, config.train_on_what))


def read_conversations(config: TrainConfig, voice: Voice) -> "tuple[list[Conversation], list[Conversation]]":
    """The conversations to train on and those held out.

    Raises:
        DataError: a row cannot be used.
    """
    from tinkertools.chat.records import read_all
    from tinkertools.chat.sources import find_source
    from tinkertools.chat.splitting import split

    conversations, row_format = read_all(find_source(config.data), PrepareDefaults.errors_shown, config.num_examples)
    voice.say(f"data: {config.data}: {len(conversations):,} conversations ({row_format.description})")
    if config.val_fraction:
        return split(conversations, config.val_fraction)
    if not config.eval_data:
        return conversations, []
    held_out, row_format = read_all(find_source(config.eval_data), PrepareDefaults.errors_shown)
    voice.say(f"held out: {config.eval_data}: {len(held_out):,} conversations ({row_format.description})")
    return conversations, held_out


@dataclass(frozen=True)
class SupervisedPasses:
    """The pass of a step."""

    examples: "list[Example]"
    future: Any
    trains: bool = True

    def result(self) -> dict[str, Any]:
        """`loss` is the mean NLL per trained token, natural log."""
        nll, weight = masked_nll(self.examples, self.future.result())
        return {
            "loss": nll / weight,
            "trained_tokens": sum(example.trained_tokens for example in self.examples),
            "tokens": sum(len(example.tokens) for example in self.examples),
        }


@dataclass(frozen=True)
class Supervised:
    """The mean NLL per trained token of a step's examples.

    Attributes:
        at: the examples of a step.
        epoch_of: the epoch that a step belongs to.
    """

    client: "TrainingClient"
    at: "Callable[[int], list[Example]]"
    epoch_of: Callable[[int], int]
    evaluation: "Evaluation | None"
    steps_in_flight: int = 2
    shown: tuple[str, ...] = ("loss",)
    companions: "Mapping[str, TrainingClient]" = field(default_factory=dict)

    def submit(self, step: int) -> SupervisedPasses:
        """See `Method`."""
        examples = self.at(step)
        return SupervisedPasses(examples, self.client.forward_backward(to_datums(examples), "cross_entropy"))
