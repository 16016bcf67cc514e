"""Forward and backward passes over datums that are checked: the arithmetic of the training client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tinkertools.local import vocabulary
from tinkertools.local.losses import Loss
from tinkertools.local.model import BaseModel
from tinkertools.local.packing import Packed

# Tokens, padding included, that go through the model at once; a larger request is computed in parts.
_TOKEN_BUDGET = 8192
# From this many tokens on, a larger group is no faster a token than two smaller ones; and the padding it may hold.
_BUSY_TOKENS = 1024
_PADDING_SHARE = 0.1


@dataclass(frozen=True)
class Item:
    """A checked datum: `tokens`, `targets` and each of the loss's `inputs` have one length T; inputs are float32."""

    tokens: torch.Tensor
    targets: torch.Tensor
    inputs: Mapping[str, torch.Tensor]


def forward(base: BaseModel, adapter: str | None, items: Sequence[Item]) -> list[torch.Tensor]:
    """log p of every target token of each item, float32 (T,), on the CPU."""
    logprobs: list[torch.Tensor] = [torch.zeros(0)] * len(items)
    chunk = vocabulary.chunk_rows(base.vocabulary)
    with base.using(adapter):
        for part in parts(items):
            base.worker.check()
            for i, hidden_T_D in zip(part, hidden_states(base, [items[i].tokens for i in part]), strict=True):
                targets = items[i].targets.to(base.device)
                found = vocabulary.token_logprobs(base.logits, hidden_T_D, targets, chunk)
                logprobs[i] = found.cpu()
    return logprobs


def backward(
    base: BaseModel, adapter: str, items: Sequence[Item], loss: Loss, settings: Mapping[str, float]
) -> list[torch.Tensor]:
    """Add the gradient of the summed loss to the adapter's; the logprobs as `forward` gives them.

    They are 0.0 where the loss does not want them, for which nothing is computed.
    """
    logprobs: list[torch.Tensor] = [torch.zeros(0)] * len(items)
    with base.using(adapter, train=True):
        for part in parts(items):
            base.worker.check()
            for i, values in zip(part, _backward(base, [items[i] for i in part], loss, settings), strict=True):
                logprobs[i] = values
    return logprobs


def _backward(base: BaseModel, items: list[Item], loss: Loss, settings: Mapping[str, float]) -> list[torch.Tensor]:
    wanted_B_T = pad([loss.wanted(item.inputs) for item in items])
    logprobs_B_T = torch.zeros(wanted_B_T.shape)
    if wanted_B_T.any():
        mask = wanted_B_T.to(base.device)
        hidden_N_D = pad(hidden_states(base, [item.tokens for item in items]))[mask]
        inputs = {name: pad([item.inputs[name] for item in items]).to(base.device)[mask] for name in items[0].inputs}
        logprobs_N, gradient_N_D = vocabulary.loss_backward(
            base.logits,
            hidden_N_D,
            pad([item.targets for item in items]).to(base.device)[mask],
            lambda logprobs, rows: loss.token_losses(logprobs, {k: v[rows] for k, v in inputs.items()}, settings),
            vocabulary.chunk_rows(base.vocabulary),
        )
        if hidden_N_D.requires_grad:
            hidden_N_D.backward(gradient_N_D)
        logprobs_B_T[wanted_B_T] = logprobs_N.cpu()
    return [row[: len(item.tokens)] for row, item in zip(logprobs_B_T, items, strict=True)]


def hidden_states(base: BaseModel, sequences: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The decoder's output (T, hidden) for each sequence; they go through the model side by side."""
    lengths = [len(tokens) for tokens in sequences]
    positions_N = torch.cat([torch.arange(length) for length in lengths])
    tokens_N = torch.cat(list(sequences))
    hidden_N_D = base.hidden_states(tokens_N.to(base.device), positions_N.to(base.device), Packed(lengths))
    return hidden_N_D.split(lengths)


def pad(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of different lengths as one tensor (batch, longest), filled with 0 on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def parts(items: Sequence[Item]) -> list[list[int]]:
    """Indices of the items in groups of like length, each within the token budget, padding included.

    A group that is large enough to keep the processor busy ends where the next item would make its padding costly.
    """
    groups: list[list[int]] = []
    real = 0
    for i in sorted(range(len(items)), key=lambda i: len(items[i].tokens)):
        length = len(items[i].tokens)  # sorted: the newest is the longest of its group
        padded = length * (len(groups[-1]) + 1) if groups else 0
        wasteful = real >= _BUSY_TOKENS and padded - real - length > _PADDING_SHARE * padded
        if not groups or padded > _TOKEN_BUDGET or wasteful:
            groups.append([])
            real = 0
        groups[-1].append(i)
        real += length
    return groups
