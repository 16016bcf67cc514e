"""What methods that learn from preferences have in common: pairs of answers as data, as steps and as an evaluation.

Each answer is one number, the sum of the logprobs of its weighted tokens; what a pair of those is worth is the
method's to say (`Objective`).
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tinkertools.chat.batching import Batches
from tinkertools.chat.cache import fingerprint
from tinkertools.chat.datums import to_datum
from tinkertools.chat.pairs import TRAIN_PAIRS_ON, Pair
from tinkertools.config import Overlength, PrepareDefaults, TrainConfig
from tinkertools.custom_loss import CustomLoss
from tinkertools.data import ReadyPairs, tell_pairs
from tinkertools.estimates import Rehearsal, tokens_of_steps
from tinkertools.evaluation import parts
from tinkertools.methods.base import Bench, Tokens, find_renderer, of_held_out
from tinkertools.prompts import Prompt, prompts_of
from tinkertools.reporting import Voice

if TYPE_CHECKING:
    from torch import Tensor

    from tinkertools.chat.examples import Example
    from tinkertools.chat.preferences import Preference
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import TrainingClient
    from tinkertools.local.limits import Limits
    from tinkertools.loop import Evaluation, Method


@dataclass
class Preferences(ABC):
    """Preferences to train on, and those that are held out; a method says what becomes of them (`Material`)."""

    config: TrainConfig
    voice: Voice
    preferences: "list[Preference]"
    held_out: "list[Preference]"
    renderer: "Renderer"
    pairs: list[Pair] = field(init=False)
    held_out_pairs: list[Pair] = field(init=False, default_factory=list)
    _batches: Batches = field(init=False)

    @abstractmethod
    def ready(self, preferences: "list[Preference]", limits: "Limits", overlength: Overlength) -> ReadyPairs:
        """The pairs of preferences, and those that fit the model.

        Raises:
            DataError: some cannot be rendered, one is too long and that is an error, or no pair is left.
        """

    @abstractmethod
    def begin(self, bench: Bench) -> "Method":
        """See `Material`."""

    @abstractmethod
    def rehearsed_objective(self) -> "Objective":
        """An objective of the pairs for which no model was asked: it takes as long, and its values mean nothing."""

    @property
    def data(self) -> dict[str, Any]:
        """See `Material`."""
        found: dict[str, Any] = {"fingerprint": fingerprint(self.preferences), "preferences": len(self.preferences)}
        if self.held_out:
            found |= {"held_out": fingerprint(self.held_out), "held_out_preferences": len(self.held_out)}
        return found

    def make_ready(self, limits: "Limits", *, strict: bool = True) -> None:
        """See `Material`."""
        ready = self._make_ready(self.preferences, limits, strict=strict)
        tell_pairs(ready, self.voice)
        self.pairs = ready.fitted.pairs
        margins = [pair.margin for pair in self.pairs if pair.margin]
        if margins:
            self.voice.say(
                f"margins: {len(margins):,} pairs have one, {sum(margins) / len(margins):.3g} in the mean; the loss "
                "asks for that much more"
            )
        self._batches = Batches(len(self.pairs), self.config.batch, self.config.seed, "pairs")
        if not self.held_out:
            return
        with of_held_out(self.config):
            fitted = self._make_ready(self.held_out, limits, strict=strict).fitted
        self.voice.say(
            f"held out: {len(fitted.pairs):,} pairs with {fitted.trained_tokens:,} trained tokens"
            + (f" ({fitted.dropped:,} left out)" if fitted.dropped else "")
        )
        self.held_out_pairs = fitted.pairs

    def _make_ready(self, preferences: "list[Preference]", limits: "Limits", *, strict: bool) -> ReadyPairs:
        stops = self.config.overlength == "error"
        ready = self.ready(preferences, limits, "drop" if stops and not strict else self.config.overlength)
        if stops and ready.fitted.dropped:
            self.voice.warn(
                f"training would stop: {ready.fitted.dropped:,} pairs are too long, and --overlength is error"
            )
        return ready

    @property
    def batches(self) -> Batches:
        """See `Material`."""
        return self._batches

    @property
    def examples(self) -> "Sequence[Example]":
        """See `Material`."""
        return sides(self.pairs)

    @property
    def asked(self) -> list[Prompt]:
        """See `Material`."""
        from tinkertools.chat.conversations import Conversation

        better = [Conversation(messages=[*one["prompt"], *one["chosen"]]) for one in self.held_out]
        return prompts_of(better, len(better))

    def tokens(self, total_steps: int) -> Tokens:
        """See `Material`."""
        return Tokens(int(tokens_of_steps(self._lengths, total_steps).sum()))

    def rehearse(self, client: "TrainingClient") -> Rehearsal:
        """See `Material`."""
        shortest = min(self.examples, key=lambda example: len(example.tokens))
        return Rehearsal(self.steps(client, self.rehearsed_objective(), None), self._lengths, shortest)

    def _lengths(self, step: int) -> list[int]:
        return [len(side.tokens) for side in sides([self.pairs[i] for i in self._batches.at(step)])]

    def steps(
        self, client: "TrainingClient", objective: "Objective", held_out: "Objective | None"
    ) -> "Pairwise":  # fmt: skip
        """The method: these pairs and an objective, and that of the pairs that are held out."""
        evaluation = HeldOutPairs(self.held_out_pairs, held_out) if held_out is not None else None
        return Pairwise(client, self.pairs, self._batches, objective, evaluation)


def read_preferences(config: TrainConfig, voice: Voice) -> "tuple[list[Preference], list[Preference]]":
    """The preferences to train on and those held out; all answers to one prompt are on one side.

    Raises:
        DataError: a row cannot be used.
    """
    from tinkertools.chat import records
    from tinkertools.chat.sources import find_source
    from tinkertools.chat.splitting import split_preferences

    def read(what: str, source: str, most: int = 0) -> "list[Preference]":
        found, row_format = records.read_preferences(find_source(source), PrepareDefaults.errors_shown, most)
        voice.say(f"{what}: {source}: {len(found):,} preferences ({row_format.description})")
        return found

    preferences = read("data", config.data, config.num_examples)
    if config.val_fraction:
        return split_preferences(preferences, config.val_fraction)
    return preferences, read("held out", config.eval_data) if config.eval_data else []


def find_pair_renderer(config: TrainConfig, voice: Voice) -> "Renderer":
    """The renderer of pairs in effect; says which and why."""
    return find_renderer(config, voice, TRAIN_PAIRS_ON, "both answers")


class Objective(Protocol):
    """What pairs of answers are worth."""

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of what it finds, `loss` among them."""
        ...

    def __call__(
        self, chosen: "Tensor", rejected: "Tensor", numbers: Sequence[int]
    ) -> "tuple[Tensor, dict[str, float]]":
        """The mean loss of pairs, from which a gradient can be taken, and the figures.

        Args:
            chosen: of each better answer, Σ logprob of its trained tokens, float64 (P,).
            rejected: the same of each other answer.
            numbers: which pairs these are.
        """
        ...


def logistic_loss(difference: "Tensor", label_smoothing: float) -> "Tensor":
    """−(1−ε) log σ(x) − ε log σ(−x) of each x (P,): with ε, a share of the pairs is taken to be the wrong way round.

    ε is as in "conservative DPO", Mitchell 2023, "A note on DPO with noisy preferences".
    """
    from torch.nn.functional import logsigmoid

    return -(1 - label_smoothing) * logsigmoid(difference) - label_smoothing * logsigmoid(-difference)


def share_right(difference: "Tensor") -> float:
    """The share of pairs whose better answer is ahead; ties count half."""
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def sides(pairs: Sequence[Pair]) -> "list[Example]":
    """Both answers of each pair, the chosen one first."""
    return [side for pair in pairs for side in (pair.chosen, pair.rejected)]


def answer_sums(weights: Sequence[Any], logprobs: Sequence[Any]) -> Any:
    """Σ logprob of the tokens with a weight, float64 (N,).

    Args:
        weights: of the targets of each answer, an array (T,).
        logprobs: of the same, a tensor (T,). Those without a weight may be anything, infinite too.
    """
    import torch

    return torch.stack(
        [found[torch.as_tensor(given) != 0].double().sum() for given, found in zip(weights, logprobs, strict=True)]
    )


def forward_sums(
    client: "TrainingClient", pairs: Sequence[Pair], at_once: int
) -> "Iterator[tuple[list[Example], Any]]":
    """What the client's weights of now say of both sides of pairs, part by part, in order.

    Args:
        client: is asked.
        pairs: the pairs.
        at_once: how many parts are on their way at once.

    Yields:
        The examples of a part and the sums of their logprobs, float64 (N,).
    """
    pending: deque[tuple[list[Example], Any]] = deque()
    for part in parts(sides(pairs)):
        pending.append((part, forward(client, part)))
        if len(pending) >= at_once:
            yield received(*pending.popleft())
    while pending:
        yield received(*pending.popleft())


def forward(client: "TrainingClient", examples: "Sequence[Example]") -> Any:
    """Ask for the logprobs of examples, without waiting for them."""
    return client.forward([to_datum(example) for example in examples], "cross_entropy")


def received(examples: "list[Example]", future: Any) -> "tuple[list[Example], Any]":
    """Examples, and the sums of the logprobs that were asked for."""
    found = [record["logprobs"].to_torch() for record in future.result().loss_fn_outputs]
    return examples, answer_sums([example.weights[1:] for example in examples], found)


@dataclass(frozen=True)
class HeldOutPairs:
    """Pairs that are not trained on (`Evaluation`)."""

    pairs: Sequence[Pair]
    objective: Objective

    def submit(self, client: "TrainingClient") -> Any:
        """See `Evaluation`."""
        return [(part, forward(client, part)) for part in parts(sides(self.pairs))]

    def result(self, pending: Any) -> dict[str, Any]:
        """See `Evaluation`."""
        import torch

        found = torch.cat([received(examples, future)[1] for examples, future in pending])
        _, figures = self.objective(found[0::2], found[1::2], range(len(self.pairs)))
        return {**figures, "trained_tokens": sum(pair.trained_tokens for pair in self.pairs)}


@dataclass(frozen=True)
class PairPasses:
    """The pass of a step (`Passes`)."""

    pairs: Sequence[Pair]
    future: Any
    figures: tuple[str, ...]
    trains: bool = True

    def result(self) -> dict[str, Any]:
        """See `Passes`."""
        metrics = self.future.result().metrics
        return {name: metrics[name] for name in self.figures} | {
            "trained_tokens": sum(pair.trained_tokens for pair in self.pairs),
            "tokens": sum(pair.tokens for pair in self.pairs),
        }


@dataclass(frozen=True)
class Pairwise:
    """Steps over pairs, with the loss that an objective makes of their logprobs (`Method`)."""

    client: "TrainingClient"
    pairs: Sequence[Pair]
    batches: Batches
    objective: Objective
    evaluation: "Evaluation | None"
    steps_in_flight: int = 2
    shown: tuple[str, ...] = ("loss", "accuracy")
    companions: "Mapping[str, TrainingClient]" = field(default_factory=dict)

    def epoch_of(self, step: int) -> int:
        """See `Method`."""
        return self.batches.epoch_of(step)

    def submit(self, step: int) -> PairPasses:
        """See `Method`."""
        numbers = self.batches.at(step)
        pairs = [self.pairs[i] for i in numbers]
        data = [to_datum(example) for example in sides(pairs)]
        future = self.client.forward_backward_custom(data, loss_of(self.objective, numbers))
        return PairPasses(pairs, future, self.objective.figures)


def loss_of(objective: Objective, numbers: Sequence[int]) -> CustomLoss:
    """The custom loss of pairs whose sides come in turn, the chosen one first: of their datums and logprobs."""

    def loss(data: list[Any], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        sums = answer_sums([datum.loss_fn_inputs["weights"].to_torch() for datum in data], logprobs)
        return objective(sums[0::2], sums[1::2], numbers)

    return loss
