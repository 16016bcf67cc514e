"""Answers to any number of prompts at once: a slot of the cache for each, and no slot waits for another."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from tinkertools.local.cache import Cache, Part
from tinkertools.local.memory import free_bytes, out_of_memory
from tinkertools.local.model import BaseModel
from tinkertools.local.selection import Choice, choose
from tinkertools.local.stops import TextStops

# Answers that grow side by side.
MAX_SLOTS = 64
# The cache's share of what memory is free when the first answer begins.
_MEMORY_SHARE = 0.5
# The tokens a slot has room for are a multiple of this, and grow by this factor at least.
_STEP = 64
_GROWTH = 1.5


@dataclass(eq=False)
class Row:
    """One answer in the making.

    Attributes:
        limit: the most tokens it may have.
        stop_tokens: any of these ends it, and is its last.
        top_logprobs: how many of the likeliest tokens to note at each of its positions.
        tops: the ids and the logprobs of those.
        stop_reason: "stop" or "length" once it has ended.
        error: why it cannot be completed.
        read: how many tokens of prompt and answer the cache holds.
    """

    prompt: list[int]
    limit: int
    choice: Choice
    stop_tokens: frozenset[int] = frozenset()
    stop_texts: TextStops | None = None
    top_logprobs: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[list[int], list[float]]] = field(default_factory=list)
    stop_reason: str | None = None
    error: BaseException | None = None
    read: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.stop_reason is not None or self.error is not None

    @property
    def known(self) -> int:
        """How many tokens there are, of the prompt and of the answer."""
        return len(self.prompt) + len(self.tokens)

    def unread(self, most: int) -> list[int]:
        """The first tokens, at most so many, that the cache does not hold."""
        start = self.read - len(self.prompt)
        if start >= 0:
            return self.tokens[start : start + most]
        return (self.prompt[self.read :] + self.tokens)[:most]

    def take(self, token: int, logprob: float) -> None:
        """The answer's next token."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.stop_tokens or (self.stop_texts and self.stop_texts.end(self.tokens)):
            self.stop_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.stop_reason = "length"


class Generation:
    """Completes rows, step by step; rows may come at any time. Runs where and with what adapter its caller does.

    The slots are a rectangle, as many tokens wide as the longest answer. What does not fit into the memory for them
    waits, and where answers outgrow it the shortest waits again, to be read once more later.

    Args:
        base: the model.
        slots: how many answers grow side by side.
        pass_tokens: how many tokens a pass reads, pieces of prompts beside the answers' newest; else what suits the
            device.
    """

    def __init__(self, base: BaseModel, slots: int | None = None, pass_tokens: int | None = None) -> None:
        self._base = base
        self._most = slots or MAX_SLOTS
        self._pass_tokens = pass_tokens or base.budget.forward
        self._cache = Cache(base.hidden_states, base.device)
        self._bytes_per_token = base.cache_bytes_per_token
        self._memory = free_bytes(base.device) * _MEMORY_SHARE
        self._waiting: deque[Row] = deque()
        # By slot. A row that has ended stays, and what the cache holds of it, until another takes the slot.
        self._rows: list[Row] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Let rows wait behind those that wait, whoever may take longest first: few slots are empty at the end then."""
        self._waiting.extend(sorted(rows, key=lambda row: -row.limit))

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting) or any(not row.ended for row in self._rows)

    def step(self) -> list[Row]:
        """One pass of the model: a token more for each answer whose prompt is read. Returns the rows that ended."""
        try:
            with torch.inference_mode():
                return self._step()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return self._shrink(error)

    def _step(self) -> list[Row]:
        self._fill_slots()
        parts = self._parts()
        hidden_P_D = self._cache.read(parts)
        for part in parts:
            self._rows[part.slot].read = part.end
        ready = [i for i, part in enumerate(parts) if part.end == self._rows[part.slot].known]
        return self._grow([self._rows[parts[i].slot] for i in ready], hidden_P_D, ready)

    def _grow(self, rows: list[Row], hidden_P_D: torch.Tensor, places: list[int]) -> list[Row]:
        """A token more for each of the rows, by the hidden states at their places."""
        if not rows:
            return []
        if len(places) < len(hidden_P_D):
            hidden_P_D = hidden_P_D[torch.tensor(places, device=hidden_P_D.device)]
        logits_B_V = self._base.logits(hidden_P_D)
        tokens, logprobs = (x.tolist() for x in choose(logits_B_V, [row.choice for row in rows]))
        noted = [i for i, row in enumerate(rows) if row.top_logprobs]
        if noted:
            chosen = logits_B_V[torch.tensor(noted, device=logits_B_V.device)]
            width = min(max(rows[i].top_logprobs for i in noted), chosen.shape[1])
            values, ids = chosen.topk(width)
            values = values - chosen.logsumexp(-1, keepdim=True)
            for i, found, top in zip(noted, ids.tolist(), values.tolist(), strict=True):
                count = rows[i].top_logprobs
                rows[i].tops.append((found[:count], top[:count]))
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.take(token, logprob)
        return [row for row in rows if row.ended]

    def _parts(self) -> list[Part]:
        """What the next pass reads: the newest tokens of all answers, and of prompts what there is room for."""
        room = self._pass_tokens
        parts = []
        for slot, row in sorted(enumerate(self._rows), key=lambda pair: pair[1].known - pair[1].read > 1):
            if tokens := row.unread(room):
                parts.append(Part(slot, row.read, tokens))
                room -= len(tokens)
        return parts

    def _fill_slots(self) -> None:
        """Give the slots of rows that ended, and new ones, to rows that wait; the others move together."""
        moves: list[tuple[int, int, int]] = []
        before = len(self._rows)
        free = [slot for slot, row in enumerate(self._rows) if row.ended]
        held: list[Row] = []
        while self._waiting and (free or len(self._rows) < self._most):
            row = self._waiting.popleft()
            source = self._source(row)
            if source is not None and self._rows[source].read < len(row.prompt) - 1 and not self._rows[source].ended:
                held.append(row)  # the same prompt is being read
                continue
            going = [other for other in self._rows if not other.ended]
            if not self._fits([*going, row]) and going:
                self._waiting.appendleft(row)
                break
            slot = source if source in free else free[0] if free else len(self._rows)
            assert slot is not None
            row.read = 0
            if source is not None:
                # The last token of the prompt is read again: what comes after it is not kept.
                row.read = min(self._rows[source].read, len(row.prompt) - 1)
                if source != slot:
                    moves.append((source, slot, row.read))
            if slot < len(self._rows):
                free.remove(slot)
                self._rows[slot] = row
            else:
                self._rows.append(row)
        self._waiting.extendleft(reversed(held))
        while len(self._rows) - len(free) > 1 and not self._fits([row for row in self._rows if not row.ended]):
            slot = min(
                (i for i, row in enumerate(self._rows) if not row.ended), key=lambda i: (self._rows[i].known, -i)
            )
            self._put_back(slot)
            free.append(slot)
        after = max(before, len(self._rows))
        for slot in sorted(free, reverse=True):
            last = self._rows.pop()
            if slot < len(self._rows):
                moves.append((len(self._rows), slot, last.read))
                self._rows[slot] = last
        self._reserve(after)
        for source, slot, tokens in moves:
            self._cache.copy(source, slot, tokens)

    def _source(self, row: Row) -> int | None:
        """The slot that holds most of the same prompt."""
        same = [slot for slot, other in enumerate(self._rows) if other.read and other.prompt == row.prompt]
        same = same or [slot for slot, other in enumerate(self._rows) if not other.ended and other.prompt == row.prompt]
        return max(same, key=lambda slot: self._rows[slot].read, default=None)

    def _put_back(self, slot: int) -> None:
        """Let a row wait again; what the cache holds of it is lost, its tokens are not."""
        row = self._rows[slot]
        self._waiting.appendleft(row)
        self._rows[slot] = Row(row.prompt, 0, row.choice, stop_reason="length")

    def _fits(self, rows: list[Row]) -> bool:
        """Whether the memory for the cache holds all that is known of the rows."""
        return len(rows) * max(row.known for row in rows) * self._bytes_per_token <= self._memory

    def _reserve(self, slots: int) -> None:
        need = max(row.known for row in self._rows)
        cache = self._cache
        if slots <= cache.slots and need <= cache.capacity:
            return
        if slots > cache.slots:
            slots = max(slots, min(self._most, 2 * cache.slots))
        most = self._memory // (slots * self._bytes_per_token)
        wide = cache.capacity if need <= cache.capacity else max(need, min(int(cache.capacity * _GROWTH), int(most)))
        cache.reserve(slots, -(-wide // _STEP) * _STEP)

    def _shrink(self, error: BaseException) -> list[Row]:
        """Begin again with half of the slots after memory ran out; an answer that was alone fails."""
        rows = [row for row in self._rows if not row.ended]
        self._rows = []
        self._cache = Cache(self._base.hidden_states, self._base.device)
        if self._base.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) <= 1:
            for row in rows:
                row.error = error
            return rows
        self._most = len(rows) // 2
        for row in rows:
            row.read = 0
        self._waiting.extendleft(reversed(rows))
        return []
