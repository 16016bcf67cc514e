"""The losses of Tinker's API: what each makes of the logprobs of target tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss that is a sum over tokens.

    Attributes:
        inputs: the names of what a datum brings for it beside `target_tokens`; all are float32 (T,).
        optional: of those, the ones that a datum may leave out, and what stands for each of their values then.
        token_losses: logprobs (N,), inputs (N,) and settings to each token's loss (N,), differentiable in logprobs.
        wanted: which tokens (N,) of these inputs the loss depends on; the others are not computed.
    """

    inputs: tuple[str, ...]
    optional: Mapping[str, float]
    token_losses: Callable[[torch.Tensor, Inputs, Mapping[str, float]], torch.Tensor]
    wanted: Callable[[Inputs], torch.Tensor]


def _cross_entropy(logprobs: torch.Tensor, inputs: Inputs, _: Mapping[str, float]) -> torch.Tensor:
    return -logprobs * inputs["weights"]


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(("weights",), {"weights": 1.0}, _cross_entropy, lambda inputs: inputs["weights"] != 0),
}
