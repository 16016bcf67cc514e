"""Losses over hidden states, in chunks: logits exist for a few positions at a time, and only where there is weight."""

from collections.abc import Callable

import torch

# Elements of float32 logits held at once (64 MB), and the positions that makes for a vocabulary.
_LOGIT_ELEMENTS = 1 << 24

Logits = Callable[[torch.Tensor], torch.Tensor]


def chunk_rows(vocabulary: int) -> int:
    """How many positions' logits are computed at once."""
    return max(1, _LOGIT_ELEMENTS // vocabulary)


def token_logprobs(logits: Logits, hidden_N_D: torch.Tensor, targets_N: torch.Tensor, chunk: int) -> torch.Tensor:
    """log p(target) at each position, float32 (N,), without a gradient."""
    parts = [
        -torch.nn.functional.cross_entropy(logits(hidden), targets, reduction="none")
        for hidden, targets in zip(hidden_N_D.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(0)


def cross_entropy_backward(
    logits: Logits, hidden_N_D: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Backward of Σ −log p(target) · weight, one chunk at a time.

    Each chunk's logits, loss and gradient are computed together and dropped, so nothing of size positions × vocabulary
    outlives its chunk and nothing is computed twice. Gradients of the output layer's own parameters are accumulated.

    Returns:
        The logprobs (N,) without a gradient, and the loss's gradient with respect to `hidden_N_D` (N, hidden).
    """
    logprobs: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for hidden, targets, weights in zip(
        hidden_N_D.detach().split(chunk), targets_N.split(chunk), weights_N.split(chunk), strict=True
    ):
        hidden.requires_grad_()
        nll = torch.nn.functional.cross_entropy(logits(hidden), targets, reduction="none")
        (nll * weights).sum().backward()
        assert hidden.grad is not None
        logprobs.append(-nll.detach())
        gradients.append(hidden.grad)
    return torch.cat(logprobs), torch.cat(gradients)
