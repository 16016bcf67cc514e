"""Sequences of any lengths side by side in one row of tokens, each attending to itself alone: nothing is padded.

Every other layer of a transformer works on one token at a time, so attention is all that has to know where a sequence
begins. `install` gives a model of Hugging Face's the attention of this module; `attending` says, for the time of one
forward pass, how the tokens of the row belong together.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tinkertools.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "tinkertools_packed"


@dataclass(frozen=True)
class Rules:
    """How a layer's attention differs from the plain one.

    Attributes:
        scaling: what scores are multiplied by.
        window: the most keys, its own among them, that a query sees; None: all before it.
        softcap: scores s become softcap · tanh(s / softcap) where it is not None (Gemma 2).
        sinks: a score for each head that takes its share and gives nothing (gpt-oss), (heads,).
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


class Attention(Protocol):
    """Which keys the queries of a row see."""

    def attend(
        self, layer: int, query_H_N_D: torch.Tensor, key_K_N_D: torch.Tensor, value_K_N_D: torch.Tensor, rules: Rules
    ) -> torch.Tensor:
        """The attended values (heads, N, dimension) of the row's N tokens; there may be fewer key heads (K) than H."""


class Packed:
    """Whole sequences of the given lengths, one after the other."""

    def __init__(self, lengths: Sequence[int]) -> None:
        # Neighbours of one length are one batch.
        self._runs = [(length, sum(1 for _ in run)) for length, run in groupby(lengths)]
        self._sizes = [length * count for length, count in self._runs]

    def attend(
        self, layer: int, query_H_N_D: torch.Tensor, key_K_N_D: torch.Tensor, value_K_N_D: torch.Tensor, rules: Rules
    ) -> torch.Tensor:
        """Causal attention within each sequence."""
        parts = zip(*(x.split(self._sizes, dim=1) for x in (query_H_N_D, key_K_N_D, value_K_N_D)), strict=True)
        found = []
        for (length, count), part in zip(self._runs, parts, strict=True):
            # (heads, count · length, dimension) as a batch of `count`.
            q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in part)
            found.append(causal_attention(q, k, v, rules).transpose(0, 1).flatten(1, 2))
        return torch.cat(found, dim=1) if len(found) > 1 else found[0]


def causal_attention(
    query_B_H_Q_D: torch.Tensor, key_B_K_T_D: torch.Tensor, value_B_K_T_D: torch.Tensor, rules: Rules
) -> torch.Tensor:
    """Attention of the last Q of T tokens to themselves and all before them, (B, H, Q, D)."""
    queries, keys = query_B_H_Q_D.shape[2], key_B_K_T_D.shape[2]
    whole = rules.window is None or rules.window >= keys
    if rules.softcap is None and rules.sinks is None and whole and queries in (1, keys):
        return _sdpa(query_B_H_Q_D, key_B_K_T_D, value_B_K_T_D, rules.scaling, causal=queries > 1)
    at = torch.arange(keys - queries, keys, device=key_B_K_T_D.device)[:, None]
    behind = at - torch.arange(keys, device=key_B_K_T_D.device)
    seen_Q_T = (behind >= 0) & (behind < (rules.window or keys))
    return masked_attention(query_B_H_Q_D, key_B_K_T_D, value_B_K_T_D, seen_Q_T, rules)


def masked_attention(
    query_B_H_Q_D: torch.Tensor,
    key_B_K_T_D: torch.Tensor,
    value_B_K_T_D: torch.Tensor,
    seen: torch.Tensor,
    rules: Rules,
) -> torch.Tensor:
    """Attention to the keys where `seen`, which broadcasts to (B, 1, Q, T), is True: (B, H, Q, D).

    The layer's window is the caller's to put into `seen`.
    """
    if rules.softcap is None and rules.sinks is None:
        return _sdpa(query_B_H_Q_D, key_B_K_T_D, value_B_K_T_D, rules.scaling, mask=seen)
    heads, key_heads = query_B_H_Q_D.shape[1], key_B_K_T_D.shape[1]
    k, v = (x.repeat_interleave(heads // key_heads, dim=1) for x in (key_B_K_T_D, value_B_K_T_D))
    scores = (query_B_H_Q_D @ k.transpose(-1, -2)).float() * rules.scaling
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    scores = scores.masked_fill(~seen, -math.inf)
    if rules.sinks is not None:
        sinks = rules.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    shares = scores.softmax(-1)[..., : k.shape[2]]
    return shares.to(v.dtype) @ v


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, *, mask: Any = None, causal: bool = False
) -> torch.Tensor:
    if mask is not None and mask.ndim < 4:
        mask = mask.expand(q.shape[0], 1, q.shape[2], k.shape[2])
    found: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return found


_current: ContextVar[Attention] = ContextVar("attention of the forward pass that runs")


@contextmanager
def attending(attention: Attention) -> Iterator[None]:
    """Forward passes within attend as `attention` says; their input is one row of tokens, (1, N)."""
    before = _current.set(attention)
    try:
        yield
    finally:
        _current.reset(before)


def install(model: "PreTrainedModel") -> None:
    """Give a model this module's attention, and make sure that this is all its sequences need to be kept apart.

    Raises:
        ModelError: tokens of one sequence reach another all the same: in layers that are no attention, or in positions
            that the model counts by itself.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    decoder: Any = model.get_decoder()
    embeddings: Any = model.get_input_embeddings()
    ids = torch.arange(24, device=model.device) % int(embeddings.weight.shape[0])
    with torch.no_grad():
        expected = [decoder(input_ids=part[None], use_cache=False).last_hidden_state[0] for part in ids.split([9, 15])]
        refusal = ModelError(
            f"{model.name_or_path}: a {type(model).__name__} cannot keep sequences apart that are side by side, which "
            "the embedded engine needs",
            hint="train it on a Tinker server",
        )
        try:
            model.set_attn_implementation(_NAME)
            positions = torch.cat([torch.arange(9), torch.arange(15)]).to(model.device)
            with attending(Packed([9, 15])):
                output = decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        except (LookupError, NotImplementedError, TypeError, ValueError) as error:
            raise refusal from error
    wanted, found = torch.cat(expected).float(), output.last_hidden_state[0].float()
    # The two ways differ in the order of their sums only: half of the digits of the weights' type is far from it.
    if not float((wanted - found).norm() / wanted.norm()) <= torch.finfo(model.dtype).eps ** 0.5:
        raise refusal


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of Hugging Face's models: (1, heads, N, dimension) to (1, N, heads, dimension)."""
    rules = Rules(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    layer: Any = module.layer_idx
    found_H_N_D = _current.get().attend(layer, query[0], key[0], value[0], rules)
    return found_H_N_D.transpose(0, 1)[None], None
