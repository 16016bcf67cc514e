"""The next token of each of many answers: the likeliest, or a draw from what temperature, top-k and top-p leave."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Elements of a matrix of probabilities that are worked on at once.
_ELEMENTS = 1 << 24
# Of the likeliest tokens, how many are looked at first; a draw that may need more looks again at so many times more.
_CANDIDATES = 256
_MORE = 16


@dataclass(frozen=True)
class Choice:
    """How an answer's tokens are chosen. Each draw takes one uniform number of the generator, on the CPU.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: of how many of the likeliest tokens; all where it is not positive.
        top_p: of the fewest tokens whose probabilities reach it, among those that top-k leaves.
        generator: the answer's own, so that a draw does not depend on what else is drawn.
    """

    temperature: float
    top_k: int
    top_p: float
    generator: torch.Generator


def choose(logits_B_V: torch.Tensor, choices: Sequence[Choice]) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row (B,) and its logprob under the model itself, whatever the temperature (B,)."""
    tokens_B = logits_B_V.argmax(-1)
    drawn = [i for i, choice in enumerate(choices) if choice.temperature > 0]
    size = max(1, _ELEMENTS // logits_B_V.shape[1])
    for start in range(0, len(drawn), size):
        rows = drawn[start : start + size]
        # Rows in their order are a view where they are all: the usual case.
        logits = logits_B_V if len(rows) == len(logits_B_V) else logits_B_V[torch.tensor(rows, device=tokens_B.device)]
        tokens_B[torch.tensor(rows, device=tokens_B.device)] = _draw(logits, [choices[i] for i in rows])
    logprobs_B = logits_B_V.gather(-1, tokens_B[:, None])[:, 0] - logits_B_V.logsumexp(-1)
    return tokens_B, logprobs_B


def draws(logits_B_V: torch.Tensor, temperature: float, points_B_K: torch.Tensor) -> torch.Tensor:
    """Draws (B, K) from each row's whole distribution, for points that are uniform in [0, 1)."""
    if temperature == 0:
        return logits_B_V.argmax(-1, keepdim=True).expand(points_B_K.shape)
    scale = torch.full((len(logits_B_V), 1), temperature, device=logits_B_V.device)
    return _at(_probabilities(logits_B_V, scale).cumsum(-1), points_B_K)


def _draw(logits_B_V: torch.Tensor, choices: list[Choice]) -> torch.Tensor:
    device = logits_B_V.device
    points_B_1 = _points(choices).to(device)
    temperatures = torch.tensor([[choice.temperature] for choice in choices], device=device)
    probabilities_B_V = _probabilities(logits_B_V, temperatures)
    whole = [choice.top_k <= 0 and choice.top_p >= 1 for choice in choices]
    if all(whole):
        return _at(probabilities_B_V.cumsum(-1), points_B_1)[:, 0]
    found = torch.empty(len(choices), dtype=torch.long, device=device)
    for kind in (True, False):
        rows = [i for i, is_whole in enumerate(whole) if is_whole is kind]
        at = torch.tensor(rows, dtype=torch.long, device=device)
        if kind and rows:
            found[at] = _at(probabilities_B_V[at].cumsum(-1), points_B_1[at])[:, 0]
        elif rows:
            top = torch.tensor([[choices[i].top_k] for i in rows], device=device)
            reach = torch.tensor([[choices[i].top_p] for i in rows], dtype=torch.float64, device=device)
            found[at] = _among_the_likeliest(probabilities_B_V[at], points_B_1[at], top, reach, _CANDIDATES)
    return found


def _points(choices: list[Choice]) -> torch.Tensor:
    """A uniform number for each, (B, 1)."""
    points = [torch.rand((), generator=choice.generator, dtype=torch.float64) for choice in choices]
    return torch.stack(points)[:, None]


def _among_the_likeliest(
    probabilities_B_V: torch.Tensor,
    points_B_1: torch.Tensor,
    top_B_1: torch.Tensor,
    reach_B_1: torch.Tensor,
    width: int,
) -> torch.Tensor:
    vocabulary = probabilities_B_V.shape[1]
    width = min(width, vocabulary)
    # Of equally likely tokens the one of the lower id comes first, so that it is always the same that are kept: the
    # bits of a positive number are in its order, and the id fills those that float32 does not have.
    ids = torch.arange(vocabulary - 1, -1, -1, device=probabilities_B_V.device)
    keys = (probabilities_B_V.float().view(torch.int32).long() << 32) | ids
    order_B_W = vocabulary - 1 - (keys.topk(width).values & 0xFFFFFFFF)
    reached_B_W = probabilities_B_V.gather(-1, order_B_W).cumsum(-1)
    top_B_1 = torch.where(top_B_1 <= 0, vocabulary, top_B_1).clamp(max=vocabulary)
    whole_B_1 = probabilities_B_V.sum(-1, keepdim=True)
    left_B_1 = torch.where(top_B_1 <= width, reached_B_W.gather(-1, top_B_1.clamp(max=width) - 1), whole_B_1)
    kept_B_1 = (reached_B_W / left_B_1 < reach_B_1).sum(-1, keepdim=True) + 1
    kept_B_1 = torch.where(reach_B_1 >= 1, top_B_1, torch.minimum(kept_B_1, top_B_1))
    # A top-k beyond the width has renormalised by too much.
    unsure = ((kept_B_1 > width) | ((top_B_1 > width) & (top_B_1 < vocabulary)))[:, 0]
    kept_B_1 = kept_B_1.clamp(max=width)
    mass_B_1 = reached_B_W.gather(-1, kept_B_1 - 1)
    at_B_1 = torch.minimum(torch.searchsorted(reached_B_W, points_B_1 * mass_B_1, right=True), kept_B_1 - 1)
    found = order_B_W.gather(-1, at_B_1)[:, 0]
    if width < vocabulary and bool(unsure.any()):
        found[unsure] = _among_the_likeliest(
            probabilities_B_V[unsure], points_B_1[unsure], top_B_1[unsure], reach_B_1[unsure], width * _MORE
        )
    return found


def _probabilities(logits_B_V: torch.Tensor, temperatures_B_1: torch.Tensor) -> torch.Tensor:
    """In float64, of float32's values."""
    # The largest becomes 0 before the division, which no temperature makes infinite then.
    scaled = (logits_B_V - logits_B_V.amax(-1, keepdim=True)) / temperatures_B_1.clamp(min=1e-30)
    return torch.softmax(scaled, dim=-1).double()


def _at(cumulative_B_V: torch.Tensor, points_B_K: torch.Tensor) -> torch.Tensor:
    """For each point the first index whose cumulative probability is beyond it, as a share of the last."""
    total_B_1 = cumulative_B_V[:, -1:]
    # The product may round up to the total itself, which lies behind all that can be drawn.
    points = torch.minimum(points_B_K * total_B_1, torch.nextafter(total_B_1, torch.zeros_like(total_B_1)))
    return torch.searchsorted(cumulative_B_V, points.contiguous(), right=True)
