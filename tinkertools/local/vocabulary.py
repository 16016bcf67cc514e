"""The product with the vocabulary, in chunks: logits exist for a few positions at a time."""

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


def loss_backward(
    logits: Logits,
    hidden_N_D: torch.Tensor,
    targets_N: torch.Tensor,
    token_losses: Callable[[torch.Tensor, slice], torch.Tensor],
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Backward of a sum of losses of tokens, one chunk at a time.

    `token_losses` gives them from the logprobs of a slice of the positions. Each chunk's logits, loss and gradient are
    computed together and dropped, so nothing of size positions × vocabulary outlives its chunk and nothing is computed
    twice. Gradients of the output layer's own parameters are accumulated.

    Returns:
        The logprobs (N,) without a gradient, and the loss's gradient with respect to `hidden_N_D` (N, hidden).
    """
    logprobs: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for start in range(0, len(hidden_N_D), chunk):
        rows = slice(start, start + chunk)
        hidden = hidden_N_D[rows].detach().requires_grad_()
        found = -torch.nn.functional.cross_entropy(logits(hidden), targets_N[rows], reduction="none")
        token_losses(found, rows).sum().backward()
        assert hidden.grad is not None
        logprobs.append(found.detach())
        gradients.append(hidden.grad)
    return torch.cat(logprobs), torch.cat(gradients)
