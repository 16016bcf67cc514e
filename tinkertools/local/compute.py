"""Forward and backward passes over datums that are checked: the arithmetic of the training client."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tinkertools.local import vocabulary
from tinkertools.local.losses import Loss
from tinkertools.local.model import BaseModel
from tinkertools.local.packing import Packed


@dataclass(frozen=True)
class Item:
    """A checked datum: `tokens`, `targets` and each of the loss's `inputs` have one length T; inputs are float32."""

    tokens: torch.Tensor
    targets: torch.Tensor
    inputs: Mapping[str, torch.Tensor]


def forward(base: BaseModel, adapter: str | None, items: Sequence[Item]) -> list[torch.Tensor]:
    """log p of every target token of each item, float32 (T,), on the CPU."""
    logprobs = [torch.zeros(0)] * len(items)
    computed = [i for i, item in enumerate(items) if len(item.tokens)]
    with base.using(adapter):
        layer = base.output_layer(adapter)
        for part in parts([len(items[i].tokens) for i in computed], base.budget.forward):
            base.worker.check()
            here = computed[part]
            hidden_N_D = _hidden_states(base, [items[i].tokens for i in here])
            targets_N = torch.cat([items[i].targets for i in here]).to(base.device)
            found_N = vocabulary.token_logprobs(layer, hidden_N_D, targets_N).cpu()
            for i, values in zip(here, found_N.split([len(items[i].tokens) for i in here]), strict=True):
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
    ends = [int(mask.nonzero().max()) + 1 if mask.any() else 0 for mask in wanted]
    computed = [i for i, end in enumerate(ends) if end]
    with base.using(adapter, train=True):
        layer = base.output_layer(adapter)
        for part in parts([ends[i] for i in computed], base.budget.backward(base.bytes_per_token)):
            base.worker.check()
            here = computed[part]
            hidden_N_D = _hidden_states(base, [items[i].tokens[: ends[i]] for i in here])
            mask_N = torch.cat([wanted[i][: ends[i]] for i in here]).to(base.device)
            hidden_M_D = hidden_N_D[mask_N]
            inputs = {
                name: torch.cat([items[i].inputs[name][wanted[i]] for i in here]).to(base.device)
                for name in items[0].inputs
            }

            def token_losses(
                found: torch.Tensor, rows: slice, inputs: dict[str, torch.Tensor] = inputs
            ) -> torch.Tensor:
                return loss.token_losses(found, {name: values[rows] for name, values in inputs.items()}, settings)

            targets_M = torch.cat([items[i].targets[wanted[i]] for i in here]).to(base.device)
            found_M, gradient_M_D = vocabulary.loss_backward(layer, hidden_M_D, targets_M, token_losses)
            if hidden_M_D.requires_grad:
                hidden_M_D.backward(gradient_M_D)
            for i, values in zip(here, found_M.cpu().split([int(wanted[i].sum()) for i in here]), strict=True):
                logprobs[i][wanted[i]] = values
    return logprobs


def parts(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Neighbours that together have at most `budget` tokens; longer ones alone."""
    start = total = 0
    for i, length in enumerate(lengths):
        if i > start and total + length > budget:
            yield slice(start, i)
            start, total = i, 0
        total += length
    if start < len(lengths):
        yield slice(start, len(lengths))


def _hidden_states(base: BaseModel, sequences: Sequence[torch.Tensor]) -> torch.Tensor:
    """The decoder's output for sequences that go through the model side by side, (all tokens, hidden)."""
    lengths = [len(tokens) for tokens in sequences]
    tokens_N = torch.cat(list(sequences)).to(base.device)
    positions_N = torch.cat([torch.arange(length) for length in lengths]).to(base.device)
    return base.hidden_states(tokens_N, positions_N, Packed(lengths))
