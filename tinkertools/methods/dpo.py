"""Direct preference optimisation: of two answers, the better one is made likelier than the other, against the model
as it started.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkertools.chat.pairs import Pair
from tinkertools.config import Overlength, PreferenceLoss, TrainConfig
from tinkertools.data import ReadyPairs, make_pairs_ready
from tinkertools.methods.base import Bench
from tinkertools.methods.preferences import (
    Pairwise,
    Preferences,
    find_pair_renderer,
    logistic_loss,
    read_preferences,
    share_right,
)
from tinkertools.methods.reference import Reference, references
from tinkertools.reporting import Voice

if TYPE_CHECKING:
    from torch import Tensor

    from tinkertools.chat.preferences import Preference
    from tinkertools.local.limits import Limits

# The sets of pairs whose reference a run keeps.
_TRAINED, _HELD_OUT = "pairs", "held_out"


class DirectPreferences(Preferences):
    """Preferences whose answers are trained (`Material`)."""

    def ready(self, preferences: "list[Preference]", limits: "Limits", overlength: Overlength) -> ReadyPairs:
        """See `Preferences`."""
        return make_pairs_ready(
            self.renderer, preferences, limits, self.voice.progress,
            max_length=self.config.max_length, overlength=overlength,
        )  # fmt: skip

    def make_ready(self, limits: "Limits", *, strict: bool = True) -> None:
        """See `Material`."""
        super().make_ready(limits, strict=strict)
        if self.config.preference_loss == "ipo" and any(pair.margin for pair in self.pairs):
            self.voice.warn("margins are not used: --preference-loss ipo asks for the same of every pair")

    def rehearsed_objective(self) -> "DirectObjective":
        """See `Preferences`."""
        nothing = [0.0] * len(self.pairs)
        return direct_objective(self.config, self.pairs, Reference(nothing, nothing))

    def begin(self, bench: Bench) -> Pairwise:
        """See `Material`."""
        sets: dict[str, Sequence[Pair]] = {_TRAINED: self.pairs}
        if self.held_out_pairs:
            sets[_HELD_OUT] = self.held_out_pairs
        known = references(bench, sets)
        objectives = {name: direct_objective(self.config, pairs, known[name]) for name, pairs in sets.items()}
        return self.steps(bench.client, objectives[_TRAINED], objectives.get(_HELD_OUT))


def read(config: TrainConfig, voice: Voice) -> DirectPreferences:
    """The preferences to train on and those held out.

    Raises:
        DataError: a row cannot be used.
    """
    preferences, held_out = read_preferences(config, voice)
    return DirectPreferences(config, voice, preferences, held_out, find_pair_renderer(config, voice))


@dataclass(frozen=True)
class DirectObjective:
    """The loss of DPO or IPO (`Objective`).

    Of an answer, g = log π − log π_ref, summed over its tokens, is what it has gained. With Δ = g(chosen) −
    g(rejected):

    - `sigmoid`: −(1−ε) log σ(β·Δ − m) − ε log σ(m − β·Δ), with the pair's margin m. The margin is the offset of Amini
      et al. 2024, "Direct Preference Optimization with an Offset"; ε is label smoothing.
    - `ipo`: (Δ̄ − 1/(2β))², Δ̄ being made of means over the tokens of an answer instead of sums. Azar et al. 2023, "A
      General Theoretical Paradigm to Understand Learning from Human Preferences", eq. 17; the means are not in the
      paper, but what its authors say they did (trl/trainer/dpo_trainer.py, loss `ipo`, in TRL 1.16).

    The figures are means over pairs: `loss`; `accuracy`, the share with Δ > 0, ties counting half; `margin`, β·Δ;
    `chosen_reward` and `rejected_reward`, β·g of each side; `kl`, the mean of g per token over both answers, in nats.
    That is an estimate of KL(π ‖ π_ref) per token as far as the answers are such as the trained model gives. Of other
    answers it tells how much likelier they have become; below 0, both sides became less likely.

    Attributes:
        beta: β.
        loss: which of the two.
        label_smoothing: ε.
        reference: of both sides of all pairs, log π_ref, float64 (N,).
        tokens: of both sides, how many are trained, float64 (N,).
        margins: m, float64 (N,).
    """

    beta: float
    loss: PreferenceLoss
    label_smoothing: float
    reference: "tuple[Tensor, Tensor]"
    tokens: "tuple[Tensor, Tensor]"
    margins: "Tensor"
    figures: tuple[str, ...] = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "kl")

    def __call__(
        self, chosen: "Tensor", rejected: "Tensor", numbers: Sequence[int]
    ) -> "tuple[Tensor, dict[str, float]]":
        """See `Objective`."""
        at = list(numbers)
        gained = [now - before[at] for now, before in zip((chosen, rejected), self.reference, strict=True)]
        lengths = [tokens[at] for tokens in self.tokens]
        difference = gained[0] - gained[1]
        if self.loss == "ipo":
            means = [gain / length for gain, length in zip(gained, lengths, strict=True)]
            losses = (means[0] - means[1] - 1 / (2 * self.beta)) ** 2
        else:
            losses = logistic_loss(self.beta * difference - self.margins[at], self.label_smoothing)
        loss = losses.mean()
        first, second = (gain.detach() for gain in gained)
        found = {
            "margin": self.beta * (first - second),
            "chosen_reward": self.beta * first,
            "rejected_reward": self.beta * second,
            "kl": (first + second) / (lengths[0] + lengths[1]),
        }
        figures = {name: float(values.mean()) for name, values in found.items()}
        return loss, {"loss": float(loss.detach()), "accuracy": share_right(first - second), **figures}


def direct_objective(config: TrainConfig, pairs: Sequence[Pair], reference: Reference) -> DirectObjective:
    """The objective of pairs with what the starting model said of them."""
    import torch

    tokens = [[getattr(pair, side).trained_tokens for pair in pairs] for side in ("chosen", "rejected")]
    return DirectObjective(
        config.beta,
        config.preference_loss,
        config.label_smoothing,
        reference.tensors(),
        (torch.tensor(tokens[0], dtype=torch.float64), torch.tensor(tokens[1], dtype=torch.float64)),
        torch.tensor([pair.margin for pair in pairs], dtype=torch.float64),
    )
