"""Reinforcement learning: of several answers to a prompt, those that are worth more become likelier.

Answers to one prompt are a group; an answer's advantage is its reward less the mean of its group's (Shao et al. 2024,
https://arxiv.org/abs/2402.03300, without their division by the standard deviation, which Liu et al. 2025,
https://arxiv.org/abs/2503.20783, show to be a bias), the same for all of its tokens. Groups in which all answers are
worth the same teach nothing and are left out.

A KL penalty takes from a token's advantage `kl_penalty` times how much likelier the model finds it than the starting
model does, log q − log r, less the mean of that in its group. The mean of log q − log r over sampled tokens is logged
as `kl` (Schulman 2020, http://joschu.net/blog/kl-approx.html: its expectation is the KL).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkertools.config import TrainConfig
from tinkertools.engines import snapshot
from tinkertools.errors import EngineError
from tinkertools.methods.base import Bench, find_renderer, starting_sampler
from tinkertools.methods.prompts import Asked, Prompts, read_prompts
from tinkertools.methods.rollouts import (
    Credited,
    Floats,
    Group,
    OnPolicy,
    Rollout,
    answered,
    logprobs_of,
    request,
    request_logprobs,
)  # fmt: skip
from tinkertools.reporting import Voice
from tinkertools.rewards import Reward, Rewarded, RewardSpec, Sample, Scorer, open_reward, parse_reward
from tinkertools.seeds import derived

if TYPE_CHECKING:
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient, TrainingClient


@dataclass
class RewardedPrompts(Prompts):
    """Prompts whose answers are rewarded."""

    def begin(self, bench: Bench) -> OnPolicy:
        """See `Material`.

        Raises:
            UsageError: the reward cannot be had.
        """
        config = bench.config
        spec = parse_reward(config.reward)
        opened = open_reward(spec, scorer_of(spec, bench), self.voice.waiting, timeout=config.reward_timeout)
        reward = bench.held.enter_context(opened)
        reference = starting_sampler(bench) if config.kl_penalty else None
        return OnPolicy(
            bench, self.ready, self.renderer, self.batches,
            credit=GroupRewards(reward, reference, config.kl_penalty),
            evaluation=HeldOutRewards(bench, self.held_out_ready, self.renderer, reward) if self.held_out else None,
            shown=("reward", "kl") if reference else ("reward",),
        )  # fmt: skip


def read(config: TrainConfig, voice: Voice) -> RewardedPrompts:
    """The prompts to train on and those held out; a reward that is none is refused before they are read.

    Raises:
        UsageError: there is no such reward.
        DataError: a row cannot be used.
    """
    spec = parse_reward(config.reward)
    prompts, held_out = read_prompts(config, voice)
    voice.say(f"reward: {spec.text}")
    return RewardedPrompts(config, voice, prompts, held_out, find_renderer(config, voice, config.train_on_what))


def scorer_of(spec: RewardSpec, bench: Bench) -> Scorer | None:
    """What a reward model says, for `score:RUN`.

    Raises:
        RunError: there is no such run, or it is not where the engine is.
        UsageError: its base model is another one.
    """
    if spec.kind != "score":
        return None
    from tinkertools.scoring import open_scorer

    return open_scorer(spec.argument, bench.service, bench.choice, bench.config)


@dataclass(frozen=True)
class GroupRewards:
    """`Credit` by a reward, less what it costs to go away from a reference.

    Attributes:
        reward: says what answers are worth.
        reference: the model to stay near to; None where nothing is asked of that.
        kl_penalty: in rewards a nat.
    """

    reward: Reward
    reference: "SamplingClient | None" = None
    kl_penalty: float = 0.0

    def __call__(self, groups: Sequence[Group]) -> Credited:
        """See `Credit`."""
        answers = [(group.asked.input, rollout.tokens) for group in groups for rollout in group.rollouts]
        # Asked first: they are on their way while rewards are found.
        references = iter(request_logprobs(self.reference, answers) if self.reference else ())
        flat = iter(rewarded(self.reward, [(group.asked, rollout) for group in groups for rollout in group.rollouts]))
        found = Credited([], [], {"reward": []}, {"unrewarded": 0, "zero_advantage_groups": 0})
        for group in groups:
            rewards = [next(flat) for _ in group.rollouts]
            found.rewards.append([one.value for one in rewards])
            found.problems += [one.error for one in rewards if one.error is not None]
            found.counts["unrewarded"] += sum(one.value is None for one in rewards)
            known = [one.value for one in rewards if one.value is not None]
            found.values["reward"] += known
            alike = bool(known) and min(known) == max(known)
            found.counts["zero_advantage_groups"] += alike
            drifts = [
                rollout.logprobs - logprobs_of(future, rollout)
                for rollout, future in zip(group.rollouts, references, strict=False)
            ]
            if drifts:
                found.values.setdefault("kl", []).extend(np.concatenate(drifts).tolist())
            # Adam makes a whole step even of what rounding leaves of a difference.
            nothing: list[Floats | None] = [None] * len(rewards)
            values = [one.value for one in rewards]
            found.advantages.append(nothing if alike else self._advantages(group, values, drifts))
        return found

    def _advantages(
        self, group: Group, rewards: Sequence[float | None], drifts: Sequence[Floats]
    ) -> list[Floats | None]:
        """Of each token of each answer; None for an answer that nobody knows the reward of."""
        mean = np.mean([reward for reward in rewards if reward is not None] or [0.0])
        drifted = np.concatenate(drifts).mean() if drifts else 0.0
        found: list[Floats | None] = []
        for i, (rollout, reward) in enumerate(zip(group.rollouts, rewards, strict=True)):
            if reward is None:
                found.append(None)
                continue
            advantages = np.full(len(rollout.tokens), reward - mean, np.float32)
            if drifts:
                advantages -= self.kl_penalty * (drifts[i] - drifted)
            found.append(advantages)
        return found


def rewarded(reward: Reward, answers: Sequence[tuple[Asked, Rollout]]) -> list[Rewarded]:
    """What each of the answers is worth."""
    return reward(
        [
            Sample(
                asked.prompt.messages, rollout.text, asked.prompt.reference,
                asked.prompt.conversation.get("metadata", {}), rollout.finished,
            )
            for asked, rollout in answers
        ]
    )  # fmt: skip


@dataclass
class HeldOutRewards:
    """`Evaluation` by the rewards of one answer to each held-out prompt, sampled as those that are trained on.

    The seeds are the same each time: what differs between evaluations is the model.
    """

    bench: Bench
    asked: list[Asked]
    renderer: "Renderer"
    reward: Reward
    _made: int = 0

    def submit(self, client: "TrainingClient") -> list[Any]:
        """See `Evaluation`."""
        config = self.bench.config
        self._made += 1
        sampler = snapshot(
            client, self.bench.service, config.base_model, f"eval_{self.bench.first_step:04d}_{self._made:04d}"
        )
        seeds = [derived(config.seed, "held out", i) for i in range(len(self.asked))]
        return request(sampler, self.asked, seeds, 1, self.bench, self.renderer)

    def result(self, pending: list[Any]) -> dict[str, Any]:
        """The mean `reward` of those that have one, and how many have none.

        Raises:
            EngineError: none has one.
        """
        groups = [answered(asked, future, self.renderer) for asked, future in zip(self.asked, pending, strict=True)]
        found = rewarded(self.reward, [(group.asked, rollout) for group in groups for rollout in group.rollouts])
        known = [one.value for one in found if one.value is not None]
        if not known:
            problems = [text for text in [*(g.error for g in groups), *(one.error for one in found)] if text]
            raise EngineError(
                f"no held-out prompt got a reward: {problems[0] if problems else 'the model says nothing at all'}",
                hint="mend what fails",
            )
        return {"reward": float(np.mean(known)), "prompts": len(self.asked), "unrewarded": len(self.asked) - len(known)}
