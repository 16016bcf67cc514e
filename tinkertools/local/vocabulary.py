"""The product with the vocabulary: most of the work of a small model, and most of its memory if it is done plainly.

With logits z = W h, the gradient of log p(t) with respect to h is W[t] − Σ_v softmax(z)_v W[v]: attention over the
vocabulary, with the rows of W as its keys and values. So it is computed as attention is (Milakov and Gimelshein,
https://arxiv.org/abs/1805.02867; Dao et al., https://arxiv.org/abs/2205.14135): tile by tile of the vocabulary, in one
pass, with a running maximum and sum. Logits exist for one tile at a time, nothing is computed twice, and every loss
that is made of logprobs is served, since its gradient is a factor for each position.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tinkertools.local import threads

# Positions and token ids of a tile of logits on a processor (1 MB: its cache), and logits held at once elsewhere.
_ROWS = 256
_COLUMNS = 1024
_LOGITS = 1 << 26
# Of a trained output layer the shares of all tokens are kept until its gradient is done: this many at once.
_KEPT = 1 << 25

TokenLosses = Callable[[torch.Tensor, slice], torch.Tensor]


@dataclass(frozen=True)
class OutputLayer:
    """Logits are W h + bias + scale · B A h.

    Attributes:
        weight: W (vocabulary, hidden), without a gradient.
        bias: (vocabulary,).
        a, b: the adapter's factors (rank, hidden) and (vocabulary, rank), where it has some.
        scale: of the adapter's product.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    scale: float = 0.0


@dataclass(frozen=True)
class Gradient:
    """Of some positions: their logprobs (N,), float32, and the loss's gradient with respect to what is trained.

    Attributes:
        hidden: with respect to the hidden states, (N, hidden), of their type.
        a, b: with respect to the adapter's factors of the output layer, where it has some.
    """

    logprobs: torch.Tensor
    hidden: torch.Tensor
    a: torch.Tensor | None
    b: torch.Tensor | None


def token_logprobs(layer: OutputLayer, hidden_N_D: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """log p(target) at each position, float32 (N,), without a gradient."""

    @torch.no_grad()
    def compute(rows: slice) -> torch.Tensor:
        hidden, targets = hidden_N_D[rows], targets_N[rows]
        low = _low(layer, hidden)
        return _target_logits(layer, hidden, low, targets) - _Softmax(layer, hidden, low, averages=False).logsumexp

    return torch.cat(list(threads.each(compute, _slices(hidden_N_D, layer, kept=False), hidden_N_D.device)))


def loss_backward(
    layer: OutputLayer, hidden_N_D: torch.Tensor, targets_N: torch.Tensor, token_losses: TokenLosses
) -> Gradient:
    """The gradient of a sum of losses of positions.

    `token_losses` gives the losses of a slice of the positions from their logprobs.
    """
    trained = layer.b is not None

    def compute(rows: slice) -> Gradient:
        hidden, targets = hidden_N_D[rows], targets_N[rows]
        with torch.no_grad():
            low = _low(layer, hidden)
            softmax = _Softmax(layer, hidden, low, averages=True, keep=trained)
            logprobs = _target_logits(layer, hidden, low, targets) - softmax.logsumexp
        with torch.enable_grad():
            leaf = logprobs.detach().requires_grad_()
            losses = token_losses(leaf, rows)
            (factors,) = torch.autograd.grad(losses.sum(), leaf) if losses.requires_grad else (torch.zeros_like(leaf),)
        with torch.no_grad():
            gradient = (layer.weight[targets].float() - softmax.mean_weight) * factors[:, None]
            if layer.a is None or layer.b is None or low is None or softmax.mean_b is None:
                return Gradient(logprobs, gradient.to(hidden.dtype), None, None)
            of_low = (layer.b[targets] - softmax.mean_b) * (layer.scale * factors)[:, None]
            b = softmax.products(low * (-layer.scale * factors)[:, None])
            b.index_add_(0, targets, low * (layer.scale * factors)[:, None])
            gradient += of_low @ layer.a
            return Gradient(logprobs, gradient.to(hidden.dtype), of_low.T @ hidden.float(), b)

    hidden_N_D = hidden_N_D.detach()
    logprobs, gradients = [], []
    of_a = of_b = None
    for part in threads.each(compute, _slices(hidden_N_D, layer, kept=trained), hidden_N_D.device):
        logprobs.append(part.logprobs)
        gradients.append(part.hidden)
        # In the order of the slices: sums are the same to the bit, whichever thread was first.
        of_a = part.a if of_a is None or part.a is None else of_a.add_(part.a)
        of_b = part.b if of_b is None or part.b is None else of_b.add_(part.b)
    return Gradient(torch.cat(logprobs), torch.cat(gradients), of_a, of_b)


class _Softmax:
    """The softmax over the vocabulary at some positions, without its values.

    Attributes:
        logsumexp: of the logits, (n,).
        mean_weight: the rows of W averaged by the softmax, (n, hidden), if `averages`.
        mean_b: the rows of B averaged by it, (n, rank), if there is a B.
    """

    def __init__(
        self,
        layer: OutputLayer,
        hidden_n_D: torch.Tensor,
        low_n_R: torch.Tensor | None,
        *,
        averages: bool,
        keep: bool = False,
    ) -> None:
        n, device = len(hidden_n_D), hidden_n_D.device
        vocabulary, width = layer.weight.shape
        columns = min(vocabulary, _COLUMNS if device.type == "cpu" else max(1, _LOGITS // n))
        buffer = torch.empty(n * (vocabulary if keep else columns), device=device)
        highest = torch.full((n, 1), -torch.inf, device=device)
        total = torch.zeros(n, 1, device=device)
        mean_weight = torch.zeros(n, width if averages else 0, device=device)
        rank = layer.b.shape[1] if layer.b is not None and averages else 0
        mean_b = torch.zeros(n, rank, device=device)
        self._tiles: list[tuple[slice, torch.Tensor, torch.Tensor]] = []
        for start in range(0, vocabulary, columns):
            tile = slice(start, min(start + columns, vocabulary))
            weight = layer.weight[tile]
            count = len(weight)
            at = n * start if keep else 0
            values = _product(hidden_n_D, weight.T, buffer[at : at + n * count].view(n, count))
            if layer.bias is not None:
                values += layer.bias[tile]
            if layer.b is not None and low_n_R is not None:
                values.addmm_(low_n_R, layer.b[tile].T, alpha=layer.scale)
            higher = torch.maximum(highest, values.amax(1, keepdim=True))
            values.sub_(higher).exp_()
            shrink = (highest - higher).exp_()
            total.mul_(shrink).add_(values.sum(1, keepdim=True))
            if averages:
                _add_product(mean_weight.mul_(shrink), values, weight)
            if layer.b is not None and rank:
                mean_b.mul_(shrink).addmm_(values, layer.b[tile])
            highest = higher
            if keep:
                self._tiles.append((tile, values, higher))
        self.logsumexp = (total.log() + highest)[:, 0]
        self.mean_weight = mean_weight / total
        self.mean_b = mean_b / total if rank else None
        self._vocabulary = vocabulary

    def products(self, low_n_R: torch.Tensor) -> torch.Tensor:
        """softmaxᵀ · `low_n_R`, (vocabulary, rank), of a softmax that was kept."""
        found = torch.empty(self._vocabulary, low_n_R.shape[1], device=low_n_R.device)
        for tile, values, highest in self._tiles:
            # What a tile holds is exp(logit − the maximum when it was made).
            torch.mm(values.T, low_n_R * (highest - self.logsumexp[:, None]).exp(), out=found[tile])
        return found


def _slices(hidden_N_D: torch.Tensor, layer: OutputLayer, *, kept: bool) -> list[slice]:
    """Positions that are computed together, at least one slice."""
    count, vocabulary = len(hidden_N_D), len(layer.weight)
    if hidden_N_D.device.type != "cpu":
        size = max(1, _LOGITS // vocabulary)
    else:
        size = min(_ROWS, max(16, _KEPT // vocabulary)) if kept else _ROWS
        # Even shares: the last thread should not work alone.
        size = max(1, min(size, -(-count // threads.count(hidden_N_D.device))))
    return [slice(start, start + size) for start in range(0, max(count, 1), size)]


def _low(layer: OutputLayer, hidden_n_D: torch.Tensor) -> torch.Tensor | None:
    """A h, (n, rank)."""
    return None if layer.a is None else hidden_n_D.float() @ layer.a.T


def _target_logits(
    layer: OutputLayer, hidden_n_D: torch.Tensor, low_n_R: torch.Tensor | None, targets_n: torch.Tensor
) -> torch.Tensor:
    """The logit of each position's target, (n,)."""
    found: torch.Tensor = torch.linalg.vecdot(hidden_n_D.float(), layer.weight[targets_n].float())
    if layer.bias is not None:
        found = found + layer.bias[targets_n]
    if layer.b is not None and low_n_R is not None:
        found = found + layer.scale * torch.linalg.vecdot(low_n_R, layer.b[targets_n])
    return found


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """a · b into `out`, float32 whatever the factors' type."""
    if a.dtype == b.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    return out.copy_(_wide_product(a.to(b.dtype), b))


def _add_product(to: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a · b added to the float32 tensor `to`, `a` rounded to `b`'s type."""
    return to.addmm_(a, b) if b.dtype == torch.float32 else to.add_(_wide_product(a.to(b.dtype), b))


def _wide_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a · b of a narrow type with a float32 result, where the device can; else rounded on the way."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.device.type == "cuda" else torch.mm(a, b).float()
