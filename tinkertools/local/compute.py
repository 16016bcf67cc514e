"""Forward and backward passes over datums that are checked: the arithmetic of the training client."""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeVar

import torch

from tinkertools.local import threads, vocabulary
from tinkertools.local.losses import Loss
from tinkertools.local.model import BaseModel
from tinkertools.local.packing import Packed

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """A checked datum: `tokens`, `targets` and each of the loss's `inputs` have one length T; inputs are float32."""

    tokens: torch.Tensor
    targets: torch.Tensor
    inputs: Mapping[str, torch.Tensor]


def forward(base: BaseModel, adapter: str | None, items: Sequence[Item]) -> list[torch.Tensor]:
    """log p of every target token of each item, float32 (T,), on the CPU."""
    lengths = [len(item.tokens) for item in items]
    logprobs = [torch.zeros(0)] * len(items)
    with base.using(adapter):
        layer = base.output_layer(adapter)

        @torch.no_grad()
        def compute(part: list[int]) -> torch.Tensor:
            base.worker.check()
            hidden_N_D = _hidden_states(base, [items[i].tokens for i in part])
            targets_N = torch.cat([items[i].targets for i in part]).to(base.device)
            return vocabulary.token_logprobs(layer, hidden_N_D, targets_N).cpu()

        found = _in_parts(base, compute, lengths, lengths, base.budget.forward)
        for part, logprobs_N in found:
            for i, values in zip(part, logprobs_N.split([lengths[i] for i in part]), strict=True):
                logprobs[i] = values
    return logprobs


def backward(
    base: BaseModel, adapter: str, items: Sequence[Item], loss: Loss, settings: Mapping[str, float]
) -> list[torch.Tensor]:
    """Add the gradient of the summed loss to the adapter's; the logprobs as `forward` gives them.

    They are 0.0 where the loss does not want them, for which nothing is computed. What follows the last token that it
    wants does not enter it either: attention looks back only.
    """
    logprobs = [torch.zeros(len(item.tokens)) for item in items]
    wanted = [loss.wanted(item.inputs) for item in items]
    counts = [int(mask.sum()) for mask in wanted]
    ends = [int(mask.nonzero().max()) + 1 if mask.any() else 0 for mask in wanted]
    parameters = list(base.adapter_parameters(adapter).values())
    with base.using(adapter, train=True):
        layer = base.output_layer(adapter)

        @torch.enable_grad()
        def compute(part: list[int]) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
            base.worker.check()
            hidden_N_D = _hidden_states(base, [items[i].tokens[: ends[i]] for i in part])
            hidden_M_D = hidden_N_D[torch.cat([wanted[i][: ends[i]] for i in part]).to(base.device)]
            targets_M = torch.cat([items[i].targets[wanted[i]] for i in part]).to(base.device)
            inputs = {
                name: torch.cat([items[i].inputs[name][wanted[i]] for i in part]).to(base.device)
                for name in items[0].inputs
            }
            found = vocabulary.loss_backward(
                layer,
                hidden_M_D,
                targets_M,
                lambda found, rows: loss.token_losses(found, {k: v[rows] for k, v in inputs.items()}, settings),
            )
            return found.logprobs.cpu(), _gradients(hidden_M_D, found, layer, parameters)

        costs = [base.cost(end, count) for end, count in zip(ends, counts, strict=True)]
        for part, (logprobs_M, gradients) in _in_parts(
            base, compute, ends, costs, base.budget.backward(base.bytes_per_token)
        ):
            for i, values in zip(part, logprobs_M.split([counts[i] for i in part]), strict=True):
                logprobs[i][wanted[i]] = values
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return logprobs


def parts(lengths: Sequence[int], costs: Sequence[float], most: int, side_by_side: int) -> list[list[int]]:
    """The indices of items in groups that cost about the same, as few as hold at most `most` tokens each.

    Items without tokens are in none; one that is longer is alone. There are as many groups as are computed side by
    side, or a multiple of it, where there are items enough.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -costs[i])
    rounds = -(-sum(lengths) // (most * side_by_side))
    while order:
        # The dearest first, each to the group that is the cheapest until then.
        groups: list[tuple[float, int, list[int]]] = [(0.0, at, []) for at in range(rounds * side_by_side)]
        for i in order:
            cost, at, group = groups[0]
            heapq.heapreplace(groups, (cost + costs[i], at, [*group, i]))
        found = [sorted(group) for _, _, group in sorted(groups, key=itemgetter(1)) if group]
        if all(len(group) == 1 or sum(lengths[i] for i in group) <= most for group in found):
            return found
        rounds += 1
    return []


def _in_parts(
    base: BaseModel,
    compute: Callable[[list[int]], T],
    lengths: Sequence[int],
    costs: Sequence[float],
    budget: int,
) -> Iterator[tuple[list[int], T]]:
    """Each part of the items, and what `compute` makes of it; no more than `budget` tokens are computed at once."""
    side_by_side = threads.count(base.device)
    found = parts(lengths, costs, max(1, budget // side_by_side), side_by_side)
    return zip(found, threads.each(compute, found, base.device), strict=True) if found else iter(())


def _gradients(
    hidden_M_D: torch.Tensor,
    found: vocabulary.Gradient,
    layer: vocabulary.OutputLayer,
    parameters: Sequence[torch.Tensor],
) -> list[torch.Tensor | None]:
    """The gradient of each of the adapter's parameters, None where the part does not depend on it."""
    gradients: list[torch.Tensor | None] = [None] * len(parameters)
    if hidden_M_D.requires_grad:
        gradients = list(torch.autograd.grad(hidden_M_D, parameters, found.hidden, allow_unused=True))
    for factor, gradient in ((layer.a, found.a), (layer.b, found.b)):
        if factor is not None and gradient is not None:
            gradients[next(i for i, p in enumerate(parameters) if p is factor)] = gradient.to(factor.dtype)
    return gradients


def _hidden_states(base: BaseModel, sequences: Sequence[torch.Tensor]) -> torch.Tensor:
    """The decoder's output for sequences that go through the model side by side, (all tokens, hidden)."""
    lengths = [len(tokens) for tokens in sequences]
    tokens_N = torch.cat(list(sequences)).to(base.device)
    positions_N = torch.cat([torch.arange(length) for length in lengths]).to(base.device)
    return base.hidden_states(tokens_N, positions_N, Packed(lengths))
