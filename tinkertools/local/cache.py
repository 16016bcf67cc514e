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
        # Keys and values by layer: (slots, tokens, key heads, dimension).
        self.held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Of all layers; 0 before anything is read."""
        return sum(x.shape[2] * x.shape[3] * x.element_size() for pair in self.held.values() for x in pair)

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
                x[target, :tokens] = x[source, :tokens]

    def read(self, parts: Sequence[Part]) -> torch.Tensor:
        """Read the tokens of each part, at most one part a slot: the decoder's output (parts, hidden) for their last.

        The room must be reserved.
        """
        # Single tokens first, then what begins an answer, then what continues one: each kind attends in its own way.
        order = sorted(range(len(parts)), key=lambda i: _kind(parts[i]))
        row = [parts[i] for i in order]
        tokens_N = torch.tensor([token for part in row for token in part.tokens])
        positions = [at for part in row for at in range(part.start, part.end)]
        hidden_N_D = self._hidden_states(
            tokens_N.to(self._device),
            torch.tensor(positions, device=self._device),
            _Pass(self, row, positions, self._device),
        )
        ends = torch.tensor([len(part.tokens) for part in row]).cumsum(0) - 1
        places = torch.empty(len(parts), dtype=torch.long)
        places[torch.tensor(order)] = ends
        return hidden_N_D[places.to(self._device)]

    def keep(
        self, layer: int, places_N: torch.Tensor, key_K_N_D: torch.Tensor, value_K_N_D: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of a pass to their places, slot · capacity + position each.

        Returns:
            All that is held of the layer, (slots, key heads, tokens, dimension) each.
        """
        if layer not in self.held:
            # In the order in which a layer gives them to the next, so that writing is a copy of rows.
            self.held[layer] = tuple(  # type: ignore[assignment]
                self._grown(x.transpose(0, 1)[None, :0], 0) for x in (key_K_N_D, value_K_N_D)
            )
        keys, values = self.held[layer]
        keys.flatten(0, 1).index_copy_(0, places_N, key_K_N_D.transpose(0, 1))
        values.flatten(0, 1).index_copy_(0, places_N, value_K_N_D.transpose(0, 1))
        return keys.transpose(1, 2), values.transpose(1, 2)

    def _grown(self, old: torch.Tensor, kept: int) -> torch.Tensor:
        # Zeros, not what memory happens to hold: tokens that are not there are masked, and 0 · NaN is NaN.
        new = old.new_zeros(self.slots, self.capacity, *old.shape[2:])
        new[:kept, : old.shape[1]] = old[:kept]
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

    def __init__(self, cache: Cache, parts: Sequence[Part], positions: Sequence[int], device: torch.device) -> None:
        self._cache = cache
        self._device = device
        slots = [part.slot for part in parts for _ in part.tokens]
        places = [slot * cache.capacity + at for slot, at in zip(slots, positions, strict=True)]
        self._places_N = torch.tensor(places, device=device)
        self._singles = [part for part in parts if _kind(part) == 0]
        fresh = [len(part.tokens) for part in parts if _kind(part) == 1]
        self._others = [part for part in parts if _kind(part) == 2]
        self._packed = Packed(fresh)
        self._sizes = [len(self._singles), sum(fresh), *(len(part.tokens) for part in self._others)]
        self._masks: dict[int | None, torch.Tensor] = {}
        if self._singles:
            # The slots between the first and the last are one piece of memory, read where it is. Those among them
            # that have no single token here ask for nothing in particular, and what they get is dropped.
            self._first = min(part.slot for part in self._singles)
            self._last = max(part.slot for part in self._singles) + 1
            self._longest = max(part.end for part in self._singles)
            at = [0] * (self._last - self._first)
            rows = [part.slot - self._first for part in self._singles]
            for row, part in zip(rows, self._singles, strict=True):
                at[row] = part.start
            self._ordered = rows == list(range(len(at)))
            self._at, self._rows = torch.tensor(at, device=device), torch.tensor(rows, device=device)

    def attend(
        self, layer: int, query_H_N_D: torch.Tensor, key_K_N_D: torch.Tensor, value_K_N_D: torch.Tensor, rules: Rules
    ) -> torch.Tensor:
        """Keep the keys and values, and attend."""
        keys, values = self._cache.keep(layer, self._places_N, key_K_N_D, value_K_N_D)
        if len(self._singles) == query_H_N_D.shape[1]:
            return self._attend_singles(query_H_N_D, keys, values, rules)
        queries = query_H_N_D.split(self._sizes, dim=1)
        found = []
        if self._singles:
            found.append(self._attend_singles(queries[0], keys, values, rules))
        if self._sizes[1]:
            fresh = slice(self._sizes[0], self._sizes[0] + self._sizes[1])
            found.append(self._packed.attend(layer, queries[1], key_K_N_D[:, fresh], value_K_N_D[:, fresh], rules))
        for part, query in zip(self._others, queries[2:], strict=True):
            slot = slice(part.slot, part.slot + 1)
            k, v = keys[slot, :, : part.end], values[slot, :, : part.end]
            found.append(causal_attention(query[None], k, v, rules)[0])
        return torch.cat(found, dim=1) if len(found) > 1 else found[0]

    def _attend_singles(
        self, query_H_B_D: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rules: Rules
    ) -> torch.Tensor:
        """Attention of one token a slot to all that the slot holds, (heads, B, dimension)."""
        k, v = (x[self._first : self._last, :, : self._longest] for x in (keys, values))
        query_B_H_D = query_H_B_D.transpose(0, 1)
        if not self._ordered:
            query_B_H_D = query_B_H_D.new_zeros(len(k), *query_B_H_D.shape[1:]).index_copy(0, self._rows, query_B_H_D)
        seen = self._seen(rules.window)
        if rules.sinks is None:
            # The heads that share a key head are as good as several queries of it; with sinks they are told apart.
            found_B_H_D = masked_attention(query_B_H_D.unflatten(1, (k.shape[1], -1)), k, v, seen, rules).flatten(1, 2)
        else:
            found_B_H_D = masked_attention(query_B_H_D[:, :, None], k, v, seen, rules)[:, :, 0]
        if not self._ordered:
            found_B_H_D = found_B_H_D[self._rows]
        return found_B_H_D.transpose(0, 1)

    def _seen(self, window: int | None) -> torch.Tensor:
        """Which tokens of its slot each sees, (slots, 1, 1, longest)."""
        if window not in self._masks:
            behind = self._at[:, None] - torch.arange(self._longest, device=self._device)
            seen = (behind >= 0) & (behind < (window or self._longest))
            self._masks[window] = seen[:, None, None]
        return self._masks[window]
