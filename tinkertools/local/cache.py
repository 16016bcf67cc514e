"""The keys and values of answers in the making, so that every token goes through the model once.

A cache has slots, one an answer. One pass of the model reads any mix of parts: a piece of a prompt for one slot, the
newest token for another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tinkertools.errors import ModelError
from tinkertools.local.packing import Attention, Packed, Rules, causal_attention, masked_attention

# From a row of tokens, their positions and how they attend to the decoder's output: `BaseModel.hidden_states`.
HiddenStates = Callable[[torch.Tensor, torch.Tensor, Attention], torch.Tensor]


@dataclass(frozen=True)
class Part:
    """Tokens to read for a slot that holds those before them, `start` of them."""

    slot: int
    start: int
    tokens: Sequence[int]

    @property
    def end(self) -> int:
        """How many tokens the slot holds then."""
        return self.start + len(self.tokens)


class Cache:
    """Keys and values of each layer for some slots of some tokens; both numbers grow as they are reserved."""

    def __init__(self, hidden_states: HiddenStates, device: torch.device) -> None:
        self._hidden_states = hidden_states
        self._device = device
        self.slots = self.capacity = 0
        # Keys and values by layer: (slots, key heads, tokens, dimension).
        self.held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Of all layers; 0 before anything is read."""
        return sum(x.shape[1] * x.shape[3] * x.element_size() for pair in self.held.values() for x in pair)

    def reserve(self, slots: int, capacity: int) -> None:
        """Make room for so many tokens in so many slots; what they hold is kept, what other slots hold may not be."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        kept = min(slots, self.slots)
        self.slots, self.capacity = slots, max(capacity, self.capacity)
        for layer in self.held:
            # One layer after the other: the old ones are freed on the way.
            self.held[layer] = tuple(self._grown(x, kept) for x in self.held[layer])  # type: ignore[assignment]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give a slot the first tokens of another."""
        for pair in self.held.values():
            for x in pair:
                x[target, :, :tokens] = x[source, :, :tokens]

    def read(self, parts: Sequence[Part]) -> torch.Tensor:
        """Read the tokens of each part, at most one part a slot: the decoder's output (parts, hidden) for their last.

        The room must be reserved.
        """
        # Single tokens first, then what begins an answer, then what continues one: each kind attends in its own way.
        order = sorted(range(len(parts)), key=lambda i: _kind(parts[i]))
        row = [parts[i] for i in order]
        tokens_N = torch.tensor([token for part in row for token in part.tokens])
        positions_N = torch.tensor([at for part in row for at in range(part.start, part.end)])
        hidden_N_D = self._hidden_states(
            tokens_N.to(self._device), positions_N.to(self._device), _Pass(self, row, self._device)
        )
        ends = torch.tensor([len(part.tokens) for part in row]).cumsum(0) - 1
        places = torch.empty(len(parts), dtype=torch.long)
        places[torch.tensor(order)] = ends
        return hidden_N_D[places.to(self._device)]

    def layer(self, layer: int, key_K_N_D: torch.Tensor, value_K_N_D: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The keys and the values (slots, key heads, tokens, dimension) of a layer, made at the first use."""
        if layer not in self.held:
            self.held[layer] = tuple(  # type: ignore[assignment]
                self._grown(x[None, :, :0], 0) for x in (key_K_N_D, value_K_N_D)
            )
        return self.held[layer]

    def _grown(self, old: torch.Tensor, kept: int) -> torch.Tensor:
        # Zeros, not what memory happens to hold: tokens that are not there are masked, and 0 · NaN is NaN.
        new = old.new_zeros(self.slots, old.shape[1], self.capacity, old.shape[3])
        new[:kept, :, : old.shape[2]] = old[:kept]
        return new


def check(hidden_states: HiddenStates, layers: int, vocabulary: int, device: torch.device, name: str) -> int:
    """Make sure that a model's answers can grow in a cache, and tell the bytes that it takes for a token.

    Raises:
        ModelError: it keeps more of a sequence than the keys and values of attention, as recurrent and convolutional
            layers do.
    """
    ids = [at % vocabulary for at in range(24)]
    parts = [Part(0, 0, ids[:9]), Part(0, 9, ids[9:17]), *(Part(0, at, ids[at : at + 1]) for at in range(17, 24))]
    cache = Cache(hidden_states, device)
    cache.reserve(1, len(ids))
    with torch.no_grad():
        whole_N_D = hidden_states(torch.tensor(ids, device=device), torch.arange(24, device=device), Packed([24]))
        found = torch.cat([cache.read([part]) for part in parts]).float()
    wanted = whole_N_D[[part.end - 1 for part in parts]].float()
    # The two differ in the order of their sums only; half of the digits of the weights' type is far from it.
    close = float((wanted - found).norm() / wanted.norm()) <= torch.finfo(whole_N_D.dtype).eps ** 0.5
    if not close or len(cache.held) != layers:
        raise ModelError(
            f"{name}: layers that keep more of a sequence than the keys and values of attention, such as recurrent or "
            "convolutional ones, are not in the embedded engine",
            hint="use it on a Tinker server",
        )
    return cache.bytes_per_token


def _kind(part: Part) -> int:
    if part.start == 0:
        return 1
    return 0 if len(part.tokens) == 1 else 2


class _Pass:
    """How the tokens of one pass attend: to what their slots hold, and to those before them in their own part."""

    def __init__(self, cache: Cache, parts: Sequence[Part], device: torch.device) -> None:
        self._cache = cache
        self._device = device
        singles = [part for part in parts if _kind(part) == 0]
        self._fresh = [part for part in parts if _kind(part) == 1]
        self._others = [part for part in parts if _kind(part) == 2]
        self._packed = Packed([len(part.tokens) for part in self._fresh])
        self._sizes = [len(singles), sum(len(part.tokens) for part in self._fresh)]
        self._sizes += [len(part.tokens) for part in self._others]
        self._masks: dict[int | None, torch.Tensor] = {}
        if singles:
            # The slots between the first and the last are one piece of memory, read where it is. Those among them
            # that have no single token here ask for nothing in particular, and what they get is dropped.
            self._first = min(part.slot for part in singles)
            self._last = max(part.slot for part in singles) + 1
            self._longest = max(part.end for part in singles)
            at = torch.zeros(self._last - self._first, dtype=torch.long)
            slots = torch.tensor([part.slot for part in singles]) - self._first
            at[slots] = torch.tensor([part.start for part in singles])
            self._ordered = len(singles) == len(at) and bool((slots.diff() == 1).all())
            self._at, self._slots = at.to(device), slots.to(device)

    def attend(
        self, layer: int, query_H_N_D: torch.Tensor, key_K_N_D: torch.Tensor, value_K_N_D: torch.Tensor, rules: Rules
    ) -> torch.Tensor:
        """Keep the keys and values, and attend."""
        keys, values = self._cache.layer(layer, key_K_N_D, value_K_N_D)
        parts = zip(*(x.split(self._sizes, dim=1) for x in (query_H_N_D, key_K_N_D, value_K_N_D)), strict=True)
        found = []
        q, k, v = next(parts)
        if self._sizes[0]:
            slots = self._slots + self._first
            at = self._at[self._slots]
            keys[slots, :, at] = k.transpose(0, 1)
            values[slots, :, at] = v.transpose(0, 1)
            found.append(self._singles(q, keys, values, rules))
        q, k, v = next(parts)
        if self._fresh:
            start = 0
            for part in self._fresh:
                end = start + len(part.tokens)
                keys[part.slot, :, : part.end] = k[:, start:end]
                values[part.slot, :, : part.end] = v[:, start:end]
                start = end
            found.append(self._packed.attend(layer, q, k, v, rules))
        for part, (q, new_k, new_v) in zip(self._others, parts, strict=True):
            keys[part.slot, :, part.start : part.end] = new_k
            values[part.slot, :, part.start : part.end] = new_v
            slot = slice(part.slot, part.slot + 1)
            k, v = keys[slot, :, : part.end], values[slot, :, : part.end]
            found.append(causal_attention(q[None], k, v, rules)[0])
        return torch.cat(found, dim=1) if len(found) > 1 else found[0]

    def _singles(
        self, query_H_B_D: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rules: Rules
    ) -> torch.Tensor:
        """Attention of one token a slot to all that the slot holds, (heads, B, dimension)."""
        k, v = (x[self._first : self._last, :, : self._longest] for x in (keys, values))
        query_B_H_D = query_H_B_D.transpose(0, 1)
        if not self._ordered:
            query_B_H_D = query_B_H_D.new_zeros(len(k), *query_B_H_D.shape[1:]).index_copy(0, self._slots, query_B_H_D)
        seen = self._seen(rules.window)
        if rules.sinks is None:
            # The heads that share a key head are as good as several queries of it; with sinks they are told apart.
            found_B_H_D = masked_attention(query_B_H_D.unflatten(1, (k.shape[1], -1)), k, v, seen, rules).flatten(1, 2)
        else:
            found_B_H_D = masked_attention(query_B_H_D[:, :, None], k, v, seen, rules)[:, :, 0]
        if not self._ordered:
            found_B_H_D = found_B_H_D[self._slots]
        return found_B_H_D.transpose(0, 1)

    def _seen(self, window: int | None) -> torch.Tensor:
        """Which tokens of its slot each sees, (slots, 1, 1, longest)."""
        if window not in self._masks:
            behind = self._at[:, None] - torch.arange(self._longest, device=self._device)
            seen = (behind >= 0) & (behind < (window or self._longest))
            self._masks[window] = seen[:, None, None]
        return self._masks[window]
