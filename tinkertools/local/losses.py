"""The losses of Tinker's API: what each makes of the logprobs of target tokens.

All are sums over tokens, as published at https://tinker-docs.thinkingmachines.ai/tinker/losses (a page for each under
it). Every loss takes optional `weights`, which multiply its tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tinkertools.local.failures import BadRequest
from tinkertools.loss_settings import LOSS_SETTINGS

Inputs = Mapping[str, torch.Tensor]
Settings = Mapping[str, float]


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
    token_losses: Callable[[torch.Tensor, Inputs, Settings], torch.Tensor]
    wanted: Callable[[Inputs], torch.Tensor]


def _cross_entropy(logprobs: torch.Tensor, inputs: Inputs, _: Settings) -> torch.Tensor:
    """https://tinker-docs.thinkingmachines.ai/tinker/losses/cross-entropy: -log p · weight."""
    return -logprobs * inputs["weights"]


def _importance_sampling(logprobs: torch.Tensor, inputs: Inputs, _: Settings) -> torch.Tensor:
    """https://tinker-docs.thinkingmachines.ai/tinker/losses/importance-sampling: -(p / q) · advantage."""
    ratio = torch.exp(logprobs - inputs["logprobs"])
    return -ratio * inputs["advantages"] * inputs["weights"]


def _ppo(logprobs: torch.Tensor, inputs: Inputs, settings: Settings) -> torch.Tensor:
    """https://tinker-docs.thinkingmachines.ai/tinker/losses/ppo: the smaller of clipped and unclipped objective."""
    low, high, advantages = settings["clip_low_threshold"], settings["clip_high_threshold"], inputs["advantages"]
    difference = logprobs - inputs["logprobs"]
    ratio = torch.exp(difference.detach())
    # Where the clipped objective is the smaller one, the token's loss is a constant. Its ratio stays out of the graph
    # there: however large it is, it must not turn a gradient of zero into NaN.
    constant = torch.where(advantages > 0, ratio > high, ratio < low)
    kept = torch.exp(torch.where(constant, 0.0, difference))
    return -torch.where(constant, ratio.clamp(low, high), kept) * advantages * inputs["weights"]


def _cispo(logprobs: torch.Tensor, inputs: Inputs, settings: Settings) -> torch.Tensor:
    """https://tinker-docs.thinkingmachines.ai/tinker/losses/cispo: -(clipped p / q, a constant) · log p · advantage."""
    ratio = torch.exp(logprobs.detach() - inputs["logprobs"])
    clipped = ratio.clamp(settings["clip_low_threshold"], settings["clip_high_threshold"])
    return -clipped * logprobs * inputs["advantages"] * inputs["weights"]


def _dro(logprobs: torch.Tensor, inputs: Inputs, settings: Settings) -> torch.Tensor:
    """https://tinker-docs.thinkingmachines.ai/tinker/losses/dro: -(log p · advantage - beta / 2 · (log p / q)²)."""
    penalty = 0.5 * settings["beta"] * (logprobs - inputs["logprobs"]) ** 2
    return -(logprobs * inputs["advantages"] - penalty) * inputs["weights"]


def _weighted(inputs: Inputs) -> torch.Tensor:
    return inputs["weights"] != 0


def _weighted_advantage(inputs: Inputs) -> torch.Tensor:
    return (inputs["weights"] != 0) & (inputs["advantages"] != 0)


_POLICY = ("logprobs", "advantages", "weights")
_ONES = {"weights": 1.0}

LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(("weights",), _ONES, _cross_entropy, _weighted),
    "importance_sampling": Loss(_POLICY, _ONES, _importance_sampling, _weighted_advantage),
    "ppo": Loss(_POLICY, _ONES, _ppo, _weighted_advantage),
    "cispo": Loss(_POLICY, _ONES, _cispo, _weighted_advantage),
    # The penalty pulls on tokens without an advantage, too.
    "dro": Loss(_POLICY, _ONES, _dro, _weighted),
}


def loss_named(name: str) -> Loss:
    """The loss of that name.

    Raises:
        BadRequest: there is none.
    """
    if name not in LOSSES:
        raise BadRequest(
            f"the loss {name!r} is not in the embedded engine",
            hint=f"use {', '.join(LOSSES)}, or forward_backward_custom",
        )
    return LOSSES[name]


def settings_of(name: str, config: Mapping[str, float | str] | None) -> dict[str, float]:
    """The settings of a loss by its defaults and a `loss_fn_config`.

    Raises:
        BadRequest: a key that it does not have, a value that is no number of 0 or more, thresholds in the wrong order.
    """
    loss_named(name)
    known = LOSS_SETTINGS[name]
    given = dict(config or {})
    if unknown := sorted(map(str, given.keys() - known.keys())):
        takes = f"takes only {', '.join(known)}" if known else "takes none"
        raise BadRequest(f"loss_fn_config of {name}: {', '.join(unknown)} is unknown", hint=f"{name} {takes}")
    found: dict[str, float] = {}
    for key, default in known.items():
        value = given.get(key, default)
        if value is None:
            raise BadRequest(f"{name} needs {key}", hint=f"give loss_fn_config={{{key!r}: a number}}")
        if isinstance(value, bool | str) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise BadRequest(f"loss_fn_config of {name}: {key} is {value!r}, but must be a number of 0 or more")
        found[key] = float(value)
    if found.get("clip_low_threshold", 0.0) > found.get("clip_high_threshold", math.inf):
        raise BadRequest(
            f"loss_fn_config of {name}: clip_low_threshold {found['clip_low_threshold']} is above "
            f"clip_high_threshold {found['clip_high_threshold']}"
        )
    return found


def total(loss: Loss, settings: Settings, logprobs: Sequence[torch.Tensor], inputs: Sequence[Inputs]) -> float:
    """The loss summed over all tokens of all datums: `logprobs` (T,) and `inputs` (T,) of each.

    Raises:
        BadRequest: a token's loss, or its gradient, is not a finite number; the message says which.
    """
    flat = {name: torch.cat([one[name] for one in inputs]) for name in loss.inputs}
    wanted = loss.wanted(flat)
    found = torch.cat(list(logprobs))[wanted].detach().requires_grad_()
    with torch.enable_grad():
        losses = loss.token_losses(found, {name: values[wanted] for name, values in flat.items()}, settings)
        (gradient,) = torch.autograd.grad(losses.sum(), found)
    finite = torch.isfinite(losses.detach()) & torch.isfinite(gradient)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        place = int(wanted.nonzero()[first])
        at, token = _place(place, [len(values) for values in logprobs])
        values = {"log p": found.detach()[first], **{name: values[place] for name, values in flat.items()}}
        words = ", ".join(f"{name} {float(value):g}" for name, value in values.items())
        raise BadRequest(f"data[{at}]: the loss or its gradient is not finite at token {token} ({words})")
    return float(losses.detach().double().sum())


def _place(place: int, lengths: Sequence[int]) -> tuple[int, int]:
    """The datum and the token of a place in all of them, one after the other."""
    at = 0
    while place >= lengths[at]:
        place -= lengths[at]
        at += 1
    return at, place
