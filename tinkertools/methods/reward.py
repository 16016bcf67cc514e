"""A reward model: its score of the better answer is to be above that of the other (`tinkertools.scoring`).

The model of Bradley and Terry 1952, "Rank Analysis of Incomplete Block Designs", trained as in Ouyang et al. 2022,
"Training language models to follow instructions with human feedback"; margins are those of Touvron et al. 2023, "Llama
2", eq. 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkertools.chat.examples import Example, RenderError
from tinkertools.chat.pairs import Pair, fit_pairs
from tinkertools.chat.rendering import explain_failures
from tinkertools.config import Overlength, PrepareDefaults, TrainConfig
from tinkertools.data import ReadyPairs, length_limit
from tinkertools.methods.base import Bench
from tinkertools.methods.preferences import (
    Pairwise,
    Preferences,
    find_pair_renderer,
    logistic_loss,
    read_preferences,
    share_right,
)
from tinkertools.reporting import Report, Voice
from tinkertools.scoring import score_tensor, scored_prompts, sides_of

if TYPE_CHECKING:
    from torch import Tensor

    from tinkertools.chat.preferences import Preference
    from tinkertools.chat.rendering import Renderer
    from tinkertools.local.limits import Limits


class ScoredPreferences(Preferences):
    """Preferences whose answers are scored (`Material`)."""

    def ready(self, preferences: "list[Preference]", limits: "Limits", overlength: Overlength) -> ReadyPairs:
        """See `Preferences`."""
        with self.voice.progress("render", len(preferences), "preferences") as report:
            pairs = scored_pairs(self.renderer, preferences, report)
        limit = length_limit(self.config.max_length, limits)
        return ReadyPairs(pairs, fit_pairs(pairs, limit, overlength), limit, checked=0)

    def rehearsed_objective(self) -> "ScoreObjective":
        """See `Preferences`: it needs no other model."""
        return score_objective(self.config.label_smoothing, self.pairs)

    def begin(self, bench: Bench) -> Pairwise:
        """See `Material`."""
        smoothing = self.config.label_smoothing
        held_out = score_objective(smoothing, self.held_out_pairs) if self.held_out_pairs else None
        return self.steps(bench.client, score_objective(smoothing, self.pairs), held_out)


def read(config: TrainConfig, voice: Voice) -> ScoredPreferences:
    """The preferences to train on and those held out.

    Raises:
        DataError: a row cannot be used.
    """
    preferences, held_out = read_preferences(config, voice)
    return ScoredPreferences(config, voice, preferences, held_out, find_pair_renderer(config, voice))


def scored_pairs(renderer: "Renderer", preferences: "Sequence[Preference]", report: Report) -> list[Pair]:
    """Both sides of each preference, each with the question and the token that decides.

    Raises:
        DataError: some have no such form under this renderer.
    """
    asked = [side for preference in preferences for side in sides_of(preference)]
    examples: list[Example] = []
    failed: list[str] = []
    for number, found in enumerate(scored_prompts(renderer, asked)):
        if isinstance(found, RenderError):
            failed.append(f"row {number // 2 + 1}, {'rejected' if number % 2 else 'chosen'}: {found}")
        else:
            examples.append(found)
        report((number + 1) / 2)
    if failed:
        raise explain_failures(failed, renderer.name, PrepareDefaults.errors_shown)
    sides = zip(examples[0::2], examples[1::2], preferences, strict=True)
    return [Pair(good, bad, row.get("margin", 0.0), i) for i, (good, bad, row) in enumerate(sides)]


@dataclass(frozen=True)
class ScoreObjective:
    """−(1−ε) log σ(s_c − s_r − m) − ε log σ(m − s_c + s_r), of the scores of both answers and their margin m.

    The figures are means over pairs: `loss`; `accuracy`, the share with s_c > s_r, ties counting half; `margin`,
    s_c − s_r; `chosen_reward` and `rejected_reward`, the scores.

    Attributes:
        label_smoothing: ε.
        margins: m, float64 (N,).
    """

    label_smoothing: float
    margins: "Tensor"
    figures: tuple[str, ...] = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")

    def __call__(
        self, chosen: "Tensor", rejected: "Tensor", numbers: Sequence[int]
    ) -> "tuple[Tensor, dict[str, float]]":
        """See `Objective`; the sums are the logprobs of the one token that decides."""
        first, second = score_tensor(chosen), score_tensor(rejected)
        difference = first - second
        loss = logistic_loss(difference - self.margins[list(numbers)], self.label_smoothing).mean()
        found = {"margin": difference, "chosen_reward": first, "rejected_reward": second}
        figures = {name: float(values.detach().mean()) for name, values in found.items()}
        return loss, {"loss": float(loss.detach()), "accuracy": share_right(difference.detach()), **figures}


def score_objective(label_smoothing: float, pairs: Sequence[Pair]) -> ScoreObjective:
    """The objective of pairs."""
    import torch

    return ScoreObjective(label_smoothing, torch.tensor([pair.margin for pair in pairs], dtype=torch.float64))
