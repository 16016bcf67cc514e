"""The sampling client of the embedded engine: batches of prompts on a key-value cache."""

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tinker import types

from tinkertools.errors import EngineError
from tinkertools.local import compute, responses
from tinkertools.local.cache import Cache, Part
from tinkertools.local.limits import tokens_of
from tinkertools.local.model import BaseModel
from tinkertools.local.twins import Ready
from tinkertools.local.worker import LocalFuture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Sequences that are generated side by side, and tokens that one pass of the model reads.
_MAX_ROWS = 64
_PASS_TOKENS = 4096
_PREFILL_TOKENS = 16384


@dataclass(frozen=True)
class Request:
    """One prompt and how to answer it; `num_samples` answers."""

    prompt: list[int]
    num_samples: int
    params: types.SamplingParams
    prompt_logprobs: bool


@dataclass
class Row:
    """One answer in the making."""

    prompt: list[int]
    params: types.SamplingParams
    limit: int
    stop_tokens: frozenset[int]
    stop_texts: tuple[str, ...]
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: str | None = None
    # How many tokens of prompt and answer the cache holds.
    read: int = 0

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


class SamplingClient(Ready):
    """Answers from a base model with an adapter, or from the base alone."""

    def __init__(self, base: BaseModel, adapter: str | None) -> None:
        self._base = base
        self._adapter = adapter

    def sample(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
    ) -> LocalFuture[types.SampleResponse]:
        """`num_samples` answers to a prompt. Temperature 0 takes the likeliest token.

        The end-of-turn token is part of the answer. `logprobs` are the model's own, whatever the temperature. With a
        seed, sample k uses seed + k, and the draws do not depend on what else is sampled at the time.
        """
        if topk_prompt_logprobs:
            raise EngineError("topk_prompt_logprobs is not in the embedded engine of this version")
        request = Request(tokens_of(prompt, "the prompt"), num_samples, sampling_params, include_prompt_logprobs)
        return self._base.worker.submit_grouped(("sample", self._adapter), request, self._sample)

    def compute_logprobs(self, prompt: types.ModelInput) -> LocalFuture[list[float | None]]:
        """log p of each token of `prompt` given those before it; None for the first."""
        return self._base.worker.submit_grouped(
            ("logprobs", self._adapter), tokens_of(prompt, "the sequence"), self._compute_logprobs
        )

    def get_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base model's tokenizer."""
        return self._base.tokenizer

    # What follows runs on the worker's thread.

    def _sample(self, requests: list[Request]) -> list[Any]:
        """One response, or one error, a request."""
        results: list[Any] = [self._error_of(request) for request in requests]
        rows: list[tuple[int, Row]] = []
        for i, request in enumerate(requests):
            if results[i] is None:
                rows += [(i, self._row(request, k)) for k in range(request.num_samples)]
        with self._base.using(self._adapter):
            self._generate([row for _, row in rows])
        asked = [i for i, request in enumerate(requests) if results[i] is None and request.prompt_logprobs]
        prompt_logprobs = dict(zip(asked, self._compute_logprobs([requests[i].prompt for i in asked]), strict=True))
        for i in range(len(requests)):
            if results[i] is None:
                sequences = [
                    responses.sampled_sequence(row.tokens, row.logprobs, row.stop_reason or "length")
                    for at, row in rows
                    if at == i
                ]
                results[i] = responses.sample_response(sequences, prompt_logprobs.get(i))
        return results

    def _error_of(self, request: Request) -> EngineError | None:
        if error := self._prompt_error(request.prompt):
            return error
        if len(request.prompt) >= self._base.max_length:
            return EngineError(
                f"a prompt of {len(request.prompt)} tokens leaves no room to answer; the model takes "
                f"{self._base.max_length}"
            )
        params = request.params
        if request.num_samples < 1:
            return EngineError(f"num_samples is {request.num_samples}, but must be at least 1")
        if params.temperature < 0:
            return EngineError(f"the temperature is {params.temperature}, but must be 0 or more")
        if params.max_tokens is not None and params.max_tokens < 1:
            return EngineError(f"max_tokens is {params.max_tokens}, but must be at least 1")
        return None

    def _prompt_error(self, prompt: list[int]) -> EngineError | None:
        if not prompt:
            return EngineError("the prompt is empty")
        if len(prompt) > self._base.max_length:
            return EngineError(f"a sequence of {len(prompt)} tokens; the model takes {self._base.max_length}")
        if min(prompt) < 0 or max(prompt) >= self._base.vocabulary:
            return EngineError(f"the prompt has ids outside the vocabulary of {self._base.vocabulary}")
        return None

    def _row(self, request: Request, k: int) -> Row:
        params = request.params
        room = self._base.max_length - len(request.prompt)
        stop = params.stop
        tokens: list[int] = []
        texts: list[str] = []
        if stop is None:
            end = self._base.tokenizer.eos_token_id
            tokens = [end] if isinstance(end, int) else []
        else:
            for item in [stop] if isinstance(stop, str) else stop:
                (texts if isinstance(item, str) else tokens).append(item)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(
            secrets.randbits(63) if params.seed is None else (params.seed + k) & ((1 << 63) - 1)
        )
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        return Row(request.prompt, params, limit, frozenset(tokens), tuple(texts), generator)

    def _generate(self, rows: list[Row]) -> None:
        """Complete the rows. An answer that ends leaves its slot of the cache to the next row that waits."""
        cache = Cache(self._base.hidden_states, self._base.device)
        # Whoever may take longest begins first: at the end, few slots are empty.
        waiting = deque(sorted(rows, key=lambda row: -row.limit))
        going: list[Row] = []
        while going or waiting:
            self._base.worker.check()
            while waiting and len(going) < _MAX_ROWS:
                going.append(waiting.popleft())
            parts: list[Part] = []
            room = _PASS_TOKENS
            for slot, row in enumerate(going):
                if tokens := row.unread(room):
                    parts.append(Part(slot, row.read, tokens))
                    room -= len(tokens)
            longest = max(part.end for part in parts)
            cache.reserve(len(going), longest)
            hidden_P_D = cache.read(parts)
            for part in parts:
                going[part.slot].read = part.end
            ready = [i for i, part in enumerate(parts) if part.end == going[part.slot].known]
            if ready:
                answering = [going[parts[i].slot] for i in ready]
                logits_B_V = self._base.logits(hidden_P_D[torch.tensor(ready, device=hidden_P_D.device)]).cpu()
                for row, token, logprob in zip(answering, *choose(logits_B_V, answering), strict=True):
                    row.tokens.append(token)
                    row.logprobs.append(logprob)
                    row.stop_reason = self._stop_reason(row)
            for slot in reversed(range(len(going))):
                if going[slot].stop_reason is not None:
                    last = going.pop()
                    if slot < len(going):
                        cache.copy(len(going), slot, last.read)
                        going[slot] = last

    def _stop_reason(self, row: Row) -> str | None:
        if row.tokens[-1] in row.stop_tokens:
            return "stop"
        if row.stop_texts:
            text = str(self._base.tokenizer.decode(row.tokens))
            if any(stop in text for stop in row.stop_texts):
                return "stop"
        return "length" if len(row.tokens) >= row.limit else None

    def _compute_logprobs(self, prompts: list[list[int]]) -> list[Any]:
        """For each prompt its logprobs, or an error."""
        results: list[Any] = [self._prompt_error(prompt) for prompt in prompts]
        valid = [i for i in range(len(prompts)) if results[i] is None]
        rows = [torch.tensor(prompts[i]) for i in valid]
        found = compute.forward(self._base, self._adapter, [compute.Item(row[:-1], row[1:], {}) for row in rows])
        for i, logprobs in zip(valid, found, strict=True):
            results[i] = [None, *logprobs.tolist()]
        return results


def choose(logits_B_V: torch.Tensor, rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    """The next token of each row and its logprob under the model itself.

    One uniform draw a row, from the row's own generator, picks from the distribution that temperature, top-k and top-p
    leave, so a row's answer does not depend on its neighbours.
    """
    logprobs_B_V = torch.log_softmax(logits_B_V.float(), dim=-1)
    tokens = [_draw(logprobs, row) for logprobs, row in zip(logprobs_B_V, rows, strict=True)]
    return tokens, [float(logprobs[token]) for logprobs, token in zip(logprobs_B_V, tokens, strict=True)]


def _draw(logprobs_V: torch.Tensor, row: Row) -> int:
    params = row.params
    if params.temperature == 0:
        return int(logprobs_V.argmax())
    scaled = logprobs_V / params.temperature
    if params.top_k <= 0 and params.top_p >= 1:
        cumulative = torch.softmax(scaled, dim=-1).double().cumsum(0)
        order = None
    else:
        ordered, order = torch.softmax(scaled, dim=-1).double().sort(descending=True, stable=True)
        kept = len(ordered) if params.top_k <= 0 else min(params.top_k, len(ordered))
        # Top-p keeps the fewest tokens whose probabilities reach it, among those that top-k left.
        within = ordered[:kept] / ordered[:kept].sum()
        kept = min(kept, int((within.cumsum(0) < params.top_p).sum()) + 1)
        cumulative = ordered[:kept].cumsum(0)
    point = torch.rand((), generator=row.generator, dtype=torch.float64) * cumulative[-1]
    at = min(int(torch.searchsorted(cumulative, point, right=True)), len(cumulative) - 1)
    return at if order is None else int(order[at])
