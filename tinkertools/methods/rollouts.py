"""Learning from the model's own answers: it is sampled, credit is given to what it said, and it is trained on that.

What the credit is, is for the method to say (`Credit`): rewards in `rl`, a teacher's likelihoods in `distill`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from tinkertools.chat.datums import to_model_input
from tinkertools.chat.examples import Prompt
from tinkertools.config import PolicyLoss
from tinkertools.engines import snapshot, together
from tinkertools.errors import EngineError, ServerTimeoutError
from tinkertools.methods.base import Bench
from tinkertools.methods.policy import policy_datum, policy_loss, policy_loss_config
from tinkertools.methods.prompts import Asked
from tinkertools.runs.rollouts import Rollouts
from tinkertools.seeds import derived

if TYPE_CHECKING:
    from tinker import types

    from tinkertools.chat.batching import Batches
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient, TrainingClient
    from tinkertools.loop import Evaluation

Floats = npt.NDArray[np.float32]

# A step's groups are trained in so many passes on a server: one is computed while the next ones are still sampled.
_PASSES = 4


@dataclass(frozen=True)
class Rollout:
    """A sampled answer.

    Attributes:
        tokens: its tokens, (T,), the end of the turn among them.
        logprobs: of each, (T,), under the weights that it was sampled from.
        text: what it says.
        finished: False where it was cut at its longest.
    """

    tokens: list[int]
    logprobs: Floats
    text: str
    finished: bool


@dataclass(frozen=True)
class Group:
    """The answers to one prompt; without any, `error` says why."""

    asked: Asked
    rollouts: list[Rollout]
    error: str | None = None


@dataclass
class Credited:
    """What answers are worth.

    Attributes:
        advantages: for each group and answer, of each of its tokens (T,); None where nothing is to be learnt of it.
        rewards: for each group and answer what is written down of it; None where there is none.
        values: figures that are averaged over the step, by name.
        counts: figures that are added up over the step, by name.
        problems: what went wrong, in words.
    """

    advantages: list[list[Floats | None]]
    rewards: list[list[float | None]]
    values: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Credit(Protocol):
    """Says what answers are worth."""

    def __call__(self, groups: Sequence[Group]) -> Credited:
        """The credit of the answers of whole groups.

        Raises:
            EngineError: an engine that must be asked for it does not answer.
        """
        ...


def request(
    sampler: "SamplingClient", asked: Sequence[Asked], seeds: Sequence[int], count: int, bench: Bench,
    renderer: "Renderer",
) -> list[Any]:  # fmt: skip
    """Ask for `count` answers to each prompt, without waiting for them: a future for each, which `answered` reads."""
    from tinker import types

    def ask(one: Asked, seed: int) -> Any:
        params = types.SamplingParams(
            max_tokens=one.max_tokens, temperature=bench.config.temperature, seed=seed, stop=renderer.stop_tokens
        )
        try:
            return sampler.sample(to_model_input(one.input.tokens, one.input.images), count, params)
        except ServerTimeoutError:
            raise
        except EngineError as error:
            return error

    with together(sampler):
        return [ask(one, seed) for one, seed in zip(asked, seeds, strict=True)]


def request_logprobs(sampler: "SamplingClient", answers: Sequence[tuple[Prompt, Sequence[int]]]) -> list[Any]:
    """Ask how likely a model finds answers to prompts: a future for each, which `logprobs_of` reads."""
    with together(sampler):
        return [
            sampler.compute_logprobs(
                to_model_input(np.concatenate((prompt.tokens, np.asarray(answer, np.int32))), prompt.images)
            )
            for prompt, answer in answers
        ]


def logprobs_of(future: Any, rollout: Rollout) -> Floats:
    """Wait for the logprobs of an answer's tokens, (T,)."""
    return np.array(future.result()[-len(rollout.tokens) :], np.float32)


def answered(asked: Asked, future: Any, renderer: "Renderer") -> Group:
    """Wait for the answers to a prompt. A request that failed costs its group only.

    Raises:
        ServerTimeoutError: the server does not answer any more.
    """
    try:
        if isinstance(future, EngineError):
            raise future
        sequences = future.result().sequences
    except ServerTimeoutError:
        raise
    except EngineError as error:
        return Group(asked, [], error.message)
    return Group(
        asked,
        [
            Rollout(
                list(one.tokens), np.array(one.logprobs, np.float32), renderer.decode(one.tokens),
                one.stop_reason == "stop",
            )
            for one in sequences
            if one.tokens
        ],
    )  # fmt: skip


def _learnt(groups: Sequence[Group], found: Credited) -> Iterator[tuple[Group, Rollout, Floats]]:
    """The answers of which there is something to learn, with their advantages."""
    for group, advantages_of in zip(groups, found.advantages, strict=True):
        for rollout, advantages in zip(group.rollouts, advantages_of, strict=True):
            if advantages is not None and advantages.any():
                yield group, rollout, advantages


@dataclass(frozen=True)
class RolloutPasses:
    """The passes of a step: each future with its datums, and what is known of the step already."""

    sent: "list[tuple[Any, list[types.Datum]]]"
    loss: PolicyLoss
    figures: dict[str, Any]

    @property
    def trains(self) -> bool:
        """See `Passes`: not where no answer was better than another."""
        return bool(self.sent)

    def result(self) -> dict[str, Any]:
        """`loss` is that of the policy: its gradient says more than its value."""
        losses = [policy_loss(self.loss, datums, future.result()) for future, datums in self.sent]
        return {"loss": sum(losses), **self.figures}


@dataclass
class OnPolicy:
    """Steps that are made of the model's own answers.

    The weights that answer are taken anew every `refresh_every` steps, and after each checkpoint, so that a run that
    goes on from one samples from what the first one sampled from. Advantages are divided by the number of answers that
    a step asks for: a step does not depend on the passes it is made of.

    Attributes:
        bench: what it works with.
        asked: the prompts.
        renderer: writes and reads what the model sees.
        batches: which prompts make which step.
        credit: says what answers are worth.
        evaluation: see `Method`.
        shown: see `Method`.
    """

    bench: Bench
    asked: Sequence[Asked]
    renderer: "Renderer"
    batches: "Batches"
    credit: Credit
    evaluation: "Evaluation | None"
    shown: tuple[str, ...]
    steps_in_flight: int = 1
    companions: "Mapping[str, TrainingClient]" = field(default_factory=dict)
    _sampler: "SamplingClient | None" = None
    _requested: dict[int, list[Any]] = field(default_factory=dict)
    _problems_told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._written = Rollouts.reopen(self.bench.run.rollouts, self.bench.first_step)

    def epoch_of(self, step: int) -> int:
        """See `Method`."""
        return self.batches.epoch_of(step)

    def submit(self, step: int) -> RolloutPasses:
        """See `Method`: samples, gives credit, and sends the passes.

        Raises:
            EngineError: no answer of the step could be had, or none was worth anything known.
        """
        config = self.bench.config
        if self._sampler is None or self._refreshes(step):
            self._sampler = snapshot(self.bench.client, self.bench.service, config.base_model, f"policy_{step:04d}")
            self._requested.clear()
        self._request(step)
        if self.bench.choice.engine == "tinker" and not self._refreshes(step + 1):
            self._request(step + 1)  # sampled while this step is trained
        sent: list[tuple[Any, list[types.Datum]]] = []
        credited: list[tuple[Sequence[Group], Credited]] = []
        tokens = trained = 0
        answers = len(self.batches.at(step)) * config.group_size
        for groups in self._groups(step):
            found = self.credit(groups)
            credited.append((groups, found))
            datums = []
            for group, rollout, advantages in _learnt(groups, found):
                scaled = (advantages / answers).tolist()
                datums.append(policy_datum(group.asked.input, rollout.tokens, rollout.logprobs.tolist(), scaled))
                tokens += len(group.asked.input.tokens) + len(rollout.tokens)
                trained += int(np.count_nonzero(advantages))
            if datums:
                loss = config.policy_loss
                sent.append((self.bench.client.forward_backward(datums, loss, policy_loss_config(loss)), datums))
        self._write_down(step, credited)
        figures = self._figures(credited)
        return RolloutPasses(sent, config.policy_loss, {"trained_tokens": trained, "tokens": tokens, **figures})

    def _refreshes(self, step: int) -> bool:
        """Whether the answers of a step come from newer weights than those of the step before."""
        config = self.bench.config
        saved = config.save_every and (step - 1) % config.save_every == 0
        return bool(saved) or (step - 1) % config.refresh_every == 0

    def _request(self, step: int) -> None:
        """Ask for the answers of a step, unless that is done."""
        if step in self._requested:
            return
        config = self.bench.config
        assert self._sampler is not None
        indices = self.batches.at(step)
        self._requested[step] = request(
            self._sampler, [self.asked[i] for i in indices], [derived(config.seed, step, i) for i in indices],
            config.group_size, self.bench, self.renderer,
        )  # fmt: skip

    def _groups(self, step: int) -> Iterator[list[Group]]:
        """The groups of a step, as they are in, in as many parts as there are passes."""
        indices, futures = self.batches.at(step), self._requested.pop(step)
        passes = _PASSES if self.bench.choice.engine == "tinker" else 1
        size = -(-len(indices) // passes)
        for start in range(0, len(indices), size):
            part = zip(indices[start : start + size], futures[start : start + size], strict=True)
            yield [answered(self.asked[i], future, self.renderer) for i, future in part]

    def _figures(self, credited: Sequence[tuple[Sequence[Group], Credited]]) -> dict[str, Any]:
        """What is logged of a step besides its loss; says what went wrong, each thing once.

        Raises:
            EngineError: nothing at all could be had.
        """
        groups = [group for part, _ in credited for group in part]
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        problems = [group.error for group in groups if group.error is not None]
        unanswered = len(problems)
        problems += [problem for _, found in credited for problem in found.problems]
        values: dict[str, list[float]] = defaultdict(list)
        counts: dict[str, int] = defaultdict(int)
        for _, found in credited:
            for name, listed in found.values.items():
                values[name] += listed
            for name, count in found.counts.items():
                counts[name] += count
        if not any(values.values()):
            first = problems[0] if problems else "the model says nothing at all"
            raise EngineError(
                f"no answer of this step could be used: {first}", hint="mend what fails, and go on from the last state"
            )
        for problem in problems:
            if problem not in self._problems_told:
                self._problems_told.add(problem)
                self.bench.voice.warn(f"an answer is left out: {problem}")
        sampled = np.concatenate([rollout.logprobs for rollout in rollouts])
        return {
            **{name: float(np.mean(listed)) for name, listed in values.items() if listed},
            "answer_tokens": len(sampled) / len(rollouts),
            "finished": sum(rollout.finished for rollout in rollouts) / len(rollouts),
            # An estimate of the entropy of the next token, in nats, from the tokens that came.
            "entropy": float(-sampled.mean()),
            "unanswered": unanswered,
            **counts,
        }

    def _write_down(self, step: int, credited: Sequence[tuple[Sequence[Group], Credited]]) -> None:
        """Keep the answers to the first prompt of a step, for whoever wants to see what is rewarded."""
        for groups, found in credited:
            for group, rewards in zip(groups, found.rewards, strict=True):
                if group.rollouts:
                    texts = [rollout.text for rollout in group.rollouts]
                    self._written.add(step, group.asked.prompt.messages, texts, rewards)
                    return
